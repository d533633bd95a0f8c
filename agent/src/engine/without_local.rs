//! Which Service ports have endpoints, but none that a `Local` traffic policy may use: what kube-proxy's
//! `sync_proxy_rules_no_local_endpoints_total` counts.
//!
//! Kept up with what each sync planned, so that a change costs what it touches. Pure.

use std::collections::BTreeMap;

use crate::model::{Frontend, ObjectName, Port, Protocol, Scope, Snapshot};
use crate::plan::{Policy, Rule, Tables};

/// How many ports of Services have endpoints, but none that their traffic policy allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// With `internalTrafficPolicy: Local`.
    pub internal: usize,
    /// With `externalTrafficPolicy: Local`.
    pub external: usize,
}

/// The front ends of one family that have no local endpoints, by what is counted.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    frontends: BTreeMap<Frontend, ServicePort>,
    /// How many front ends each port has: a Service may have several addresses outside.
    ports: BTreeMap<ServicePort, usize>,
    counts: WithoutLocal,
}

/// A port of a Service, as one policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ServicePort {
    service: ObjectName,
    protocol: Protocol,
    port: Port,
    is_external: bool,
}

impl Tracker {
    /// What was counted.
    pub(super) fn counts(&self) -> WithoutLocal {
        self.counts
    }

    /// Takes note of what was planned within a scope.
    pub(super) fn update(&mut self, snapshot: &Snapshot, planned: &Tables, scope: &Scope) {
        match scope {
            Scope::All => {
                *self = Self::default();
                for (frontend, rule) in &planned.rules {
                    self.put(snapshot, *frontend, Some(rule));
                }
            }
            Scope::Touched(touched) => {
                for frontend in &touched.frontends {
                    self.put(snapshot, *frontend, planned.rules.get(frontend));
                }
            }
        }
    }

    fn put(&mut self, snapshot: &Snapshot, frontend: Frontend, rule: Option<&Rule>) {
        if let Some(port) = self.frontends.remove(&frontend) {
            self.release(&port);
        }
        // A rule that drops has endpoints elsewhere; outside, those serve pods of this node and the node itself.
        let is_external = match rule {
            Some(Rule::Drop) => false,
            Some(Rule::Balance(balance))
                if balance.policy == Policy::ExternalLocal && balance.local.is_empty() =>
            {
                true
            }
            _ => return,
        };
        let Some((service, claimed)) = snapshot.owner(frontend) else {
            return;
        };
        let port = ServicePort {
            service: service.name.clone(),
            protocol: claimed.port.protocol,
            port: claimed.port.port,
            is_external,
        };
        let frontends = self.ports.entry(port.clone()).or_default();
        *frontends += 1;
        if *frontends == 1 {
            *self.counts.of(is_external) += 1;
        }
        self.frontends.insert(frontend, port);
    }

    fn release(&mut self, port: &ServicePort) {
        let Some(frontends) = self.ports.get_mut(port) else {
            return;
        };
        *frontends -= 1;
        if *frontends == 0 {
            self.ports.remove(port);
            *self.counts.of(port.is_external) -= 1;
        }
    }
}

impl WithoutLocal {
    fn of(&mut self, is_external: bool) -> &mut usize {
        if is_external {
            &mut self.external
        } else {
            &mut self.internal
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Endpoint, Family, Place, TrafficPolicy};
    use crate::plan;
    use crate::testing::{
        any_service, any_slice, endpoint, ip, name, plan_config, port, service, slice,
    };

    /// What a sync of IPv4 does.
    fn sync(tracker: &mut Tracker, snapshot: &mut Snapshot, all: bool) -> WithoutLocal {
        let touched = snapshot.take_touched(Family::V4);
        let scope = if all {
            Scope::All
        } else {
            Scope::Touched(touched)
        };
        let planned = plan::tables(snapshot, &plan_config(), Family::V4, &scope);
        tracker.update(snapshot, &planned, &scope);
        tracker.counts()
    }

    #[test]
    fn a_service_port_counts_once_while_no_endpoint_is_here() {
        let counts = |internal, external| WithoutLocal { internal, external };
        let mut snapshot = Snapshot::default();
        let mut tracker = Tracker::default();
        let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
        web.internal_policy = TrafficPolicy::Local;
        web.external_policy = TrafficPolicy::Local;
        web.ports[0].node_port = Some(port(30_000));
        web.load_balancer_ips = [ip("192.0.2.1"), ip("192.0.2.2")].into();
        snapshot.put_service(web.clone());
        assert_eq!(
            sync(&mut tracker, &mut snapshot, false),
            counts(0, 0),
            "no endpoints"
        );

        let elsewhere = slice("web-1", "web", &[endpoint("10.1.0.1")]);
        snapshot.put_slice(elsewhere.clone());
        assert_eq!(sync(&mut tracker, &mut snapshot, false), counts(1, 1));

        web.internal_policy = TrafficPolicy::Cluster;
        web.load_balancer_ips = [ip("192.0.2.2")].into();
        snapshot.put_service(web);
        assert_eq!(sync(&mut tracker, &mut snapshot, false), counts(0, 1));

        let here = Endpoint {
            place: Place::Here,
            ..endpoint("10.1.0.2")
        };
        snapshot.put_slice(slice("web-1", "web", &[endpoint("10.1.0.1"), here]));
        assert_eq!(sync(&mut tracker, &mut snapshot, false), counts(0, 0));

        snapshot.put_slice(elsewhere);
        assert_eq!(sync(&mut tracker, &mut snapshot, true), counts(0, 1));
        snapshot.remove_service(&name("web"));
        assert_eq!(sync(&mut tracker, &mut snapshot, false), counts(0, 0));
        assert!(tracker.frontends.is_empty() && tracker.ports.is_empty());
    }

    proptest! {
        /// Change by change gives what counting everything gives.
        #[test]
        fn incremental_equals_full(
            steps in prop::collection::vec((any_service(), any_slice(), 0..4_u8), 1..20),
        ) {
            let mut snapshot = Snapshot::default();
            let mut tracker = Tracker::default();
            for (service, slice, gone) in steps {
                snapshot.put_service(service);
                snapshot.put_slice(slice);
                snapshot.remove_service(&name(&format!("s{gone}")));
                let incremental = sync(&mut tracker, &mut snapshot, false);
                prop_assert_eq!(incremental, sync(&mut Tracker::default(), &mut snapshot, true));
            }
        }
    }
}
