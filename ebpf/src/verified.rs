//! What functions answer that the kernel verifies by themselves, for whatever they are called with: those that are `extern "C"` and not
//! inlined.
//!
//! What comes after such a call is verified once, and not once for each way through the function. That makes the difference between
//! loading in 0.4 seconds and in 0.1. Their pointers may be null, as far as the kernel knows (before Linux 6.8 it cannot be told).

/// It did what it does, or left things as they were.
pub const TAKEN: i32 = 1;
pub const LEFT: i32 = 0;
