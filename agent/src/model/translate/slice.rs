//! EndpointSlice → [`Slice`].

use k8s_openapi::api::discovery::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    HEADLESS_LABEL, address, keep_good, label, mapped, name_of, port, protocol, service_of,
};
use crate::model::{Complaint, Endpoint, Family, Hints, Parsed, Place, Slice, SlicePort, Trigger};

/// The annotation with the time, in RFC 3339, of the change that the slice follows (`EndpointsLastChangeTriggerTime`
/// of the core API).
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What follows from an address that cannot be an endpoint's.
pub(super) const SKIPPED: &str = "the endpoint is skipped";

/// Translates an EndpointSlice as the node `node_name` sees it. FQDN slices, those of headless Services
/// and those without a Service come out as ignored.
pub fn slice(object: &api::EndpointSlice, node_name: &str) -> Parsed<Slice> {
    let name = name_of(&object.metadata);
    let is_headless = label(&object.metadata, HEADLESS_LABEL).is_some();
    let (Some(service), false) = (service_of(&object.metadata), is_headless) else {
        return Parsed::ignored(name);
    };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Parsed::ignored(name),
        other => {
            let reason = format!("{other:?} is not one of IPv4, IPv6, FQDN; the slice is skipped");
            let complaints = vec![Complaint::new("addressType", reason)];
            return Parsed {
                name,
                object: None,
                complaints,
                trigger: None,
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
            service,
            name: name.clone(),
            ports: ports.into(),
            endpoints: endpoints.into(),
        }),
        name,
        complaints,
        trigger: trigger(&object.metadata, family),
    }
}

/// What the annotation says; one that cannot be read says nothing, as in kube-proxy (`getLastChangeTriggerTime`).
fn trigger(metadata: &ObjectMeta, family: Family) -> Option<Trigger> {
    let text = metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?;
    let at = text.parse().ok()?;
    Some(Trigger { family, at })
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
    let field = format!("endpoints[{index}].addresses[0]");
    let address = address(text, field.clone(), SKIPPED)?;
    if Family::of(address) != family {
        let address = match mapped(text) {
            Some(address) => format!("{address} is an IPv4 address mapped to IPv6, which"),
            None => address.to_string(),
        };
        let reason = format!(
            "{address} is not an {family} address as addressType says; the endpoint is skipped"
        );
        return Err(Complaint::new(field, reason));
    }
    let conditions = object.conditions.as_ref();
    Ok(Endpoint {
        address,
        place: place(object.node_name.as_deref(), node_name),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        hints: object
            .hints
            .as_ref()
            .and_then(|object| hints(object, node_name))
            .map(Box::new),
    })
}

/// Who should use the endpoint; `None` if nobody is named.
fn hints(object: &api::EndpointHints, node_name: &str) -> Option<Hints> {
    let nodes = object.for_nodes.as_deref().unwrap_or_default();
    let zones = object.for_zones.as_deref().unwrap_or_default();
    let hints = Hints {
        this_node: (!nodes.is_empty()).then(|| nodes.iter().any(|node| node.name == node_name)),
        zones: zones.iter().map(|zone| zone.name.as_str().into()).collect(),
    };
    (hints != Hints::default()).then_some(hints)
}

/// Where an endpoint with this `nodeName` runs.
pub(super) fn place(endpoint_node: Option<&str>, this_node: &str) -> Place {
    match endpoint_node {
        None | Some("") => Place::Unknown,
        Some(node) if node == this_node => Place::Here,
        Some(_) => Place::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_annotation_tells_what_a_slice_follows() {
        let check = |address_type: &str, text: &str, expected: Option<(Family, &str)>| {
            let metadata = json!({
                "name": "web-1",
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": "web" },
                "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": text },
            });
            let object =
                json!({ "metadata": metadata, "addressType": address_type, "endpoints": [] });
            let parsed = slice(&serde_json::from_value(object).unwrap(), "node-1");
            let expected = expected.map(|(family, at)| Trigger {
                family,
                at: at.parse().unwrap(),
            });
            assert_eq!(parsed.trigger, expected, "{text}");
            assert!(parsed.complaints.is_empty());
        };
        // Go's RFC3339Nano leaves zeros at the end out.
        let nano = "2026-05-01T12:00:00.123456789Z";
        check("IPv4", nano, Some((Family::V4, nano)));
        let second = "2026-05-01T12:00:00Z";
        check(
            "IPv6",
            "2026-05-01T14:00:00+02:00",
            Some((Family::V6, second)),
        );
        check("IPv4", "yesterday", None);
        check("IPv4", "", None);
        check("FQDN", nano, None);
    }
}
