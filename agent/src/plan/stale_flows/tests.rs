//! Which flows are stale, and which front ends and back ends a snapshot comes to.

use proptest::prelude::*;

use super::*;
use crate::model::{Endpoint, Scope, Service, ServicePort, Slice, SlicePort};
use crate::plan::{Member, Rule, tables};
use crate::testing::{
    any_service, any_slice, backend as to_backend, endpoint, ip, name, plan_config, port, service,
    slice,
};

fn flow(destination: &str, reply_source: &str) -> Flow {
    Flow {
        protocol: Protocol::Udp,
        destination: destination.parse().unwrap(),
        reply_source: reply_source.parse().unwrap(),
        answered: false,
    }
}

fn frontend(text: &str) -> Frontend {
    let socket: SocketAddr = text.parse().unwrap();
    Frontend::Address {
        ip: socket.ip(),
        protocol: Protocol::Udp,
        port: port(socket.port()),
    }
}

fn node_port(family: Family, number: u16) -> Frontend {
    Frontend::NodePort {
        family,
        protocol: Protocol::Udp,
        port: port(number),
    }
}

fn flows(frontends: &[(Frontend, &[&str])]) -> Flows {
    let kept = |backends: &[&str]| backends.iter().map(|text| to_backend(text)).collect();
    Flows {
        frontends: frontends
            .iter()
            .map(|(frontend, backends)| (*frontend, kept(backends)))
            .collect(),
        opened: BTreeSet::new(),
        node_port_addresses: ["192.168.0.2", "fd00::2"].map(ip).into(),
    }
}

/// A Service `dns` with UDP port 53 at these addresses and NodePort 30053.
fn dns(cluster_ips: &[&str]) -> Service {
    Service {
        ports: [ServicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: port(53),
            node_port: Some(port(30053)),
        }]
        .into(),
        ..service("dns", cluster_ips)
    }
}

/// A slice of it whose endpoints listen at UDP port 5353.
fn dns_slice(slice_name: &str, endpoints: &[Endpoint]) -> Slice {
    Slice {
        ports: [SlicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: port(5353),
        }]
        .into(),
        ..slice(slice_name, "dns", endpoints)
    }
}

/// A snapshot of a node with one address of each family.
fn snapshot(services: &[Service], slices: &[Slice]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    services
        .iter()
        .for_each(|service| snapshot.put_service(service.clone()));
    slices
        .iter()
        .for_each(|slice| snapshot.put_slice(slice.clone()));
    snapshot.set_host_addresses(["192.168.0.2", "fd00::2"].map(ip).into());
    snapshot
}

/// The flows of every front end of a family.
fn all_flows(snapshot: &Snapshot, family: Family) -> Flows {
    let udp = Protocol::Udp;
    super::flows(
        snapshot,
        &plan_config(),
        family,
        udp,
        snapshot.frontends(family),
    )
}

/// The UDP flows of some front ends of IPv4.
fn udp_flows(snapshot: &Snapshot, frontends: &[Frontend]) -> Flows {
    let frontends = frontends.iter().copied();
    super::flows(
        snapshot,
        &plan_config(),
        Family::V4,
        Protocol::Udp,
        frontends,
    )
}

