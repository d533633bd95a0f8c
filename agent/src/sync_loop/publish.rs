//! What the sync loop tells others of its work: the status, the health checks and the metrics that `http/` answers from.
//!
//! The loop says what happened; here it is counted and put on `watch` channels, where others read the latest value.
//! Nothing here waits for a reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::engine::{Engine, Synced};
use crate::event::Event;
use crate::http::Clock;
use crate::http::metrics::{ChangeKind, Metrics, TrafficPolicy};
use crate::model::{Family, Parsed, PerFamily, Slice, Snapshot};
use crate::status::{HealthChecks, LocalNodePorts, Status};

/// How many triggers wait in a family, at most: more can come only while the kernel refuses everything.
const MOST_TRIGGERS: usize = 4_096;

/// Where the loop tells what it does.
#[derive(Debug)]
pub(crate) struct Publisher {
    status: watch::Sender<Status>,
    checks: watch::Sender<HealthChecks>,
    local_node_ports: watch::Sender<LocalNodePorts>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// When the program started, by the time of day.
    started: Timestamp,
    eligible_without_node: bool,
    /// What brought about the changes that are not in the kernel yet.
    triggers: PerFamily<Vec<Timestamp>>,
}

impl Publisher {
    /// Nothing has happened yet. `clock` gives the moments of the status; `eligible_without_node` says whether load
    /// balancers may use a node that has no Node object, which only a cluster without an API server has. `absent` are the families that the
    /// kernel lacks.
    pub(crate) fn new(
        clock: Clock,
        eligible_without_node: bool,
        absent: PerFamily<bool>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let node_eligible = eligible_without_node;
        Self {
            status: watch::Sender::new(Status {
                node_eligible,
                absent,
                ..Status::default()
            }),
            checks: watch::Sender::default(),
            local_node_ports: watch::Sender::default(),
            metrics,
            clock,
            started: Timestamp::now(),
            eligible_without_node,
            triggers: PerFamily::default(),
        }
    }

    /// The status, as it is from now on.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The health checks, as they are from now on.
    pub(crate) fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.checks.subscribe()
    }

    /// The NodePorts at the loopback addresses, as they are from now on.
    pub(crate) fn local_node_ports(&self) -> watch::Receiver<LocalNodePorts> {
        self.local_node_ports.subscribe()
    }

    /// The metrics, which others count in too: the servers their answers, and whoever looks for stale flows what it
    /// deleted, by [`Metrics::conntrack`].
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// An event is about to be handled; `snapshot` is what was known before.
    pub(super) fn event(&mut self, event: &Event, snapshot: &Snapshot) {
        let (services, slices) = changes(event);
        for (kind, count) in [
            (ChangeKind::Service, services),
            (ChangeKind::Endpoint, slices),
        ] {
            if count > 0 {
                self.metrics.changes(kind, count as u64);
            }
        }
        match event {
            Event::SliceApplied(slice) => self.trigger(slice, snapshot),
            Event::KernelChanged { family, .. } => self.metrics.changed_by_others(*family),
            Event::SlicesListed(slices) | Event::AllListed { slices, .. } => {
                slices
                    .iter()
                    .for_each(|slice| self.trigger(slice, snapshot));
            }
            _ => {}
        }
    }

    /// Notes when a slice's change came about: one since the start, so that a restart does not count as a delay, and
    /// one that changes something (kube-proxy's `endpointsChangeTracker`).
    fn trigger(&mut self, slice: &Parsed<Slice>, snapshot: &Snapshot) {
        let (Some(trigger), Some(slice)) = (slice.trigger, &slice.object) else {
            return;
        };
        let waiting = self.triggers.get_mut(trigger.family);
        if trigger.at > self.started && waiting.len() < MOST_TRIGGERS && !snapshot.is_known(slice) {
            waiting.push(trigger.at);
        }
    }

    /// Events were handled; `snapshot` is what is known now.
    pub(super) fn node(&self, snapshot: &Snapshot) {
        let eligible = snapshot
            .node()
            .map_or(self.eligible_without_node, |node| !node.leaving);
        self.status.send_if_modified(|status| {
            let before = std::mem::replace(&mut status.node_eligible, eligible);
            before != eligible
        });
    }

    /// A family has something to write, since `at`. `is_news`: an event asked for it, not an earlier failure.
    pub(super) fn queued(&self, family: Family, at: Instant, is_news: bool) {
        let at = self.clock.at(at);
        self.status.send_modify(|status| status.queue(family, at));
        if is_news {
            self.metrics.queued(family);
        }
    }

    /// A family was synced, which took this long.
    pub(super) fn synced(
        &mut self,
        family: Family,
        synced: &Synced,
        took: Duration,
        engine: &Engine,
    ) {
        let now = self.clock.now();
        self.status.send_modify(|status| status.synced(family, now));
        self.metrics.synced(family, synced.planned_all, took);
        let triggers = self.triggers.get_mut(family);
        if !triggers.is_empty() {
            let now = Timestamp::now();
            let latency = |at| Duration::try_from(now.duration_since(at)).unwrap_or_default();
            self.metrics
                .programmed(family, triggers.drain(..).map(latency));
        }
        let without = engine.without_endpoints(family);
        self.metrics.without_endpoints(family, without as u64);
        let counts = engine.without_local_endpoints(family);
        for (policy, ports) in [
            (TrafficPolicy::Internal, counts.internal),
            (TrafficPolicy::External, counts.external),
        ] {
            self.metrics
                .no_local_endpoints(policy, family, ports as u64);
        }
    }

    /// So many objects of each kind have a part that is not served.
    pub(super) fn refused(&self, refused: &[(&'static str, usize)]) {
        self.metrics.refused(refused);
    }

    /// A sync of a family failed.
    pub(super) fn sync_failed(&self, family: Family) {
        self.metrics.sync_failed(family);
    }

    /// All that is known is in the kernel, for both families.
    pub(super) fn all_synced(&self, engine: &mut Engine) {
        self.metrics.nothing_pending();
        if let Some(checks) = engine.take_health_checks() {
            self.checks.send_if_modified(|published| {
                let is_new = *published != checks;
                *published = checks;
                is_new
            });
        }
        if let Some(ports) = engine.take_local_node_ports() {
            self.local_node_ports.send_replace(ports);
        }
    }
}

/// How many Services and EndpointSlices an event brings.
fn changes(event: &Event) -> (usize, usize) {
    match event {
        Event::ServicesListed(services) => (services.len(), 0),
        Event::ServiceApplied(_) | Event::ServiceDeleted(_) => (1, 0),
        Event::SlicesListed(slices) => (0, slices.len()),
        Event::SliceApplied(_) | Event::SliceDeleted(_) => (0, 1),
        Event::AllListed {
            services, slices, ..
        } => (services.len(), slices.len()),
        Event::ServiceCidrsListed(_)
        | Event::ServiceCidrApplied(_)
        | Event::ServiceCidrDeleted(_)
        | Event::NodeChanged(_)
        | Event::HostAddressesChanged(_)
        | Event::KernelChanged { .. } => (0, 0),
    }
}

#[cfg(test)]
mod tests;
