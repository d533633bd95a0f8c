//! Services without rules, and what DNS answers for them; for readers of the dry run only.
//!
//! The records follow the Kubernetes DNS specification
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>, 2.4 to 2.5).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::service::has_address;
use super::{Objects, PROXY_NAME_LABEL, label, name_of, service_of};
use crate::model::ObjectName;

/// A Service that has no rules, on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Why it has none.
    pub why: Why,
}

/// Why a Service has no rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// `clusterIP: None`: clients get the endpoints' addresses from DNS and talk to them directly.
    Headless(Vec<HostRecord>),
    /// `type: ExternalName`: DNS answers with this CNAME.
    ExternalName(String),
    /// No ClusterIP is allocated yet.
    NoAddressYet,
    /// The label `service.kubernetes.io/service-proxy-name` hands it to this other proxy.
    OtherProxy(String),
}

/// What DNS answers for one endpoint of a headless Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRecord {
    /// The endpoint's host name, if it has one of its own (a StatefulSet's pods have).
    pub hostname: Option<String>,
    /// The endpoint's address.
    pub address: String,
}

/// The Services that have no rules, by name.
pub fn unserved(objects: &Objects) -> Vec<Unserved> {
    let mut slices: BTreeMap<ObjectName, Vec<&discovery::EndpointSlice>> = BTreeMap::new();
    for slice in &objects.slices {
        if let Some(service) = service_of(&slice.metadata) {
            slices.entry(service).or_default().push(slice);
        }
    }
    let mut unserved: Vec<Unserved> = objects
        .services
        .iter()
        .filter_map(|service| {
            let name = name_of(&service.metadata);
            let slices = slices.get(&name).map(Vec::as_slice).unwrap_or_default();
            let why = why_unserved(service, slices)?;
            Some(Unserved { name, why })
        })
        .collect();
    unserved.sort_by(|a, b| a.name.cmp(&b.name));
    unserved
}

/// Why a Service with these slices has no rules, if it has none.
fn why_unserved(service: &core::Service, slices: &[&discovery::EndpointSlice]) -> Option<Why> {
    let spec = service.spec.as_ref();
    Some(
        if spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName") {
            let target = spec.and_then(|s| s.external_name.clone());
            Why::ExternalName(target.unwrap_or_default())
        } else if let Some(proxy) = label(&service.metadata, PROXY_NAME_LABEL) {
            Why::OtherProxy(proxy.to_owned())
        } else if spec.is_some_and(is_headless) {
            Why::Headless(host_records(slices))
        } else if spec.is_some_and(has_address) {
            return None;
        } else {
            Why::NoAddressYet
        },
    )
}

/// Whether a Service has no ClusterIP on purpose.
fn is_headless(spec: &core::ServiceSpec) -> bool {
    let listed = spec.cluster_ips.iter().flatten().next();
    listed.or(spec.cluster_ip.as_ref()).map(String::as_str) == Some("None")
}

/// The records of the ready endpoints of slices, in order and each once.
fn host_records(slices: &[&discovery::EndpointSlice]) -> Vec<HostRecord> {
    let ready = |endpoint: &&discovery::Endpoint| {
        endpoint
            .conditions
            .as_ref()
            .and_then(|c| c.ready)
            .unwrap_or(true)
    };
    let mut records: Vec<HostRecord> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.as_deref().unwrap_or_default())
        .filter(ready)
        .filter_map(|endpoint| {
            Some(HostRecord {
                hostname: endpoint.hostname.clone(),
                address: endpoint.addresses.first()?.clone(),
            })
        })
        .collect();
    records.sort();
    records.dedup();
    records
}
