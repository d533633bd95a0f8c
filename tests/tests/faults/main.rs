//! Faults, one after the other and mixed: the agent is killed, the kernel says no, endpoints roll, time jumps. None of
//! it loses a connection that could have lived, and none leaves the kernel with anything but what is desired.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

mod churn;
mod clocks;
mod kills;
mod maps;
mod refusals;
mod rollout;

use std::net::SocketAddr;

/// A ClusterIP's port 80.
fn http_at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 80)
}
