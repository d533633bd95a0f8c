//! What the agent tells others about itself: whether its rules are in sync, what load balancers may know of
//! Services, and which NodePorts are relayed at the loopback address.
//!
//! Plain values without a clock: a moment is an [`Uptime`], passed in. The sync loop fills them in and publishes
//! them on `watch` channels; `http/` answers from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{AffinityTimeout, Family, Frontend, ObjectName, PerFamily, Port};

/// A moment: how long the agent had been running then. Never goes back, unlike the time of day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(pub Duration);

impl Uptime {
    /// How long before `now` this was; zero for a moment that is still to come.
    pub fn until(self, now: Self) -> Duration {
        now.0.saturating_sub(self.0)
    }

    /// The moment that is so much later.
    #[must_use]
    pub fn after(self, pause: Duration) -> Self {
        Self(self.0.saturating_add(pause))
    }
}

/// Whether the rules of this node are as the cluster wants them, and whether the node should get traffic.
///
/// The rules of a family are in sync when they have been written at least once and no change has been
/// waiting for longer than a timeout; kube-proxy's is twice its `syncPeriod`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Since when the oldest change that is not in the kernel yet has been waiting.
    pub queued: PerFamily<Option<Uptime>>,
    /// When the rules were last known to be right.
    pub updated: PerFamily<Option<Uptime>>,
    /// Families that the kernel lacks. They are neither in sync nor out of sync.
    pub absent: PerFamily<bool>,
    /// Whether load balancers may use this node: it exists, is not being deleted and does not have the taint
    /// `ToBeDeletedByClusterAutoscaler` (KEP-3836).
    pub node_eligible: bool,
}

impl Status {
    /// A change came at `at` and is not in the kernel yet. The oldest one counts.
    pub fn queue(&mut self, family: Family, at: Uptime) {
        let queued = self.queued.get_mut(family);
        *queued = Some(queued.map_or(at, |oldest| oldest.min(at)));
    }

    /// All that was queued for a family is in the kernel.
    pub fn synced(&mut self, family: Family, now: Uptime) {
        *self.queued.get_mut(family) = None;
        *self.updated.get_mut(family) = Some(now);
    }

    /// Whether the rules of one family are in sync.
    pub fn is_in_sync(&self, family: Family, now: Uptime, timeout: Duration) -> bool {
        let late = self
            .queued
            .get(family)
            .is_some_and(|since| since.until(now) > timeout);
        self.updated.get(family).is_some() && !late
    }

    /// Whether the rules of all families that the kernel has are in sync.
    pub fn all_in_sync(&self, now: Uptime, timeout: Duration) -> bool {
        self.families()
            .all(|family| self.is_in_sync(family, now, timeout))
    }

    /// Whether starting the agent anew would be of no use: no family that was in sync once is out of sync now.
    /// One that was never written waits for the API server, and would wait again (so does kube-proxy's
    /// `ProxyHealthServer.Health`).
    pub fn is_live(&self, now: Uptime, timeout: Duration) -> bool {
        self.families().all(|family| {
            self.updated.get(family).is_none() || self.is_in_sync(family, now, timeout)
        })
    }

    /// The families that the kernel has.
    fn families(&self) -> impl Iterator<Item = Family> {
        let mut families = Family::ALL.into_iter();
        std::iter::from_fn(move || families.find(|family| !self.absent.get(*family)))
    }

    /// Whether load balancers should send traffic to this node: in sync, and the node is not on its way out.
    pub fn is_healthy(&self, now: Uptime, timeout: Duration) -> bool {
        self.node_eligible && self.all_in_sync(now, timeout)
    }

    /// When the rules of the family that was written last were written.
    pub fn last_updated(&self) -> Option<Uptime> {
        self.updated.v4.max(self.updated.v6)
    }
}

/// The health check ports of all Services, and where they are listened on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// The node's addresses that have NodePorts (`--nodeport-addresses`). Empty stands for all, of both families.
    pub addresses: BTreeSet<IpAddr>,
    /// The Services that have a port: type LoadBalancer with `externalTrafficPolicy: Local`.
    pub services: BTreeMap<ObjectName, ServiceHealth>,
}

/// What a load balancer asks about one Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceHealth {
    /// `spec.healthCheckNodePort`.
    pub port: Port,
    /// How many ready endpoints this node has; those that terminate do not count. The load balancer may use it as
    /// a weight.
    pub local_endpoints: usize,
}

/// The NodePorts at the loopback addresses (`--nodeport-addresses localhost`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalNodePorts {
    /// Those that are relayed: of TCP, and with endpoints.
    pub relayed: BTreeMap<(Family, Port), Arc<LocalNodePort>>,
    /// Those that cannot be: of other protocols, with their Services.
    pub unserved: BTreeMap<Frontend, ObjectName>,
}

