//! What proxyd asks of the machine it runs on, and sets there. I/O: rtnetlink, connection tracking, files of the kernel,
//! the C library.

pub mod addresses;
pub mod conntrack;
pub mod devices;
pub mod memory;
pub mod ports;
pub mod reconciler;
pub mod sysctl;