#[test]
fn a_flow_is_stale_that_no_back_end_of_its_front_end_answers() {
    let jobs = flows(&[
        (
            frontend("10.96.0.10:53"),
            &["10.1.0.1:5353", "10.1.0.2:5353"],
        ),
        (frontend("10.96.0.11:53"), &[]),
        (frontend("[fd00:96::10]:53"), &["[fd00:1::1]:5353"]),
        (node_port(Family::V4, 30053), &["10.1.0.1:5353"]),
    ]);
    let check = |destination, reply_source, expected| {
        let flow = flow(destination, reply_source);
        assert_eq!(jobs.is_stale(&flow), expected, "{flow:?}");
    };
    check("10.96.0.10:53", "10.1.0.1:5353", false);
    check("10.96.0.10:53", "10.1.0.2:5353", false);
    check("10.96.0.10:53", "10.1.0.3:5353", true);
    check("10.96.0.10:53", "10.1.0.1:5354", true);
    check("10.96.0.10:53", "10.96.0.10:53", true);
    check("10.96.0.10:54", "10.1.0.3:5353", false);
    check("10.96.0.11:53", "10.1.0.1:5353", true);
    check("10.96.0.12:53", "10.1.0.1:5353", false);
    check("[fd00:96::10]:53", "[fd00:1::1]:5353", false);
    check("[fd00:96::10]:53", "[fd00:1::2]:5353", true);
    check("192.168.0.2:30053", "10.1.0.1:5353", false);
    check("192.168.0.2:30053", "10.1.0.2:5353", true);
    check("192.168.0.3:30053", "10.1.0.2:5353", false);
    check("[fd00::2]:30053", "[fd00:1::2]:5353", false);
    check("10.96.0.10:0", "10.1.0.3:5353", false);
}

#[test]
fn a_node_port_does_not_have_what_an_address_has() {
    let jobs = flows(&[
        (frontend("192.168.0.2:30053"), &["10.1.0.9:53"]),
        (node_port(Family::V4, 30053), &["10.1.0.1:53"]),
    ]);
    assert!(!jobs.is_stale(&flow("192.168.0.2:30053", "10.1.0.9:53")));
    assert!(jobs.is_stale(&flow("192.168.0.2:30053", "10.1.0.1:53")));
}

#[test]
fn a_newer_job_knows_better_about_its_front_ends() {
    let (first, second) = (frontend("10.96.0.10:53"), frontend("10.96.0.11:53"));
    let mut jobs = flows(&[(first, &["10.1.0.1:53"]), (second, &["10.1.0.2:53"])]);
    jobs.merge(Flows {
        node_port_addresses: [ip("192.168.0.9")].into(),
        ..flows(&[(first, &["10.1.0.3:53"])])
    });
    let mut expected = flows(&[(first, &["10.1.0.3:53"]), (second, &["10.1.0.2:53"])]);
    expected.node_port_addresses.insert(ip("192.168.0.9"));
    assert_eq!(jobs, expected);
}

#[test]
fn endpoints_that_are_ready_or_serve_keep_their_flows() {
    let state = |address: &str, ready, serving, terminating| Endpoint {
        ready,
        serving,
        terminating,
        ..endpoint(address)
    };
    let endpoints = [
        state("10.1.0.1", true, true, false),
        state("10.1.0.2", false, true, true),
        state("10.1.0.3", false, false, true),
        state("10.1.0.4", false, false, false),
        state("10.1.0.5", true, false, false),
        state("fd00:1::1", true, true, false),
    ];
    let snapshot = snapshot(
        &[dns(&["10.96.0.10", "fd00:96::10"])],
        &[dns_slice("dns-1", &endpoints)],
    );
    let kept = ["10.1.0.1:5353", "10.1.0.2:5353", "10.1.0.5:5353"];
    let expected = [
        (frontend("10.96.0.10:53"), &kept[..]),
        (node_port(Family::V4, 30053), &kept),
    ];
    let jobs = all_flows(&snapshot, Family::V4);
    assert_eq!(jobs.frontends, flows(&expected).frontends);
    assert_eq!(jobs.node_port_addresses, [ip("192.168.0.2")].into());
    let jobs = all_flows(&snapshot, Family::V6);
    assert_eq!(
        jobs.frontends[&frontend("[fd00:96::10]:53")],
        [to_backend("[fd00:1::1]:5353")].into()
    );
    assert_eq!(jobs.node_port_addresses, [ip("fd00::2")].into());
}

