//! Memory that the program does not need any more. The one file of the agent with unsafe code.

/// Gives freed memory back to the kernel. A full sync takes several times what stays in use; glibc keeps that for
/// itself whenever something in use lies above it (`malloc_trim(3)`). Takes milliseconds; other C libraries do it by
/// themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the C library has no other way to ask for it")]
    // SAFETY: it takes no pointer, touches free memory alone, and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
