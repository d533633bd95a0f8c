//! Builders for tests: short names for Services and slices, and random events.

pub(crate) mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use crate::event::Event;
use crate::model::{
    AffinityTimeout, Endpoint, Hints, Node, ObjectName, Parsed, Place, Port, Protocol, Service,
    ServiceCidr, ServicePort, ServiceType, Slice, SlicePort, TrafficPolicy,
};
use crate::plan::{Backend, NodePortAddresses, PlanConfig, PodNetworks};

pub(crate) fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

pub(crate) fn backend(text: &str) -> Backend {
    let address: std::net::SocketAddr = text.parse().unwrap();
    Backend {
        ip: address.ip(),
        port: port(address.port()),
    }
}

/// A Service with these ClusterIPs and one TCP port 80 named `http`.
pub(crate) fn service(service: &str, cluster_ips: &[&str]) -> Service {
    Service {
        name: name(service),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        load_balancer_ips: [].into(),
        external_ips: [].into(),
        ports: [ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(80),
            node_port: None,
        }]
        .into(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        source_ranges: None,
        health_check_port: None,
    }
}

/// A slice of a Service whose endpoints listen at TCP port 8080, named `http`.
pub(crate) fn slice(slice: &str, service: &str, endpoints: &[Endpoint]) -> Slice {
    Slice {
        name: name(slice),
        service: name(service),
        ports: [SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(8080),
        }]
        .into(),
        endpoints: endpoints.into(),
    }
}

/// A ready endpoint on another node.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        place: Place::Elsewhere,
        ready: true,
        serving: true,
        terminating: false,
        hints: None,
    }
}

pub(crate) fn good<T: Clone>(object: &T, name: &ObjectName) -> Parsed<T> {
    Parsed {
        name: name.clone(),
        object: Some(object.clone()),
        complaints: Vec::new(),
        trigger: None,
    }
}

/// Settings without any flags.
pub(crate) fn plan_config() -> PlanConfig {
    PlanConfig {
        node_port_addresses: NodePortAddresses::primary(),
        pod_networks: PodNetworks::Fixed(Vec::new()),
        masquerade_all: false,
        external_ips: true,
    }
}

/// The facts of a node with one address, after which an engine waits for nothing but the two lists.
pub(crate) fn node_facts() -> [Event; 3] {
    [
        Event::NodeChanged(None),
        Event::ServiceCidrsListed(Vec::new()),
        Event::HostAddressesChanged(BTreeSet::from([ip("192.168.0.2"), ip("fd00::2")])),
    ]
}

prop_compose! {
    fn any_addresses()(
        v4 in 1..4_u8,
        v6 in prop::option::of(1..4_u8),
        load_balancer in prop::option::weighted(0.4, 1..5_u8),
        external in prop::option::weighted(0.3, 3..7_u8),
    ) -> [Vec<IpAddr>; 3] {
        let outer = |host: Option<u8>| -> Vec<IpAddr> {
            // From 10.96.0.3 up, so that they may be another Service's ClusterIP.
            host.iter().map(|h| ip(&format!("10.96.0.{}", h + 2))).collect()
        };
        let mut cluster_ips = vec![ip(&format!("10.96.0.{v4}"))];
        cluster_ips.extend(v6.map(|v6| ip(&format!("fd00:96::{v6}"))));
        let keep = |list: Vec<IpAddr>, others: &[IpAddr]| -> Vec<IpAddr> {
            list.into_iter().filter(|ip| !others.contains(ip)).collect()
        };
        let load_balancer = keep(outer(load_balancer), &cluster_ips);
        let known = [cluster_ips.clone(), load_balancer.clone()].concat();
        [cluster_ips, load_balancer, keep(outer(external), &known)]
    }
}