#[test]
fn an_address_that_also_has_an_entry_that_does_not_serve_keeps_its_flows() {
    let entry = |ready, serving, terminating| Endpoint {
        ready,
        serving,
        terminating,
        ..endpoint("10.1.0.1")
    };
    let starting = entry(false, false, false);
    for serving in [entry(true, true, false), entry(false, true, true)] {
        for endpoints in [[&serving, &starting], [&starting, &serving]] {
            let slices = [
                dns_slice("dns-1", &[endpoints[0].clone()]),
                dns_slice("dns-2", &[endpoints[1].clone()]),
            ];
            let snapshot = snapshot(&[dns(&["10.96.0.10"])], &slices);
            let flows = udp_flows(&snapshot, &[frontend("10.96.0.10:53")]);
            let is_stale = |by| flows.is_stale(&flow("10.96.0.10:53", by));
            assert!(!is_stale("10.1.0.1:5353"), "{endpoints:?}");
            assert!(is_stale("10.1.0.2:5353"), "{endpoints:?}");
        }
    }
}

#[test]
fn a_tcp_connection_goes_on_while_its_endpoint_is_in_a_slice() {
    let finishing = Endpoint {
        ready: false,
        serving: false,
        terminating: true,
        ..endpoint("10.1.0.2")
    };
    let endpoints = [endpoint("10.1.0.1"), finishing];
    let mut snapshot = snapshot(
        &[service("web", &["10.96.0.1"])],
        &[slice("web-1", "web", &endpoints)],
    );
    let is_stale = |snapshot: &Snapshot, to| {
        let all = snapshot.frontends(Family::V4);
        let flows = super::flows(snapshot, &plan_config(), Family::V4, Protocol::Tcp, all);
        let flow = flow("10.96.0.1:80", to);
        let tcp = Protocol::Tcp;
        assert!(!flows.is_stale(&flow), "of another protocol");
        flows.is_stale(&Flow {
            protocol: tcp,
            ..flow
        })
    };
    assert!(!is_stale(&snapshot, "10.1.0.1:8080"));
    assert!(!is_stale(&snapshot, "10.1.0.2:8080"));
    assert!(is_stale(&snapshot, "10.1.0.3:8080"));
    snapshot.put_slice(slice("web-1", "web", &endpoints[..1]));
    assert!(is_stale(&snapshot, "10.1.0.2:8080"));
}

#[test]
fn a_front_end_that_is_gone_or_has_no_endpoints_keeps_no_flow() {
    let gone = frontend("10.96.0.10:53");
    let tcp = Frontend::Address {
        ip: ip("10.96.0.10"),
        protocol: Protocol::Tcp,
        port: port(80),
    };
    let mut snapshot = snapshot(
        &[dns(&["10.96.0.10"])],
        &[dns_slice("dns-1", &[endpoint("10.1.0.1")])],
    );
    let flow = flow("10.96.0.10:53", "10.1.0.1:5353");
    let jobs = |snapshot: &Snapshot| udp_flows(snapshot, &[tcp, gone, tcp]);
    assert!(!jobs(&snapshot).is_stale(&flow));
    snapshot.put_slice(dns_slice("dns-1", &[]));
    assert!(jobs(&snapshot).is_stale(&flow));
    snapshot.remove_service(&name("dns"));
    assert!(jobs(&snapshot).is_stale(&flow));
    assert_eq!(jobs(&snapshot).frontends, flows(&[(gone, &[])]).frontends);
    assert!(udp_flows(&snapshot, &[tcp]).is_empty());
}

