//! proxyd.
fn main() {}
