//! How much of the processors threads get. I/O: a system call.

/// It gives way to the others, but does not starve.
const NICENESS: i32 = 10;

/// Has the calling thread give way to all others.
pub fn give_way() {
    // nice(2) is about the calling thread. Without it the work is done all the same.
    let _ = rustix::process::nice(NICENESS);
}