/// Where clients of one NodePort at the loopback address get to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNodePort {
    /// The Service.
    pub service: ObjectName,
    /// Its endpoints, at least one: all that take new connections from this node.
    pub endpoints: Vec<SocketAddr>,
    /// How long a client keeps its endpoint.
    pub affinity: Option<AffinityTimeout>,
}

/// A warning about a Service, to be published as an Event on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The Service.
    pub service: ObjectName,
    /// Why, in one word for machines, such as `FailedToStartServiceHealthcheck`.
    pub reason: &'static str,
    /// What was being done, in one word for machines, such as `Listen`.
    pub action: &'static str,
    /// What happened, for people.
    pub note: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Uptime {
        Uptime(Duration::from_secs(seconds))
    }

    /// In sync since second 10, on a node that may be used.
    fn synced() -> Status {
        let mut status = Status {
            node_eligible: true,
            ..Status::default()
        };
        for family in Family::ALL {
            status.synced(family, at(10));
        }
        status
    }

    #[test]
    fn a_family_that_the_kernel_lacks_says_nothing_of_the_health() {
        let mut status = Status {
            absent: PerFamily {
                v4: false,
                v6: true,
            },
            node_eligible: true,
            ..Status::default()
        };
        assert!(
            !status.is_healthy(at(20), TIMEOUT),
            "nothing was written yet"
        );
        status.synced(Family::V4, at(10));
        assert!(status.is_healthy(at(20), TIMEOUT) && status.is_live(at(20), TIMEOUT));
        status.queue(Family::V4, at(20));
        assert!(!status.is_healthy(at(90), TIMEOUT) && !status.is_live(at(90), TIMEOUT));
    }

    #[test]
    fn before_both_families_were_written_the_agent_is_live_but_not_healthy() {
        let mut status = Status {
            node_eligible: true,
            ..Status::default()
        };
        let is = |status: &Status, now| {
            (
                status.is_live(now, TIMEOUT),
                status.is_healthy(now, TIMEOUT),
            )
        };
        status.queue(Family::V6, at(0));
        assert_eq!(is(&status, at(1000)), (true, false));
        status.synced(Family::V4, at(1));
        assert!(status.is_in_sync(Family::V4, at(1), TIMEOUT));
        assert_eq!(is(&status, at(1000)), (true, false));
        status.synced(Family::V6, at(2));
        assert!(status.is_healthy(at(2), TIMEOUT));
        assert_eq!(status.last_updated(), Some(at(2)));
    }

    #[test]
    fn a_change_may_wait_as_long_as_the_timeout() {
        let mut status = synced();
        status.queue(Family::V6, at(20));
        assert!(status.is_live(at(80), TIMEOUT));
        assert!(!status.is_live(Uptime(Duration::from_millis(80_001)), TIMEOUT));
        assert!(status.is_in_sync(Family::V4, at(1000), TIMEOUT));
        status.synced(Family::V6, at(81));
        assert!(status.is_live(at(1000), TIMEOUT));
    }

    #[test]
    fn a_later_change_does_not_hide_an_older_one() {
        let mut status = synced();
        status.queue(Family::V4, at(20));
        status.queue(Family::V4, at(70));
        assert!(!status.is_live(at(81), TIMEOUT));
    }

    #[test]
    fn a_node_on_its_way_out_is_live_but_not_healthy() {
        let status = Status {
            node_eligible: false,
            ..synced()
        };
        assert!(status.is_live(at(11), TIMEOUT));
        assert!(!status.is_healthy(at(11), TIMEOUT));
    }

    /// What happens to a status, in order.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Queue,
        Sync,
    }

    proptest! {
        /// Out of sync exactly when an update has been waiting for longer than the timeout.
        #[test]
        fn out_of_sync_is_a_change_that_waits_too_long(
            steps in prop::collection::vec(
                (
                    prop::sample::select(vec![Step::Queue, Step::Sync]),
                    prop::sample::select(Family::ALL.to_vec()),
                    0..50_u64,
                ),
                0..20,
            ),
            pause in 0..200_u64,
        ) {
            let mut status = synced();
            let mut now = 10;
            let mut waiting: PerFamily<Vec<u64>> = PerFamily::default();
            for (step, family, after) in steps {
                now += after;
                match step {
                    Step::Queue => {
                        status.queue(family, at(now));
                        waiting.get_mut(family).push(now);
                    }
                    Step::Sync => {
                        status.synced(family, at(now));
                        waiting.get_mut(family).clear();
                    }
                }
            }
            now += pause;
            let late = |family| waiting.get(family).iter().any(|since| now - since > TIMEOUT.as_secs());
            for family in Family::ALL {
                prop_assert_eq!(status.is_in_sync(family, at(now), TIMEOUT), !late(family));
            }
            let live = !late(Family::V4) && !late(Family::V6);
            prop_assert_eq!(status.is_live(at(now), TIMEOUT), live);
            prop_assert_eq!(status.is_healthy(at(now), TIMEOUT), live);
        }
    }
}
