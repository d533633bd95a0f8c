//! Services and EndpointSlices as JSON, for manifests and for API servers alike.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::traffic::Protocol;

/// A port of a Service, and where its endpoints listen.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// The name.
    pub name: &'static str,
    /// The protocol.
    pub protocol: Protocol,
    /// The Service's port.
    pub port: u16,
    /// The endpoints' port.
    pub target: u16,
    /// The port at every node.
    pub node_port: Option<u16>,
}

impl Port {
    /// TCP port 80, behind which endpoints listen at 8080.
    pub const HTTP: Self = Self {
        name: "http",
        protocol: Protocol::Tcp,
        port: 80,
        target: 8080,
        node_port: None,
    };

    /// UDP port 80, behind which endpoints listen at 8080.
    pub const UDP: Self = Self {
        name: "udp",
        protocol: Protocol::Udp,
        ..Self::HTTP
    };

    /// The same port, also at every node.
    #[must_use]
    pub const fn at_nodes(self, node_port: u16) -> Self {
        Self {
            node_port: Some(node_port),
            ..self
        }
    }
}

/// A Service in the namespace `default`, with these ClusterIPs; a NodePort Service if a port has one.
pub fn service(name: &str, cluster_ips: &[IpAddr], ports: &[Port]) -> Value {
    let has_node_port = ports.iter().any(|port| port.node_port.is_some());
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            let mut value = json!({
                "name": port.name, "protocol": port.protocol.to_string(), "port": port.port,
                "targetPort": port.target,
            });
            if let Some(node_port) = port.node_port {
                value["nodePort"] = json!(node_port);
            }
            value
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": if has_node_port { "NodePort" } else { "ClusterIP" },
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "ports": ports,
        },
    })
}

/// An EndpointSlice of a Service, with ready endpoints: addresses of one family and their nodes' names.
///
/// # Panics
/// Without an endpoint, whose family the slice takes; see [`empty_slice`].
pub fn slice(service: &str, ports: &[Port], endpoints: &[(IpAddr, &str)]) -> Value {
    let family = if endpoints[0].0.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node)| json!({ "addresses": [address], "nodeName": node, "conditions": { "ready": true } }))
        .collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({ "name": port.name, "protocol": port.protocol.to_string(), "port": port.target }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", family.to_lowercase()),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// The IPv4 slice of a Service without endpoints.
pub fn empty_slice(service: &str) -> Value {
    let mut value = slice(service, &[Port::HTTP], &[(IpAddr::from([0, 0, 0, 0]), "")]);
    value["endpoints"] = json!([]);
    value
}

/// Objects as one manifest.
pub fn list(objects: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}
