//! Node → [`Node`].

use k8s_openapi::api::core::v1 as api;

use super::{is_special, label, name_of, parse_address, parse_network};
use crate::model::Node;

/// The taint of a node that the cluster autoscaler is about to remove.
const SCALING_DOWN_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The label with a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Translates a Node. Addresses that are host names are left out, and those that no other machine can call: NodePorts
/// are never on loopback (kube-proxy's nftables mode).
pub fn node(object: &api::Node) -> Node {
    let addresses = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let of_type = |wanted: &'static str| {
        addresses
            .iter()
            .filter(move |address| address.type_ == wanted)
            .filter_map(|address| parse_address(&address.address))
            .filter(|address| !is_special(*address))
    };
    let spec = object.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_deref());
    let taints = taints.unwrap_or_default();
    Node {
        name: name_of(&object.metadata).name().to_owned(),
        addresses: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
        pod_networks: pod_networks(spec),
        zone: label(&object.metadata, ZONE_LABEL)
            .filter(|zone| !zone.is_empty())
            .map(Into::into),
        leaving: object.metadata.deletion_timestamp.is_some()
            || taints.iter().any(|taint| taint.key == SCALING_DOWN_TAINT),
    }
}

/// `podCIDRs`, or `podCIDR` where that list is missing.
fn pod_networks(spec: Option<&api::NodeSpec>) -> Vec<ipnet::IpNet> {
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_deref());
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref());
    let texts = match listed {
        Some(listed) if !listed.is_empty() => listed.iter().collect(),
        _ => Vec::from_iter(single),
    };
    texts
        .into_iter()
        .filter_map(|text| parse_network(text))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_has_no_address_that_only_itself_can_call() {
        let object: api::Node = serde_json::from_value(json!({
            "metadata": { "name": "node-1" },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "127.0.0.1" }, { "type": "InternalIP", "address": "fe80::1" },
                { "type": "InternalIP", "address": "::" }, { "type": "InternalIP", "address": "::ffff:192.168.0.2" },
            ] },
        }))
        .unwrap();
        assert_eq!(node(&object).addresses, [IpAddr::from([192, 168, 0, 2])]);
    }
}