#[test]
fn a_services_address_on_the_node_is_no_node_port() {
    // No Service gets a ClusterIP that the node has; load-balancer and external addresses may be.
    let other = Service {
        ports: [ServicePort {
            port: port(30053),
            node_port: None,
            ..dns(&[]).ports[0].clone()
        }]
        .into(),
        ..service("other", &["192.168.0.2"])
    };
    let of_other = Slice {
        service: name("other"),
        ..dns_slice("other-1", &[endpoint("10.1.0.9")])
    };
    let of_dns = dns_slice("dns-1", &[endpoint("10.1.0.1")]);
    let snapshot = snapshot(&[dns(&["10.96.0.10"]), other], &[of_dns, of_other]);
    let changed = [node_port(Family::V4, 30053)];
    let jobs = udp_flows(&snapshot, &changed);
    assert!(!jobs.is_stale(&flow("192.168.0.2:30053", "10.1.0.9:5353")));
    assert!(jobs.is_stale(&flow("192.168.0.2:30053", "10.1.0.1:5353")));
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let services = prop::collection::vec(any_service(), 0..5);
    let slices = prop::collection::vec(any_slice(), 0..6);
    (services, slices).prop_map(|(services, slices)| snapshot(&services, &slices))
}

#[test]
fn a_connection_that_began_before_its_front_end_is_stale_while_nobody_has_answered() {
    let tcp = Protocol::Tcp;
    let at = |text: &str| {
        let socket: SocketAddr = text.parse().unwrap();
        Frontend::Address {
            ip: socket.ip(),
            protocol: tcp,
            port: port(socket.port()),
        }
    };
    let node_port = Frontend::NodePort {
        family: Family::V4,
        protocol: tcp,
        port: port(30080),
    };
    let udp = frontend("203.0.113.80:80");
    let changed = [
        at("203.0.113.80:80"),
        at("[2001:db8::80]:80"),
        node_port,
        udp,
    ];
    let jobs = opened(&snapshot(&[], &[]), &plan_config(), Family::V4, changed);
    assert!(
        !jobs.opened.contains(&udp),
        "all flows of UDP are judged by who answers"
    );
    let check = |destination, reply_source, answered, expected| {
        let flow = Flow {
            protocol: tcp,
            answered,
            ..flow(destination, reply_source)
        };
        assert_eq!(jobs.is_stale(&flow), expected, "{flow:?}");
    };
    for to in ["203.0.113.80:80", "[2001:db8::80]:80", "192.168.0.2:30080"] {
        check(to, to, false, true);
        // Open, to whoever had the address before.
        check(to, to, true, false);
    }
    // Translated: it waits for an endpoint.
    check("203.0.113.80:80", "10.1.0.1:8080", false, false);
    check("203.0.113.80:81", "203.0.113.80:81", false, false);
    check("192.168.0.3:30080", "192.168.0.3:30080", false, false);
}

proptest! {
    /// What new flows would be sent to keeps its old ones.
    #[test]
    fn no_flow_that_the_rules_would_make_is_stale(snapshot in any_snapshot()) {
        for family in Family::ALL {
            let jobs = all_flows(&snapshot, family);
            let planned = tables(&snapshot, &plan_config(), family, &Scope::All);
            for (frontend, rule) in &planned.rules {
                let destinations: Vec<_> = match *frontend {
                    Frontend::Address { ip, protocol: Protocol::Udp, port } => vec![(ip, port)],
                    Frontend::NodePort { protocol: Protocol::Udp, port, .. } => {
                        let members = planned.members.iter();
                        members.filter_map(|member| match member {
                            Member::NodePortAddress(ip) => Some((*ip, port)),
                            _ => None,
                        }).collect()
                    }
                    _ => continue,
                };
                let backends = match rule {
                    Rule::Balance(balance) => [&balance.backends[..], &balance.local].concat(),
                    Rule::Drop | Rule::Reject => Vec::new(),
                };
                for (ip, port) in destinations {
                    let to = |reply_source| Flow {
                        answered: true,
                        protocol: Protocol::Udp,
                        destination: SocketAddr::new(ip, port.get()),
                        reply_source,
                    };
                    for kept in &backends {
                        let kept = SocketAddr::new(kept.ip, kept.port.get());
                        prop_assert!(!jobs.is_stale(&to(kept)), "{frontend} {kept}");
                    }
                    let stranger = SocketAddr::new(ip, 1);
                    prop_assert!(jobs.is_stale(&to(stranger)), "{frontend}");
                }
            }
        }
    }
}
