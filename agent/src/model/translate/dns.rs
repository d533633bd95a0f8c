//! Services without rules, and what DNS answers for them; for readers of the dry run only.
//!
//! The records follow the Kubernetes DNS specification
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>, 2.4 to 2.5).

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::service::has_address;
use super::{PROXY_NAME_LABEL, SERVICE_NAME_LABEL, has_label, name_of};
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

/// Says why a Service has no rules, if it has none. `slices` are those of all Services.
pub fn unserved(service: &core::Service, slices: &[discovery::EndpointSlice]) -> Option<Unserved> {
    let name = name_of(&service.metadata);
    let spec = service.spec.as_ref();
    let text = |field: Option<&String>| field.cloned().unwrap_or_default();
    let why = if spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName") {
        Why::ExternalName(text(spec.and_then(|s| s.external_name.as_ref())))
    } else if has_label(&service.metadata, PROXY_NAME_LABEL) {
        let labels = service.metadata.labels.as_ref();
        Why::OtherProxy(text(labels.and_then(|l| l.get(PROXY_NAME_LABEL))))
    } else if spec.is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        Why::Headless(host_records(&name, slices))
    } else if spec.is_some_and(has_address) {
        return None;
    } else {
        Why::NoAddressYet
    };
    Some(Unserved { name, why })
}

/// The records of the ready endpoints in the slices of a Service, in order and each once.
fn host_records(service: &ObjectName, slices: &[discovery::EndpointSlice]) -> Vec<HostRecord> {
    let of_service = |slice: &&discovery::EndpointSlice| {
        let label = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(SERVICE_NAME_LABEL));
        label.is_some_and(|label| label == service.name())
            && slice.metadata.namespace.as_deref().unwrap_or_default() == service.namespace()
    };
    let ready = |endpoint: &&discovery::Endpoint| {
        endpoint
            .conditions
            .as_ref()
            .and_then(|c| c.ready)
            .unwrap_or(true)
    };
    let mut records: Vec<HostRecord> = slices
        .iter()
        .filter(of_service)
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
