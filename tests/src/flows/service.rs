//! Services of a packet-flow table: each with an address of every kind, in both families, for TCP, UDP and SCTP.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::cast::Cast;
use crate::traffic::Protocol;

/// The port of every Service, and that of the endpoints behind it.
pub const PORT: u16 = 80;
const TARGET: u16 = super::cast::PORT;

/// A Service of a scene, and its endpoints.
#[derive(Debug, Clone)]
pub struct Svc {
    /// Its name, the head of its column.
    pub name: String,
    /// Fields of its `spec` that are not as in every other Service.
    pub spec: Value,
    /// Fields of its `metadata` that are not.
    pub metadata: Value,
    /// Its `status`, if it is not the load balancer's address.
    pub status: Option<Value>,
    /// Names of the cast, each with its state in brackets: `here there(terminating) here2(zone=a,node=node-1)`. States are
    /// `unready`, `terminating` (it still serves), `gone` (it does not); and, where `publishNotReadyAddresses` has the slices say
    /// `ready` all the same, `published` (it does not serve), `published-terminating`, `published-gone`. A `|` begins another
    /// slice. `TCP:9090 UDP:9091 here` is a slice with other ports; a protocol that is not named keeps the usual one.
    pub endpoints: String,
}

/// The addresses of a Service in one family.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Its ClusterIP.
    pub cluster: IpAddr,
    /// The address that the load balancer sends here.
    pub load_balancer: IpAddr,
    /// Its address in `externalIPs`.
    pub external: IpAddr,
    /// Its port at the node.
    pub node_port: u16,
}

impl Svc {
    /// A Service with these fields in its `spec`, and these endpoints.
    pub fn new(name: &str, spec: Value, endpoints: &str) -> Self {
        Self {
            name: name.to_owned(),
            spec,
            metadata: json!({}),
            status: None,
            endpoints: endpoints.to_owned(),
        }
    }

    /// The Service and its slices, as number `number` of a scene.
    pub fn objects(&self, number: u8, cast: &Cast) -> Vec<Value> {
        let of = |family| addresses(number, family);
        let both = |pick: fn(Addresses) -> IpAddr| [pick(of(0)), pick(of(1))];
        let node_port = of(0).node_port;
        let ports = Protocol::ALL.map(|protocol| port(protocol, PORT, node_port));
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name, "namespace": "default",
                // The first is the oldest.
                "creationTimestamp": format!("2026-01-01T00:{:02}:{:02}Z", number / 60, number % 60),
            },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": of(0).cluster,
                "clusterIPs": both(|addresses| addresses.cluster),
                "externalIPs": both(|addresses| addresses.external),
                "ports": ports,
            },
        });
        let ingress = both(|addresses| addresses.load_balancer).map(|ip| json!({ "ip": ip }));
        let status = json!({ "loadBalancer": { "ingress": ingress } });
        service["status"] = self.status.clone().unwrap_or(status);
        for (part, changes) in [("spec", &self.spec), ("metadata", &self.metadata)] {
            let changes = changes.as_object().cloned().unwrap_or_default();
            let fields = service[part].as_object_mut().expect("it was made above");
            fields.extend(changes);
        }
        let slices = self.endpoints.split('|').enumerate();
        let slices = slices.flat_map(|(i, endpoints)| [(i, endpoints, 0), (i, endpoints, 1)]);
        let slices = slices.map(|(i, endpoints, family)| self.slice(i, endpoints, family, cast));
        [service].into_iter().chain(slices).collect()
    }

    fn slice(&self, index: usize, endpoints: &str, family: usize, cast: &Cast) -> Value {
        let family_name = ["IPv4", "IPv6"][family];
        let (ports, endpoints): (Vec<&str>, Vec<&str>) =
            endpoints.split_whitespace().partition(|text| is_port(text));
        let endpoints = endpoints.into_iter();
        let endpoints: Vec<Value> = endpoints.map(|text| endpoint(text, family, cast)).collect();
        let ports = Protocol::ALL.map(|protocol| {
            let of_protocol =
                |text: &&str| text.strip_prefix(&format!("{protocol}:"))?.parse().ok();
            let target: u16 = ports.iter().find_map(of_protocol).unwrap_or(TARGET);
            json!({ "name": port_name(protocol), "protocol": protocol.to_string(), "port": target })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{index}-{}", self.name, family_name.to_lowercase()), "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": family_name,
            "ports": ports,
            "endpoints": endpoints,
        })
    }

    /// The names of all endpoints, and of those on the node under test.
    pub fn names(&self) -> (Vec<&str>, Vec<&str>) {
        let names = self
            .endpoints
            .split(['|', ' '])
            .filter(|text| !text.is_empty() && !is_port(text));
        let mut names: Vec<_> = names.map(|text| parts(text).0).collect();
        names.sort_unstable();
        names.dedup();
        let local = names.iter().copied().filter(|name| Cast::is_here(name));
        (names.clone(), local.collect())
    }
}

