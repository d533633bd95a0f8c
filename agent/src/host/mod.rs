//! What proxyd asks of the machine it runs on, and sets there. I/O: rtnetlink, connection tracking, sockets, namespaces, files
//! of the kernel, the C library.

pub mod addresses;
pub mod closer;
pub mod conntrack;
pub mod devices;
pub mod families;
mod mailbox;
pub mod memory;
pub mod namespaces;
pub mod nf_tables;
pub mod other_proxy;
pub mod ports;
pub mod priority;
pub mod reconciler;
pub mod sock_diag;
pub mod sole;
pub mod sysctl;
