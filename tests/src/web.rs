//! A Service `web` in both families, TCP and UDP, with a ClusterIP and a NodePort: what tests of programs call.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::cluster::{Host, Pod};
use crate::objects::{self, Port};
use crate::traffic::Protocol;

/// Its NodePort.
pub const NODE_PORT: u16 = 30080;

/// Its ports.
pub const PORTS: [Port; 2] = [
    Port::HTTP.at_nodes(NODE_PORT),
    Port::UDP.at_nodes(NODE_PORT),
];

/// Their protocols.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Its ClusterIPs, IPv4 and IPv6.
pub fn cluster_ips() -> [IpAddr; 2] {
    ["10.96.0.80", "fd00:10:96::80"].map(|ip| ip.parse().expect("an IP address"))
}

/// Where it is called, by its ClusterIPs and at a node.
pub fn called_at(node: &Host) -> Vec<SocketAddr> {
    let called = cluster_ips().map(|ip| {
        [
            SocketAddr::new(ip, 80),
            SocketAddr::new(node.own(ip), NODE_PORT),
        ]
    });
    called.concat()
}

/// The Service, with these fields in its `spec`, and its slices: pods and their nodes' names.
///
/// # Panics
/// If `spec` is no object, or without a pod.
pub fn web(pods: &[(&Pod, &str)], spec: &Value) -> Vec<Value> {
    let mut service = objects::service("web", &cluster_ips(), &PORTS);
    for (field, value) in spec.as_object().expect("fields of a spec") {
        service["spec"][field] = value.clone();
    }
    let slices = cluster_ips().map(|ip| {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|(pod, node)| (pod.host.own(ip), *node))
            .collect();
        objects::slice("web", &PORTS, &endpoints)
    });
    [service].into_iter().chain(slices).collect()
}
