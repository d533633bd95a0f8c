//! The one place that sees Kubernetes API types: turns them into the model's own, once, at the edge.
//!
//! Nothing here fails: what cannot be served becomes a [`Complaint`] that names the field, and the rest of
//! the object is served. Defaults are those of the Kubernetes API reference.

pub mod dns;
mod endpoints;
mod node;
mod objects;
mod service;
mod slice;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use endpoints::endpoints;
pub use node::node;
pub use objects::Objects;
pub use service::service;
pub use slice::slice;

use super::{Complaint, ObjectName, Port, Protocol};

/// The label that joins an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The label on the slices of headless Services, which have no rules.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The label that hands a Service to another proxy.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The namespace and name in an object's metadata.
pub fn name_of(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(label))
}

/// Reads a protocol; absent means TCP.
fn protocol(text: Option<&str>, field: &str) -> Result<Protocol, Complaint> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(Complaint::invalid(
            format!("{field}.protocol"),
            format!("{other:?} is not one of TCP, UDP, SCTP; this port is skipped"),
        )),
    }
}

/// Reads a port number from 1 to 65535.
fn port(number: i32, field: String) -> Result<Port, Complaint> {
    u16::try_from(number)
        .ok()
        .and_then(Port::new)
        .ok_or_else(|| {
            Complaint::invalid(
                field,
                format!("{number} is not a port number (1 to 65535); this port is skipped"),
            )
        })
}

/// Keeps what is good and sets the complaints aside.
fn keep_good<T>(
    parsed: impl Iterator<Item = Result<T, Complaint>>,
    complaints: &mut Vec<Complaint>,
) -> Vec<T> {
    parsed
        .filter_map(|item| item.map_err(|complaint| complaints.push(complaint)).ok())
        .collect()
}

#[cfg(test)]
mod tests;