fn any_policy() -> impl Strategy<Value = TrafficPolicy> {
    prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

prop_compose! {
    /// A Service of a small world, so that addresses, ports and names collide.
    pub(crate) fn any_service()(
        number in 0..4_u8,
        created in 0..3_i64,
        [cluster_ips, load_balancer_ips, external_ips] in any_addresses(),
        ports in prop::sample::subsequence(vec!["http", "dns"], 1..=2),
        node_port in prop::option::of(30000..30003_u16),
        internal_policy in any_policy(),
        external_policy in any_policy(),
        affinity in prop::option::weighted(0.3, 1..4_u32),
        ranges in prop::option::weighted(0.3, prop::sample::subsequence(
            vec!["10.0.0.0/8", "192.168.0.0/24", "fd00::/16", "0.0.0.0/0"], 0..=3,
        )),
        health_check_port in prop::option::weighted(0.2, 31000..31002_u16),
    ) -> Service {
        let mut service = service(&format!("s{number}"), &[]);
        service.created = created;
        service.cluster_ips = cluster_ips.into();
        service.load_balancer_ips = load_balancer_ips.into();
        service.external_ips = external_ips.into();
        service.internal_policy = internal_policy;
        service.external_policy = external_policy;
        service.affinity = affinity.and_then(AffinityTimeout::new);
        service.source_ranges = ranges
            .map(|ranges| ranges.iter().map(|range| range.parse().unwrap()).collect());
        service.health_check_port = health_check_port.map(port);
        service.ports = ports
            .into_iter()
            .map(|name| ServicePort {
                name: name.into(),
                protocol: if name == "dns" { Protocol::Udp } else { Protocol::Tcp },
                port: port(if name == "dns" { 53 } else { 80 }),
                node_port: node_port.map(port),
            })
            .collect();
        service
    }
}

prop_compose! {
    fn any_hints()(
        this_node in prop::option::of(any::<bool>()),
        zones in prop::sample::subsequence(vec!["a", "b"], 0..=2),
    ) -> Hints {
        Hints { this_node, zones: zones.into_iter().map(Into::into).collect() }
    }
}

prop_compose! {
    fn any_endpoint()(
        v6 in any::<bool>(),
        host in 1..6_u8,
        place in prop::sample::select(vec![Place::Here, Place::Elsewhere, Place::Unknown]),
        ready in prop::bool::weighted(0.7),
        serving in any::<bool>(),
        terminating in any::<bool>(),
        hints in prop::option::weighted(0.7, any_hints()),
    ) -> Endpoint {
        let address = if v6 { format!("fd00:1::{host}") } else { format!("10.1.0.{host}") };
        let hints = hints.map(Box::new);
        Endpoint { place, ready, serving, terminating, hints, ..endpoint(&address) }
    }
}

prop_compose! {
    fn any_node()(
        host in 2..5_u8,
        zone in prop::option::of(prop::sample::select(vec!["a", "b"])),
        leaving in any::<bool>(),
    ) -> Node {
        Node {
            name: "node-1".to_owned(),
            addresses: vec![ip(&format!("192.168.0.{host}"))],
            pod_networks: vec![format!("10.{host}.0.0/16").parse().unwrap()],
            zone: zone.map(Into::into),
            leaving,
        }
    }
}

/// A ServiceCIDR of the same small world.
pub(crate) fn any_service_cidr() -> impl Strategy<Value = ServiceCidr> {
    let networks =
        prop::sample::subsequence(vec!["10.96.0.0/16", "10.0.0.0/8", "fd00:96::/112"], 0..=2);
    (0..3_u8, networks).prop_map(|(number, networks)| ServiceCidr {
        name: name(&format!("c{number}")),
        networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
    })
}

prop_compose! {
    /// A slice of the same small world.
    pub(crate) fn any_slice()(
        number in 0..5_u8,
        of in 0..4_u8,
        endpoints in prop::collection::vec(any_endpoint(), 0..5),
        dns in any::<bool>(),
    ) -> Slice {
        let mut slice = slice(&format!("e{number}"), &format!("s{of}"), &endpoints);
        if dns {
            let dns = SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: port(5353) };
            slice.ports = slice.ports.iter().cloned().chain([dns]).collect();
        }
        slice
    }
}

/// Anything that can happen in the small world.
pub(crate) fn any_event() -> impl Strategy<Value = Event> {
    let services = prop::collection::vec(any_service(), 0..5);
    let slices = prop::collection::vec(any_slice(), 0..6);
    prop_oneof![
        4 => any_service().prop_map(|s| Event::ServiceApplied(good(&s, &s.name))),
        6 => any_slice().prop_map(|s| Event::SliceApplied(good(&s, &s.name))),
        2 => (0..4_u8).prop_map(|n| Event::ServiceDeleted(name(&format!("s{n}")))),
        2 => (0..5_u8).prop_map(|n| Event::SliceDeleted(name(&format!("e{n}")))),
        1 => (0..4_u8).prop_map(|n| Event::ServiceApplied(Parsed::ignored(name(&format!("s{n}"))))),
        1 => services.prop_map(|list| {
            Event::ServicesListed(list.iter().map(|s| good(s, &s.name)).collect())
        }),
        1 => slices.prop_map(|list| {
            Event::SlicesListed(list.iter().map(|s| good(s, &s.name)).collect())
        }),
        1 => (prop::collection::vec(any_service(), 0..5), prop::collection::vec(any_slice(), 0..6))
            .prop_map(|(services, slices)| Event::AllListed {
                services: services.iter().map(|s| good(s, &s.name)).collect(),
                slices: slices.iter().map(|s| good(s, &s.name)).collect(),
                service_cidrs: Vec::new(),
                node: None,
                whole: true,
                refused: 0,
            }),
        1 => (2..5_u8).prop_map(|n| {
            Event::HostAddressesChanged(BTreeSet::from([ip(&format!("192.168.0.{n}")), ip("fd00::2")]))
        }),
        1 => prop::option::of(any_node()).prop_map(Event::NodeChanged),
        1 => any_service_cidr().prop_map(|c| Event::ServiceCidrApplied(good(&c, &c.name))),
        1 => (0..3_u8).prop_map(|n| Event::ServiceCidrDeleted(name(&format!("c{n}")))),
        1 => prop::collection::vec(any_service_cidr(), 0..3).prop_map(|list| {
            Event::ServiceCidrsListed(list.iter().map(|c| good(c, &c.name)).collect())
        }),
    ]
}
