//! Bad and extreme input, with the real agent: everything that an API server would accept is served, or refused with
//! a reason in the log, and costs nothing else.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

mod claims;
mod sizes;
mod values;

use std::net::SocketAddr;

use serde_json::{Value, json};

/// An IPv4 Service `default/NAME`: its specification, and in `status` its load balancer's addresses.
fn service(name: &str, created: u16, spec: Value, ingress: &[&str]) -> Value {
    let ingress: Vec<Value> = ingress.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "default", "creationTimestamp": format!("{created}-01-01T00:00:00Z"),
        },
        "spec": spec,
        "status": { "loadBalancer": { "ingress": ingress } },
    })
}

/// An IPv4 slice of a Service. Its endpoints are on no node.
fn slice(name: &str, service: &str, ports: Value, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address] }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service },
        },
        "ports": ports, "endpoints": endpoints,
    })
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}
