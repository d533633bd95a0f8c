//! The agent's metrics: counted here with plain atomics, so that no sync ever waits for a scrape.
//!
//! Names, labels and buckets are those of kube-proxy 1.36 (`pkg/proxy/metrics/metrics.go`), which dashboards use
//! already; `sync_proxy_rules_foreign_changes_total`, `other_proxy`, `sync_proxy_rules_service_ports_without_endpoints` and `refused_objects` are proxyd's own. Those of a process and of a client of the API server, which
//! kube-proxy has from its libraries, have their names too. The sync loop, the health servers and the client count;
//! [`Exposition`] makes the text of it, and [`super::metrics_server`] serves that.

mod exposition;
mod histogram;
mod process;
mod requests;
mod slis;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::host::other_proxy::{self, OtherProxy};
use crate::model::{Family, PerFamily};

pub use exposition::{Exposition, Format};
use histogram::Histogram;
pub(super) use process::started;
pub use requests::Requests;
pub use slis::Check;
use slis::Slis;

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    syncs: PerFamily<Histogram>,
    full_syncs: PerFamily<Histogram>,
    partial_syncs: PerFamily<Histogram>,
    programming: PerFamily<Histogram>,
    last_synced: PerFamily<Moment>,
    last_queued: PerFamily<Moment>,
    service_changes: Changes,
    endpoint_changes: Changes,
    no_local_endpoints: [PerFamily<AtomicU64>; 2],
    without_endpoints: PerFamily<AtomicU64>,
    refused: Mutex<Vec<(&'static str, usize)>>,
    sync_failures: PerFamily<AtomicU64>,
    foreign_changes: PerFamily<AtomicU64>,
    other_process: AtomicU64,
    other_rules: [AtomicU64; other_proxy::Mode::ALL.len()],
    healthz: Answers,
    livez: Answers,
    conntrack: PerFamily<Histogram>,
    conntrack_deleted: PerFamily<AtomicU64>,
    relay: PerFamily<Relayed>,
    requests: Arc<Requests>,
    slis: Slis,
}

/// A kind of object that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Services.
    Service,
    /// EndpointSlices, which the metrics of kube-proxy still call endpoints.
    Endpoint,
}

/// The traffic policy that has no endpoint to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// `internalTrafficPolicy: Local`.
    Internal,
    /// `externalTrafficPolicy: Local`.
    External,
}

impl TrafficPolicy {
    const ALL: [Self; 2] = [Self::Internal, Self::External];

    const fn label(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let sync = |_| Histogram::new(histogram::sync_buckets());
        Self {
            syncs: PerFamily::from_fn(sync),
            full_syncs: PerFamily::from_fn(sync),
            partial_syncs: PerFamily::from_fn(sync),
            programming: PerFamily::from_fn(|_| Histogram::new(histogram::programming_buckets())),
            last_synced: PerFamily::default(),
            last_queued: PerFamily::default(),
            service_changes: Changes::default(),
            endpoint_changes: Changes::default(),
            no_local_endpoints: Default::default(),
            without_endpoints: PerFamily::default(),
            refused: Mutex::default(),
            sync_failures: PerFamily::default(),
            foreign_changes: PerFamily::default(),
            other_process: AtomicU64::default(),
            other_rules: Default::default(),
            healthz: Answers::default(),
            livez: Answers::default(),
            conntrack: PerFamily::from_fn(sync),
            conntrack_deleted: PerFamily::default(),
            relay: PerFamily::default(),
            requests: Arc::default(),
            slis: Slis::default(),
        }
    }
}

impl Metrics {
    /// So many objects have changed. They are pending until [`Metrics::nothing_pending`].
    pub fn changes(&self, kind: ChangeKind, count: u64) {
        let changes = self.changes_of(kind);
        add(&changes.total, count);
        add(&changes.pending, count);
    }

    /// All changes are in the kernel, for both families.
    pub fn nothing_pending(&self) {
        for changes in [&self.service_changes, &self.endpoint_changes] {
            changes.pending.store(0, Ordering::Relaxed);
        }
    }

    /// A sync of a family was asked for now.
    pub fn queued(&self, family: Family) {
        self.last_queued.get(family).set(SystemTime::now());
    }

    /// A family was synced now, completely (`is_full`) or as far as changes reached, and how long that took.
    pub fn synced(&self, family: Family, is_full: bool, took: Duration) {
        let kind = if is_full {
            &self.full_syncs
        } else {
            &self.partial_syncs
        };
        kind.get(family).observe(took);
        self.syncs.get(family).observe(took);
        self.last_synced.get(family).set(SystemTime::now());
    }

    /// A sync of a family failed.
    pub fn sync_failed(&self, family: Family) {
        add(self.sync_failures.get(family), 1);
    }

