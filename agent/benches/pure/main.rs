//! Benches of the agent's pure parts, in the order in which data passes: parse, plan, diff, encode.
//!
//! `cargo bench --locked -p proxyd`, with a part of a bench's name behind `--` for some of them:
//! `cargo bench --locked -p proxyd -- one_change`. What the kernel and the network add is measured by `cargo xtask bench`.

mod cluster;
mod diff;
mod encode;
mod parse;
mod plan;

fn main() {
    divan::main();
}
