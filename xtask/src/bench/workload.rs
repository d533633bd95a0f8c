//! Made-up clusters of a given size, as objects for the API server and as one YAML file.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// So many Services, each with so many endpoints in one slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Workload {
    /// How many Services.
    pub(crate) services: usize,
    /// How many endpoints each has, at most 200.
    pub(crate) endpoints: usize,
}

impl Workload {
    /// The Service with this number: a ClusterIP with one TCP port.
    pub(crate) fn service(self, number: usize) -> Value {
        let ip = format!(
            "10.{}.{}.{}",
            100 + number / 62_500,
            number / 250 % 250,
            number % 250 + 1
        );
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(number, &format!("svc-{number}")),
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080 }],
                "selector": { "app": format!("svc-{number}") },
            },
            "status": { "loadBalancer": {} },
        })
    }

    /// The first endpoint of the Service with this number, in a version of its slice.
    pub(crate) fn first_endpoint(number: usize, version: usize) -> Ipv4Addr {
        let octet = |value: usize| u8::try_from(value).expect("there are at most 50,000 Services");
        Ipv4Addr::new(
            10,
            octet(1 + number / 250),
            octet(number % 250),
            octet(201 + version % 50),
        )
    }

    /// The slice of the Service with this number; each version has another first endpoint.
    pub(crate) fn slice(self, number: usize, version: usize) -> Value {
        let endpoint = |index: usize| {
            let address = if index == 0 {
                Self::first_endpoint(number, version).to_string()
            } else {
                format!("10.{}.{}.{index}", 1 + number / 250, number % 250)
            };
            json!({
                "addresses": [address],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("node-{}", index % 50),
                "targetRef": { "kind": "Pod", "name": format!("svc-{number}-{index}"), "namespace": namespace(number) },
                "zone": format!("zone-{}", index % 3),
            })
        };
        let mut metadata = metadata(number, &format!("svc-{number}-abcde"));
        metadata["labels"] = json!({
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            "kubernetes.io/service-name": format!("svc-{number}"),
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": (0..self.endpoints).map(endpoint).collect::<Vec<_>>(),
        })
    }

    /// All of it as `kubectl get services,endpointslices -A -o yaml` would print it.
    pub(crate) fn yaml(self) -> String {
        let mut text = "apiVersion: v1\nitems:\n".to_owned();
        for number in 0..self.services {
            for object in [self.service(number), self.slice(number, 0)] {
                text += "-";
                block(&mut text, &object, 1);
            }
        }
        text + "kind: List\nmetadata:\n  resourceVersion: \"\"\n"
    }
}

/// A Service of the cluster, with the address that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its number.
    pub(crate) number: usize,
    /// Its ClusterIP.
    pub(crate) cluster_ip: Ipv4Addr,
}

impl Service {
    /// Its name, in its [`namespace`].
    pub(crate) fn name(self) -> String {
        format!("svc-{}", self.number)
    }
}

/// How many namespaces the objects are spread over.
pub(crate) const NAMESPACES: usize = 50;

/// The namespace of the Service with this number.
pub(crate) fn namespace(number: usize) -> String {
    format!("proxyd-bench-{}", number % NAMESPACES)
}

fn metadata(number: usize, name: &str) -> Value {
    json!({
        "name": name, "namespace": namespace(number),
        "creationTimestamp": "2026-01-01T00:00:00Z", "uid": format!("00000000-0000-0000-0000-{number:012}"),
    })
}

/// Writes a value as block YAML behind a key or dash that ends the text so far.
fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            // Behind a dash the first field stays on the line.
            let mut lead = if text.ends_with('-') {
                " ".to_owned()
            } else {
                format!("\n{indent}")
            };
            for (key, value) in fields {
                text.push_str(&lead);
                text.push_str(key);
                text.push(':');
                block(text, value, depth + 1);
                lead.clone_from(&indent);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            for item in items {
                text.push_str(&indent);
                text.push('-');
                block(text, item, depth + 1);
            }
        }
        // JSON is YAML.
        other => writeln!(text, " {other}").expect("writing to a String never fails"),
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.services, self.endpoints)
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('x').and_then(|(services, endpoints)| {
            Some(Self {
                services: services.parse().ok()?,
                endpoints: endpoints.parse().ok()?,
            })
        });
        let valid =
            |w: &Self| (1..=50_000).contains(&w.services) && (1..=200).contains(&w.endpoints);
        parsed.filter(valid).ok_or_else(|| {
            "write SERVICESxENDPOINTS, such as 10000x5 (at most 50000 Services and 200 endpoints)".to_owned()
        })
    }
}