    /// Someone else changed the rules of a family.
    pub fn changed_by_others(&self, family: Family) {
        add(self.foreign_changes.get(family), 1);
    }

    /// What there is of a kube-proxy beside.
    pub fn other_proxy(&self, found: &OtherProxy) {
        let process = u64::from(found.process.is_some());
        self.other_process.store(process, Ordering::Relaxed);
        for (gauge, mode) in self.other_rules.iter().zip(other_proxy::Mode::ALL) {
            let is_there = u64::from(found.rules.contains(&mode));
            gauge.store(is_there, Ordering::Relaxed);
        }
    }

    /// How long it took until changes were in the kernel, each since its slice's
    /// `endpoints.kubernetes.io/last-change-trigger-time`. Clocks differ: what seems negative is zero.
    pub fn programmed(&self, family: Family, latencies: impl IntoIterator<Item = Duration>) {
        for latency in latencies {
            self.programming.get(family).observe(latency);
        }
    }

    /// How many Services have endpoints, but none that a `Local` policy may use.
    pub fn no_local_endpoints(&self, policy: TrafficPolicy, family: Family, services: u64) {
        let gauge = self.no_local_endpoints[policy as usize].get(family);
        gauge.store(services, Ordering::Relaxed);
    }

    /// How many Service ports have no endpoint that can serve them: clients are refused.
    pub fn without_endpoints(&self, family: Family, ports: u64) {
        let gauge = self.without_endpoints.get(family);
        gauge.store(ports, Ordering::Relaxed);
    }

    /// How many objects of each kind have a part that is not served.
    pub fn refused(&self, refused: &[(&'static str, usize)]) {
        let mut gauges = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if gauges.as_slice() != refused {
            *gauges = refused.to_vec();
        }
    }

    /// The connection tracking table was gone through for stale flows, and so many were deleted.
    pub fn conntrack(&self, family: Family, took: Duration, deleted: u64) {
        self.conntrack.get(family).observe(took);
        add(self.conntrack_deleted.get(family), deleted);
    }

    /// `/healthz` was answered, with 200 or 503.
    pub fn health_request(&self, is_healthy: bool) {
        self.healthz.count(is_healthy);
        self.checked(Check::Health, is_healthy);
    }

    /// `/livez` was answered, with 200 or 503.
    pub fn live_request(&self, is_live: bool) {
        self.livez.count(is_live);
        self.checked(Check::Live, is_live);
    }

    /// A health check came out well or not, for `/metrics/slis`.
    pub fn checked(&self, check: Check, is_good: bool) {
        self.slis.checked(check, is_good);
    }

    /// Health checks are counted anew, for `/metrics/slis` alone.
    pub fn reset_slis(&self) {
        self.slis.reset();
    }

    /// A connection to a NodePort at the loopback address began; [`Metrics::relay_ended`] says when it is over.
    pub fn relay_begun(&self, family: Family) {
        let relayed = self.relay.get(family);
        add(&relayed.connections, 1);
        add(&relayed.active, 1);
    }

    /// One such connection is over.
    pub fn relay_ended(&self, family: Family) {
        self.relay
            .get(family)
            .active
            .fetch_sub(1, Ordering::Relaxed);
    }

    /// No endpoint took one such connection.
    pub fn relay_failed(&self, family: Family) {
        add(&self.relay.get(family).failures, 1);
    }

    /// Where requests to the API server are counted.
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    fn changes_of(&self, kind: ChangeKind) -> &Changes {
        match kind {
            ChangeKind::Service => &self.service_changes,
            ChangeKind::Endpoint => &self.endpoint_changes,
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Changes of objects of one kind.
#[derive(Debug, Default)]
struct Changes {
    pending: AtomicU64,
    total: AtomicU64,
}

/// Connections to NodePorts at the loopback address.
#[derive(Debug, Default)]
struct Relayed {
    connections: AtomicU64,
    active: AtomicU64,
    failures: AtomicU64,
}

/// Answers by their code.
#[derive(Debug, Default)]
struct Answers {
    good: AtomicU64,
    bad: AtomicU64,
}

impl Answers {
    fn count(&self, is_good: bool) {
        add(if is_good { &self.good } else { &self.bad }, 1);
    }
}

/// A time of day, or never.
#[derive(Debug, Default)]
struct Moment {
    /// Nanoseconds since 1970; 0 is never.
    nanos: AtomicU64,
}

impl Moment {
    fn set(&self, time: SystemTime) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = histogram::nanos(since.unwrap_or_default());
        self.nanos.store(nanos, Ordering::Relaxed);
    }

    /// Seconds since 1970.
    fn seconds(&self) -> Option<f64> {
        match read(&self.nanos) {
            0 => None,
            nanos => Some(histogram::seconds(nanos)),
        }
    }
}
