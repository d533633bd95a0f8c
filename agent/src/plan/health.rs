//! What load balancers are told of Services: how many endpoints of each this node has, and where that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{PlanConfig, members};
use crate::model::{Family, ObjectName, PerFamily, Place, Snapshot};
use crate::status::{HealthChecks, ServiceHealth};

/// The health of every Service that has a port for it, and the node's addresses that have these ports: those with
/// NodePorts, as in kube-proxy (`newServiceHealthServer`). If these are not limited, or none is known, it is all.
pub fn health_checks(snapshot: &Snapshot, config: &PlanConfig) -> HealthChecks {
    let wanted = &config.node_port_addresses;
    let is_limited = wanted.is_limited(snapshot.node().is_some());
    let families = Family::ALL.into_iter().filter(|_| is_limited);
    let addresses = families.flat_map(|family| {
        let addresses = members::node_port_addresses(snapshot, config, family);
        addresses.into_iter().chain(wanted.loopback(family))
    });
    HealthChecks {
        addresses: addresses.collect(),
        services: service_health(snapshot),
    }
}

fn service_health(snapshot: &Snapshot) -> BTreeMap<ObjectName, ServiceHealth> {
    let services = snapshot.health_checked().filter_map(|service| {
        let health = ServiceHealth {
            port: service.health_check_port?,
            local_endpoints: local_endpoints(snapshot, &service.name),
        };
        Some((service.name.clone(), health))
    });
    services.collect()
}

/// How many ready endpoints of a Service this node has, by address. One of both families is one: kube-proxy has a
/// server for each family, here the one with more endpoints counts.
fn local_endpoints(snapshot: &Snapshot, service: &ObjectName) -> usize {
    let slices = snapshot.slices_of(service);
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter());
    let ready = endpoints.filter(|e| e.ready && e.place == Place::Here);
    let mut addresses: PerFamily<BTreeSet<IpAddr>> = PerFamily::default();
    for endpoint in ready {
        let of_family = addresses.get_mut(Family::of(endpoint.address));
        of_family.insert(endpoint.address);
    }
    addresses.v4.len().max(addresses.v6.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Node};
    use crate::plan::NodePortAddresses;
    use crate::testing::{endpoint, ip, name, plan_config, port, service, slice};

    fn here(address: &str) -> Endpoint {
        Endpoint {
            place: Place::Here,
            ..endpoint(address)
        }
    }

    #[test]
    fn ready_endpoints_here_count_once_for_both_families() {
        let mut snapshot = Snapshot::default();
        let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
        web.health_check_port = Some(port(31_000));
        snapshot.put_service(web);
        snapshot.put_service(service("other", &["10.96.0.2"]));
        let starting = Endpoint {
            ready: false,
            ..here("10.1.0.3")
        };
        let slices = [
            slice(
                "web-4",
                "web",
                &[here("10.1.0.1"), endpoint("10.1.0.2"), starting],
            ),
            slice("web-4b", "web", &[here("10.1.0.1"), here("10.1.0.4")]),
            slice("web-6", "web", &[here("fd00:1::1"), here("fd00:1::4")]),
        ];
        let mut check = |slices: &[crate::model::Slice], local_endpoints| {
            snapshot.set_slices(slices.to_vec());
            let expected = ServiceHealth {
                port: port(31_000),
                local_endpoints,
            };
            let expected = BTreeMap::from([(name("web"), expected)]);
            assert_eq!(health_checks(&snapshot, &plan_config()).services, expected);
        };
        check(&slices, 2);
        check(&slices[2..], 2);
        // One address twice, as while a host-network pod is replaced.
        let leaving = Endpoint {
            ready: false,
            terminating: true,
            ..here("10.1.0.1")
        };
        let twice = [here("10.1.0.1"), leaving];
        let of_one = |at: usize| slice(&format!("web-{at}"), "web", &twice[at..=at]);
        check(&[of_one(0), of_one(1)], 1);
        check(&[slice("web", "web", &twice[1..]), of_one(0)], 1);
        check(&[], 0);
    }

    #[test]
    fn health_is_told_where_node_ports_are() {
        let mut snapshot = Snapshot::default();
        snapshot.set_host_addresses(["192.168.0.2", "10.0.0.2", "fd00::2"].map(ip).into());
        let check = |snapshot: &Snapshot, networks: Option<&[&str]>, expected: &[&str]| {
            let mut config = plan_config();
            if let Some(networks) = networks {
                let networks = networks.iter().map(|text| text.parse().unwrap());
                config.node_port_addresses = NodePortAddresses::within(networks.collect());
            }
            let expected = expected.iter().map(|text| ip(text)).collect();
            let found = health_checks(snapshot, &config).addresses;
            assert_eq!(found, expected, "{networks:?}");
        };
        check(&snapshot, None, &[]);
        check(
            &snapshot,
            Some(&["192.168.0.0/16", "fd00::/64"]),
            &["192.168.0.2", "fd00::2"],
        );
        check(&snapshot, Some(&["192.168.0.0/16", "::/0"]), &[]);
        check(&snapshot, Some(&["172.16.0.0/12"]), &[]);
        let mut config = plan_config();
        config.node_port_addresses.primary = false;
        config.node_port_addresses.localhost.v4 = true;
        let found = health_checks(&snapshot, &config).addresses;
        assert_eq!(found, [ip("127.0.0.1")].into());
        snapshot.set_node(Some(Node {
            addresses: ["10.0.0.2", "192.168.0.2", "fd00::2"].map(ip).to_vec(),
            ..Node::default()
        }));
        check(&snapshot, None, &["10.0.0.2", "fd00::2"]);
    }
}
