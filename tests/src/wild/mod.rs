//! Random API objects as JSON: most look right, some are slightly wrong, a few are wild.
//!
//! One generator for three uses: the property test of the library, the test that loads what was accepted into the
//! kernel, and the fuzz target (`agent/fuzz`). Everything is decided by bytes, so that proptest and libFuzzer can
//! shrink and mutate what they found. The world is small: names, addresses and ports collide.

mod choices;
pub mod encodings;
pub mod laws;
mod values;

use serde_json::{Value, json};

pub use choices::{Choices, seeded};
use values::{
    address, boolean, network, node_name, node_port, number, object_name, port, port_name,
    protocol, service_name, text, timestamp,
};

/// The name of the node as which the objects are looked at.
pub const NODE: &str = "node-1";

/// The most values of an object that are replaced after it was made.
const MOST_REPLACED: usize = 3;

/// A few objects of every kind that a proxy reads.
pub fn objects(choices: &mut Choices<'_>) -> Vec<Value> {
    let mut objects = Vec::new();
    for (most, make) in [
        (8, service as fn(&mut Choices<'_>) -> Value),
        (10, slice),
        (3, endpoints),
        (3, node),
        (3, service_cidr),
    ] {
        for _ in 0..choices.below(most) {
            let mut object = make(choices);
            if choices.one_in(6) {
                for _ in 0..choices.below(MOST_REPLACED + 1) {
                    replace(&mut object, choices);
                }
            }
            objects.push(object);
        }
    }
    objects
}

fn service(choices: &mut Choices<'_>) -> Value {
    let mut spec = json!({
        "ports": list(choices, 4, service_port),
        "clusterIPs": list(choices, 3, |c| address(c, &["10.96.0", "fd00:10:96:"])),
    });
    spec["clusterIP"] = match &spec["clusterIPs"][0] {
        Value::Null => address(choices, &["10.96.0"]),
        first => first.clone(),
    };
    let kinds = [
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "LoadBalancer",
        "ExternalName",
    ];
    maybe(&mut spec, "type", choices, |c| one_of(c, &kinds));
    let policies = ["Cluster", "Local"];
    maybe(&mut spec, "internalTrafficPolicy", choices, |c| {
        one_of(c, &policies)
    });
    maybe(&mut spec, "externalTrafficPolicy", choices, |c| {
        one_of(c, &policies)
    });
    maybe(&mut spec, "sessionAffinity", choices, |c| {
        one_of(c, &["None", "ClientIP"])
    });
    maybe(
        &mut spec,
        "sessionAffinityConfig",
        choices,
        |c| json!({ "clientIP": { "timeoutSeconds": number(c, &[1, 30, 10_800, 86_400]) } }),
    );
    maybe(&mut spec, "externalIPs", choices, |c| {
        list(c, 3, |c| address(c, &["198.51.100", "10.96.0"]))
    });
    maybe(&mut spec, "loadBalancerSourceRanges", choices, |c| {
        list(c, 5, network)
    });
    maybe(&mut spec, "healthCheckNodePort", choices, node_port);
    let ingress = list(choices, 3, |c| {
        let mut ingress = json!({ "ip": address(c, &["203.0.113", "2001:db8:", "10.96.0"]) });
        maybe(&mut ingress, "ipMode", c, |c| one_of(c, &["VIP", "Proxy"]));
        maybe(&mut ingress, "hostname", c, text);
        ingress
    });
    let mut metadata = json!({ "name": service_name(choices), "namespace": "default" });
    maybe(&mut metadata, "creationTimestamp", choices, timestamp);
    if choices.one_in(20) {
        metadata["labels"] = json!({ "service.kubernetes.io/service-proxy-name": text(choices) });
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec,
        "status": { "loadBalancer": { "ingress": ingress } },
    })
}

fn service_port(choices: &mut Choices<'_>) -> Value {
    let mut object = json!({ "port": port(choices) });
    maybe(&mut object, "name", choices, port_name);
    maybe(&mut object, "protocol", choices, protocol);
    maybe(&mut object, "nodePort", choices, node_port);
    maybe(&mut object, "targetPort", choices, port);
    object
}

fn slice(choices: &mut Choices<'_>) -> Value {
    let (family, prefix) = if choices.one_in(3) {
        ("IPv6", "fd00:10:244:1:")
    } else {
        ("IPv4", "10.244.1")
    };
    let family = if choices.one_in(20) {
        one_of(choices, &["FQDN", "IPv4", "IPv6"])
    } else {
        json!(family)
    };
    let mut labels = json!({ "kubernetes.io/service-name": service_name(choices) });
    if choices.one_in(20) {
        labels["service.kubernetes.io/headless"] = text(choices);
    }
    let name = object_name(choices, "slice");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "addressType": family,
        "ports": list(choices, 4, endpoint_port),
        "endpoints": list(choices, 7, |c| endpoint(c, prefix)),
    })
}

