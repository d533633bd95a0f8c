//! What proxyd asks of the machine it runs on, and sets there. I/O: rtnetlink, files of the kernel.

pub mod addresses;
pub mod sysctl;
