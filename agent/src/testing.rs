//! Builders for tests: short names for Services and slices, and random events.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use crate::event::Event;
use crate::model::{
    Endpoint, Node, ObjectName, Parsed, Place, Port, Protocol, Service, ServicePort, ServiceType,
    Slice, SlicePort,
};
use crate::plan::Backend;

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
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(80),
            node_port: None,
        }],
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
    }
}

pub(crate) fn good<T: Clone>(object: &T, name: &ObjectName) -> Parsed<T> {
    Parsed {
        name: name.clone(),
        object: Some(object.clone()),
        complaints: Vec::new(),
    }
}

/// The facts of a node with one address, after which an engine waits for nothing but the two lists.
pub(crate) fn node_facts() -> [Event; 2] {
    [
        Event::NodeChanged(None),
        Event::HostAddressesChanged(BTreeSet::from([ip("192.168.0.2"), ip("fd00::2")])),
    ]
}

prop_compose! {
    /// A Service of a small world, so that addresses, ports and names collide.
    pub(crate) fn any_service()(
        number in 0..4_u8,
        created in 0..3_i64,
        v4 in 1..4_u8,
        v6 in prop::option::of(1..4_u8),
        ports in prop::sample::subsequence(vec!["http", "dns"], 1..=2),
        node_port in prop::option::of(30000..30003_u16),
    ) -> Service {
        let mut service = service(&format!("s{number}"), &[&format!("10.96.0.{v4}")]);
        service.created = created;
        service.cluster_ips.extend(v6.map(|v6| ip(&format!("fd00:96::{v6}"))));
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
    fn any_endpoint()(
        v6 in any::<bool>(),
        host in 1..6_u8,
        place in prop::sample::select(vec![Place::Here, Place::Elsewhere, Place::Unknown]),
        ready in prop::bool::weighted(0.7),
        serving in any::<bool>(),
        terminating in any::<bool>(),
    ) -> Endpoint {
        let address = if v6 { format!("fd00:1::{host}") } else { format!("10.1.0.{host}") };
        Endpoint { place, ready, serving, terminating, ..endpoint(&address) }
    }
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
                node: None,
                whole: true,
            }),
        1 => (2..5_u8).prop_map(|n| {
            Event::HostAddressesChanged(BTreeSet::from([ip(&format!("192.168.0.{n}")), ip("fd00::2")]))
        }),
        1 => prop::option::of(2..5_u8).prop_map(|n| Event::NodeChanged(n.map(|n| Node {
            name: "node-1".to_owned(),
            addresses: vec![ip(&format!("192.168.0.{n}"))],
        }))),
    ]
}