/// A port of a Service.
pub fn port(protocol: Protocol, port: u16, node_port: u16) -> Value {
    json!({
        "name": port_name(protocol), "protocol": protocol.to_string(), "port": port, "targetPort": TARGET,
        "nodePort": node_port,
    })
}

/// What a protocol's port is called in Services and slices.
fn port_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "http",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// Whether a word among the endpoints is a slice's port: `TCP:9090`.
fn is_port(text: &str) -> bool {
    let mut all = Protocol::ALL.into_iter();
    all.any(|protocol| text.starts_with(&format!("{protocol}:")))
}

/// The objects of Services, numbered from 1.
pub fn objects(services: &[Svc], cast: &Cast) -> Vec<Value> {
    let services = (1..).zip(services);
    let objects = services.flat_map(|(number, service)| service.objects(number, cast));
    objects.collect()
}

/// The addresses of Service `number` in family 0 (IPv4) or 1.
pub fn addresses(number: u8, family: usize) -> Addresses {
    let ip = |v4: &str, v6: &str, number: u8| -> IpAddr {
        let text = [format!("{v4}.{number}"), format!("{v6}::{number:x}")];
        text[family].parse().expect("an address")
    };
    Addresses {
        cluster: ip("10.96.0", "fd00:10:96", number),
        // The client has a low one.
        load_balancer: ip("203.0.113", "2001:db8:113", 100 + number),
        external: ip("198.51.100", "2001:db8:51", number),
        node_port: 30_000 + u16::from(number),
    }
}

/// An endpoint of a slice: a member of the cast and its state.
fn endpoint(text: &str, family: usize, cast: &Cast) -> Value {
    let (name, states) = parts(text);
    let mut conditions = json!({ "ready": true, "serving": true, "terminating": false });
    let mut hints: Map<String, Value> = Map::new();
    for state in states {
        match state {
            "unready" => conditions = json!({ "ready": false, "serving": false }),
            "terminating" => {
                conditions = json!({ "ready": false, "serving": true, "terminating": true });
            }
            "gone" => {
                conditions = json!({ "ready": false, "serving": false, "terminating": true });
            }
            "published" => conditions = json!({ "ready": true, "serving": false }),
            "published-terminating" => {
                conditions = json!({ "ready": true, "serving": true, "terminating": true });
            }
            "published-gone" => {
                conditions = json!({ "ready": true, "serving": false, "terminating": true });
            }
            other => {
                let (kind, value) = other.split_once('=').expect("a state, zone=… or node=…");
                let list = match kind {
                    "zone" => "forZones",
                    "node" => "forNodes",
                    _ => panic!("{other} is no state of an endpoint"),
                };
                let list = hints.entry(list).or_insert_with(|| json!([]));
                let list = list.as_array_mut().expect("it is made as one");
                list.push(json!({ "name": value }));
            }
        }
    }
    let node = if Cast::is_here(name) {
        "node-1"
    } else {
        "node-2"
    };
    let mut value = json!({
        "addresses": [cast.address(name, family)], "nodeName": node, "conditions": conditions,
    });
    if !hints.is_empty() {
        value["hints"] = Value::Object(hints);
    }
    value
}

/// The name of an endpoint, and its states.
fn parts(text: &str) -> (&str, Vec<&str>) {
    match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        Some((name, states)) => (name, states.split(',').collect()),
        None => (text, Vec::new()),
    }
}

/// Takes the ports of SCTP away.
pub fn remove_sctp(objects: &mut [Value]) {
    for object in objects {
        for at in ["/spec/ports", "/ports"] {
            if let Some(ports) = object.pointer_mut(at).and_then(Value::as_array_mut) {
                ports.retain(|port| port["protocol"] != "SCTP");
            }
        }
    }
}
