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

use std::net::IpAddr;

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

/// The value of a label.
fn label<'a>(metadata: &'a ObjectMeta, label: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(label).map(String::as_str)
}

/// The Service that an EndpointSlice belongs to, if it belongs to one.
fn service_of(slice: &ObjectMeta) -> Option<ObjectName> {
    let service = label(slice, SERVICE_NAME_LABEL).filter(|service| !service.is_empty())?;
    Some(ObjectName::new(
        slice.namespace.as_deref().unwrap_or_default(),
        service,
    ))
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

/// Reads the address of an endpoint, and refuses those that kube-apiserver does (its `ValidateNonSpecialIP`).
fn endpoint_address(text: &str, field: String) -> Result<IpAddr, Complaint> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let reason = format!("{text:?} is not an IP address; the endpoint is skipped");
        return Err(Complaint::invalid(field, reason));
    };
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local {
        let reason = format!(
            "{address} is an unspecified, loopback, link-local or multicast address; the endpoint is skipped"
        );
        return Err(Complaint::invalid(field, reason));
    }
    Ok(address)
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