fn endpoint_port(choices: &mut Choices<'_>) -> Value {
    let mut object = json!({});
    maybe(&mut object, "port", choices, port);
    maybe(&mut object, "name", choices, port_name);
    maybe(&mut object, "protocol", choices, protocol);
    object
}

fn endpoint(choices: &mut Choices<'_>, prefix: &str) -> Value {
    let mut object = json!({ "addresses": [address(choices, &[prefix])] });
    if choices.one_in(20) {
        object["addresses"] = list(choices, 4, |c| address(c, &[prefix]));
    }
    maybe(&mut object, "nodeName", choices, node_name);
    maybe(&mut object, "hostname", choices, text);
    if choices.one_in(3) {
        let mut conditions = json!({});
        for condition in ["ready", "serving", "terminating"] {
            maybe(&mut conditions, condition, choices, boolean);
        }
        object["conditions"] = conditions;
    }
    if choices.one_in(3) {
        let named = |c: &mut Choices<'_>| json!({ "name": one_of(c, &[NODE, "node-2", "a", "b"]) });
        object["hints"] = json!({});
        for hint in ["forNodes", "forZones"] {
            maybe(&mut object["hints"], hint, choices, |c| list(c, 3, named));
        }
    }
    object
}

fn endpoints(choices: &mut Choices<'_>) -> Value {
    let subset = |c: &mut Choices<'_>| {
        let address = |c: &mut Choices<'_>| {
            let mut object = json!({ "ip": address(c, &["10.244.2", "fd00:10:244:2:"]) });
            maybe(&mut object, "nodeName", c, node_name);
            object
        };
        json!({
            "addresses": list(c, 4, address),
            "notReadyAddresses": list(c, 2, address),
            "ports": list(c, 3, service_port_of_endpoints),
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": service_name(choices), "namespace": "default" },
        "subsets": list(choices, 3, subset),
    })
}

fn service_port_of_endpoints(choices: &mut Choices<'_>) -> Value {
    let mut object = endpoint_port(choices);
    object["port"] = port(choices);
    object
}

fn node(choices: &mut Choices<'_>) -> Value {
    let types = [
        "InternalIP",
        "InternalIP",
        "ExternalIP",
        "Hostname",
        "InternalDNS",
    ];
    let address = |c: &mut Choices<'_>| json!({ "type": one_of(c, &types), "address": address(c, &["192.168.0", "fd00::"]) });
    let mut metadata = json!({ "name": node_name(choices) });
    if choices.one_in(2) {
        metadata["labels"] =
            json!({ "topology.kubernetes.io/zone": one_of(choices, &["a", "b", ""]) });
    }
    let mut spec = json!({});
    maybe(&mut spec, "podCIDR", choices, network);
    maybe(&mut spec, "podCIDRs", choices, |c| list(c, 4, network));
    if choices.one_in(5) {
        let key = one_of(choices, &["ToBeDeletedByClusterAutoscaler", "other"]);
        spec["taints"] = json!([{ "key": key, "effect": "NoSchedule" }]);
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec,
        "status": { "addresses": list(choices, 5, address) },
    })
}

fn service_cidr(choices: &mut Choices<'_>) -> Value {
    let name = object_name(choices, "cidr");
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": name },
        "spec": { "cidrs": list(choices, 4, network) },
    })
}

/// Up to `most` - 1 values.
fn list(
    choices: &mut Choices<'_>,
    most: usize,
    mut make: impl FnMut(&mut Choices<'_>) -> Value,
) -> Value {
    let count = choices.below(most);
    (0..count).map(|_| make(choices)).collect()
}

/// Sets a field, or leaves it out, or sets it to null.
fn maybe(
    object: &mut Value,
    field: &str,
    choices: &mut Choices<'_>,
    make: impl FnOnce(&mut Choices<'_>) -> Value,
) {
    match choices.below(8) {
        0 | 1 => {}
        2 => object[field] = Value::Null,
        _ => object[field] = make(choices),
    }
}

/// One of these; seldom a text that is none of them.
fn one_of(choices: &mut Choices<'_>, good: &[&str]) -> Value {
    if choices.one_in(30) {
        text(choices)
    } else {
        json!(choices.one_of(good))
    }
}

/// Replaces some value of an object: the walk goes down by choice, and ends at any depth.
fn replace(object: &mut Value, choices: &mut Choices<'_>) {
    let below: Option<&mut Value> = match object {
        Value::Object(fields) => {
            let count = fields.len();
            (count > 0)
                .then(|| choices.below(count))
                .and_then(|at| fields.values_mut().nth(at))
        }
        Value::Array(items) => {
            let count = items.len();
            (count > 0)
                .then(|| choices.below(count))
                .and_then(|at| items.get_mut(at))
        }
        _ => None,
    };
    if let Some(below) = below
        && !choices.one_in(6)
    {
        return replace(below, choices);
    }
    *object = match choices.below(8) {
        0 => Value::Null,
        1 => json!([]),
        2 => json!({}),
        3 => boolean(choices),
        4 | 5 => number(choices, &[0, 1, 80]),
        _ => text(choices),
    };
}
