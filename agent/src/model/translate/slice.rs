//! EndpointSlice → [`Slice`].

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as api;

use super::{HEADLESS_LABEL, SERVICE_NAME_LABEL, has_label, keep_good, name_of, port, protocol};
use crate::model::{Complaint, Endpoint, Family, ObjectName, Parsed, Place, Slice, SlicePort};

/// Translates an EndpointSlice as the node `node_name` sees it. FQDN slices, those of headless Services
/// and those without a Service come out as ignored.
pub fn slice(object: &api::EndpointSlice, node_name: &str) -> Parsed<Slice> {
    let name = name_of(&object.metadata);
    let service = object
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_NAME_LABEL))
        .filter(|service| !service.is_empty());
    let (Some(service), false) = (service, has_label(&object.metadata, HEADLESS_LABEL)) else {
        return Parsed::ignored(name);
    };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Parsed::ignored(name),
        other => {
            let reason = format!("{other:?} is not one of IPv4, IPv6, FQDN; the slice is skipped");
            let complaints = vec![Complaint::invalid("addressType", reason)];
            return Parsed {
                name,
                object: None,
                complaints,
            };
        }
    };
    let mut complaints = Vec::new();
    let ports = object.ports.as_deref().unwrap_or_default();
    let ports = keep_good(
        ports
            .iter()
            .enumerate()
            .filter_map(|(i, port)| slice_port(i, port).transpose()),
        &mut complaints,
    );
    let endpoints = object.endpoints.as_deref().unwrap_or_default();
    let endpoints = keep_good(
        endpoints
            .iter()
            .enumerate()
            .map(|(i, e)| endpoint(i, e, family, node_name)),
        &mut complaints,
    );
    Parsed {
        object: Some(Slice {
            service: ObjectName::new(name.namespace(), service),
            name: name.clone(),
            ports: ports.into(),
            endpoints: endpoints.into(),
        }),
        name,
        complaints,
    }
}

/// A port of the slice; `None` where it has no number, which means "all ports" and is of no use to a proxy.
fn slice_port(index: usize, object: &api::EndpointPort) -> Result<Option<SlicePort>, Complaint> {
    let field = format!("ports[{index}]");
    let number = match object.port {
        None | Some(0) => return Ok(None),
        Some(number) => port(number, format!("{field}.port"))?,
    };
    Ok(Some(SlicePort {
        name: object.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(object.protocol.as_deref(), &field)?,
        port: number,
    }))
}

fn endpoint(
    index: usize,
    object: &api::Endpoint,
    family: Family,
    node_name: &str,
) -> Result<Endpoint, Complaint> {
    let text = object
        .addresses
        .first()
        .map(String::as_str)
        .unwrap_or_default();
    let complaint = |reason| Complaint::invalid(format!("endpoints[{index}].addresses[0]"), reason);
    let address: IpAddr = text.parse().map_err(|_| {
        complaint(format!(
            "{text:?} is not an IP address; the endpoint is skipped"
        ))
    })?;
    if Family::of(address) != family {
        let reason = format!(
            "{address} is not an {family} address as addressType says; the endpoint is skipped"
        );
        return Err(complaint(reason));
    }
    if is_special(address) {
        let reason = format!(
            "{address} is an unspecified, loopback, link-local or multicast address; the endpoint is skipped"
        );
        return Err(complaint(reason));
    }
    let conditions = object.conditions.as_ref();
    Ok(Endpoint {
        address,
        place: place(object.node_name.as_deref(), node_name),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    })
}

/// Addresses that no endpoint can have (`ValidateNonSpecialIP` of kube-apiserver).
fn is_special(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local
}

/// Where an endpoint with this `nodeName` runs.
pub(super) fn place(endpoint_node: Option<&str>, this_node: &str) -> Place {
    match endpoint_node {
        None | Some("") => Place::Unknown,
        Some(node) if node == this_node => Place::Here,
        Some(_) => Place::Elsewhere,
    }
}
