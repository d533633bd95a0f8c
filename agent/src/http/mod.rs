//! What the agent answers over HTTP: its health, the health of Services on this node, and metrics. I/O: sockets.
//!
//! Nothing here decides anything: answers come from the values of [`crate::status`], which the sync loop publishes
//! on `watch` channels, and from [`metrics::Metrics`], which it counts in. A server that cannot listen is a warning
//! and is tried again; it never ends the agent.

use std::time::{Duration, Instant};

use axum::http::HeaderName;
use axum::http::header::X_CONTENT_TYPE_OPTIONS;

use crate::model::Family;
use crate::status::Uptime;

pub(crate) mod follow;
pub mod health;
pub mod listen;
pub mod metrics;
pub mod metrics_server;
pub mod serve;
pub mod service_health;
#[cfg(test)]
mod testing;
mod zpages;

/// How long to wait before listening is tried again on an address that was refused (kube-proxy's interval).
pub(crate) const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Tells browsers to believe the content type, as kube-proxy does.
const NO_SNIFF: (HeaderName, &str) = (X_CONTENT_TYPE_OPTIONS, "nosniff");

/// The clock that gives every [`Uptime`] of the agent.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock that shows zero at `started`, which is when the agent started.
    pub fn new(started: Instant) -> Self {
        Self { started }
    }

    /// The present moment.
    pub fn now(&self) -> Uptime {
        self.at(Instant::now())
    }

    /// A given moment; zero for one before the start.
    pub fn at(&self, instant: Instant) -> Uptime {
        Uptime(instant.saturating_duration_since(self.started))
    }
}

/// Kubernetes' name of a family, `v1.IPFamily`.
fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
