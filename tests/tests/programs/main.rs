//! The programs at devices, one by one: packets in, packets out, by `BPF_PROG_TEST_RUN`. Nothing is attached or pinned.
//!
//! A packet that is translated must be, byte for byte, the one that a sender of the new connection would have made; so its
//! checksums are compared with those that another implementation computes. All others must stay as they are.
//!
//! Each test goes through both families, TCP and UDP, devices with and without Ethernet headers (see [`packets::Link`]).
//!
//! NOT RUN here: the programs at cgroups, since the kernel has no test run for `cgroup_sock_addr`; `sockets.rs` has them meet real
//! sockets. Nor what a test run cannot tell a program: tags of VLANs that a device has taken out of a packet (`vlan_present`), and
//! packets whose checksums a device computes later.
//!
//! Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

mod errors;
mod fast_path;
mod forgetting;
mod fragments;
mod hostile;
mod lifetimes;
mod memory;
mod node;
mod packets;
mod ports;
mod random;
mod services;
