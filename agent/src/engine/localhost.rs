//! The NodePorts that are to be relayed at the loopback address, where `--nodeport-addresses` asks for them.
//!
//! Kept up with what each sync planned, so that a change costs what it touches. Pure.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Family, Frontend, PerFamily, Protocol, Scope, Snapshot};
use crate::plan::{Rule, Tables};
use crate::status::{LocalNodePort, LocalNodePorts};

/// The NodePorts at the loopback addresses of the families that have any.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    families: PerFamily<bool>,
    ports: LocalNodePorts,
    is_changed: bool,
}

impl Tracker {
    /// Tracks these families.
    pub(super) fn of(families: PerFamily<bool>) -> Self {
        Self {
            families,
            ..Self::default()
        }
    }

    /// Takes note of what was planned for a family within a scope.
    pub(super) fn update(
        &mut self,
        family: Family,
        snapshot: &Snapshot,
        planned: &Tables,
        scope: &Scope,
    ) {
        if !self.families.get(family) {
            return;
        }
        match scope {
            Scope::All => {
                let relayed = self.ports.relayed.keys();
                let relayed = relayed.map(|(family, port)| Frontend::NodePort {
                    family: *family,
                    protocol: Protocol::Tcp,
                    port: *port,
                });
                let known = relayed.chain(self.ports.unserved.keys().copied());
                let gone: Vec<_> = known
                    .filter(|frontend| frontend.family() == family)
                    .filter(|frontend| !planned.rules.contains_key(frontend))
                    .collect();
                for frontend in gone.iter().chain(planned.rules.keys()) {
                    self.put(snapshot, *frontend, planned.rules.get(frontend));
                }
            }
            Scope::Touched(touched) => {
                for frontend in &touched.frontends {
                    self.put(snapshot, *frontend, planned.rules.get(frontend));
                }
            }
        }
    }

    /// What there is, if it changed since this was last asked.
    pub(super) fn take(&mut self) -> Option<LocalNodePorts> {
        std::mem::take(&mut self.is_changed).then(|| self.ports.clone())
    }

    fn put(&mut self, snapshot: &Snapshot, frontend: Frontend, rule: Option<&Rule>) {
        let Frontend::NodePort {
            family,
            protocol,
            port,
        } = frontend
        else {
            return;
        };
        let owner = snapshot.owner(frontend).map(|(service, _)| &service.name);
        if protocol != Protocol::Tcp {
            self.is_changed |= match owner.filter(|_| rule.is_some()) {
                Some(name) => self.ports.unserved.insert(frontend, name.clone()).is_none(),
                None => self.ports.unserved.remove(&frontend).is_some(),
            };
            return;
        }
        // This node calls, so all endpoints count, whatever `externalTrafficPolicy` says. Without any nobody listens,
        // which refuses clients at once.
        let relayed = match (owner, rule) {
            (Some(name), Some(Rule::Balance(balance))) => Some(LocalNodePort {
                service: name.clone(),
                endpoints: balance
                    .backends
                    .iter()
                    .map(|backend| SocketAddr::new(backend.ip, backend.port.get()))
                    .collect(),
                affinity: balance.affinity.map(|affinity| affinity.timeout),
            }),
            _ => None,
        };
        let key = (family, port);
        let before = self.ports.relayed.get(&key).map(|port| &**port);
        if before == relayed.as_ref() {
            return;
        }
        self.is_changed = true;
        match relayed {
            Some(relayed) => {
                self.ports.relayed.insert(key, Arc::new(relayed));
            }
            None => {
                self.ports.relayed.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Service, TrafficPolicy};
    use crate::plan::tables;
    use crate::testing::{endpoint, plan_config, port, service, slice};

    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

    /// A Service with a NodePort of TCP and one of UDP, and endpoints.
    fn snapshot(endpoints: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut web = Service {
            external_policy: TrafficPolicy::Local,
            ..service("web", &["10.96.0.1"])
        };
        web.ports[0].node_port = Some(port(30_080));
        let mut udp = web.ports[0].clone();
        udp.protocol = Protocol::Udp;
        udp.name = "udp".into();
        web.ports = [web.ports[0].clone(), udp].into();
        snapshot.put_service(web);
        let endpoints: Vec<_> = endpoints.iter().map(|address| endpoint(address)).collect();
        snapshot.put_slice(slice("web-1", "web", &endpoints));
        snapshot
    }

    fn update(tracker: &mut Tracker, snapshot: &Snapshot, scope: &Scope) {
        let planned = tables(snapshot, &plan_config(), Family::V4, scope);
        tracker.update(Family::V4, snapshot, &planned, scope);
    }

    #[test]
    fn tcp_ports_with_endpoints_are_relayed_to_all_of_them() {
        let mut tracker = Tracker::of(BOTH);
        let mut snapshot = snapshot(&["10.1.0.1", "10.1.0.2"]);
        update(&mut tracker, &snapshot, &Scope::All);
        let told = tracker.take().expect("something new");
        let web = &told.relayed[&(Family::V4, port(30_080))];
        let expected = ["10.1.0.1:8080", "10.1.0.2:8080"].map(|text| text.parse().unwrap());
        assert_eq!(web.endpoints, expected);
        assert_eq!(told.relayed.len(), 1);
        assert_eq!(told.unserved.len(), 1, "UDP");

        update(&mut tracker, &snapshot, &Scope::All);
        assert_eq!(tracker.take(), None, "nothing new");

        let _ = snapshot.take_touched(Family::V4);
        snapshot.put_slice(slice("web-1", "web", &[]));
        let scope = Scope::Touched(snapshot.take_touched(Family::V4));
        update(&mut tracker, &snapshot, &scope);
        assert!(tracker.take().unwrap().relayed.is_empty(), "no endpoints");

        update(&mut tracker, &Snapshot::default(), &Scope::All);
        let told = tracker.take().unwrap();
        assert!(told.unserved.is_empty(), "{told:?}");
    }

    #[test]
    fn a_service_that_goes_is_no_longer_relayed() {
        for scope in [None, Some(Scope::All)] {
            let mut tracker = Tracker::of(BOTH);
            let mut snapshot = snapshot(&["10.1.0.1"]);
            update(&mut tracker, &snapshot, &Scope::All);
            assert_eq!(tracker.take().unwrap().relayed.len(), 1);
            let _ = snapshot.take_touched(Family::V4);
            snapshot.remove_service(&crate::testing::name("web"));
            let touched = snapshot.take_touched(Family::V4);
            update(
                &mut tracker,
                &snapshot,
                &scope.unwrap_or(Scope::Touched(touched)),
            );
            assert!(tracker.take().unwrap().relayed.is_empty());
        }
    }

    #[test]
    fn families_that_nobody_asked_for_have_none() {
        let mut tracker = Tracker::of(PerFamily {
            v4: false,
            v6: true,
        });
        update(&mut tracker, &snapshot(&["10.1.0.1"]), &Scope::All);
        assert_eq!(tracker.take(), None);
    }
}
