//! proxyd.
