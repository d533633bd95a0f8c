//! Which pod an endpoint is, and where it runs; for readers of the dry run only: the agent has no use for that.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Objects, name_of, parse_address, service_of};
use crate::model::ObjectName;

/// Who is at an endpoint's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// The pod (`targetRef`), without its namespace: it is that of the Service.
    pub pod: Option<String>,
    /// The node that it runs on.
    pub node: Option<String>,
    is_ready: bool,
}

/// Who is at the addresses of each Service's endpoints. Where an address is there twice, who is ready counts.
pub fn pods(objects: &Objects) -> BTreeMap<(ObjectName, IpAddr), Who> {
    let mut pods: BTreeMap<(ObjectName, IpAddr), Who> = BTreeMap::new();
    let mut put = |service: &ObjectName, address: &str, who: Who| {
        let Some(address) = parse_address(address) else {
            return;
        };
        let known = pods.entry((service.clone(), address)).or_default();
        if who.is_ready || !known.is_ready {
            *known = who;
        }
    };
    let pod_of = |target: Option<&core::ObjectReference>| {
        let target = target.filter(|target| target.kind.as_deref() == Some("Pod"))?;
        target.name.clone()
    };
    for slice in &objects.slices {
        let Some(service) = service_of(&slice.metadata) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let who = Who {
                pod: pod_of(endpoint.target_ref.as_ref()),
                node: endpoint.node_name.clone(),
                is_ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            };
            if let Some(address) = endpoint.addresses.first() {
                put(&service, address, who);
            }
        }
    }
    for object in &objects.endpoints {
        let service = name_of(&object.metadata);
        for subset in object.subsets.iter().flatten() {
            for address in subset.addresses.iter().flatten() {
                let who = Who {
                    pod: pod_of(address.target_ref.as_ref()),
                    node: address.node_name.clone(),
                    is_ready: true,
                };
                put(&service, &address.ip, who);
            }
        }
    }
    pods
}
