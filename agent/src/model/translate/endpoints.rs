//! Endpoints → [`Slice`]s: the older API, which stands in where a Service has no EndpointSlice.
//!
//! A cluster's controller mirrors such objects to slices; only files written by hand or taken from an
//! old cluster need this.

use k8s_openapi::api::core::v1 as api;

use super::slice::{SKIPPED, place};
use super::{address, keep_good, name_of, port, protocol};
use crate::model::{Complaint, Endpoint, ObjectName, Parsed, Slice, SlicePort};

/// Translates an Endpoints object to one slice for each of its subsets, as the node `node_name` sees it.
pub fn endpoints(object: &api::Endpoints, node_name: &str) -> Vec<Parsed<Slice>> {
    let service = name_of(&object.metadata);
    let subsets = object.subsets.as_deref().unwrap_or_default();
    subsets
        .iter()
        .enumerate()
        .map(|(i, subset)| {
            let name = format!("{}-subset-{i}", service.name());
            let name = ObjectName::new(service.namespace(), &name);
            let mut complaints = Vec::new();
            let slice = Slice {
                name: name.clone(),
                service: service.clone(),
                ports: keep_good(ports(i, subset), &mut complaints).into(),
                endpoints: keep_good(addresses(i, subset, node_name), &mut complaints).into(),
            };
            Parsed {
                name,
                object: Some(slice),
                complaints,
                trigger: None,
            }
        })
        .collect()
}

fn ports(
    subset_index: usize,
    subset: &api::EndpointSubset,
) -> impl Iterator<Item = Result<SlicePort, Complaint>> {
    let ports = subset.ports.as_deref().unwrap_or_default();
    ports.iter().enumerate().map(move |(i, object)| {
        let field = format!("subsets[{subset_index}].ports[{i}]");
        Ok(SlicePort {
            name: object.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(object.protocol.as_deref(), &field)?,
            port: port(object.port, format!("{field}.port"))?,
        })
    })
}

fn addresses(
    subset_index: usize,
    subset: &api::EndpointSubset,
    node_name: &str,
) -> impl Iterator<Item = Result<Endpoint, Complaint>> {
    let ready = subset.addresses.iter().flatten().enumerate();
    let not_ready = subset.not_ready_addresses.iter().flatten().enumerate();
    let ready = ready.map(|(i, address)| ("addresses", i, address, true));
    let not_ready = not_ready.map(|(i, address)| ("notReadyAddresses", i, address, false));
    ready.chain(not_ready).map(move |(list, i, object, ready)| {
        let field = format!("subsets[{subset_index}].{list}[{i}].ip");
        Ok(Endpoint {
            address: address(&object.ip, field, SKIPPED)?,
            place: place(object.node_name.as_deref(), node_name),
            ready,
            serving: ready,
            terminating: false,
            hints: None,
        })
    })
}
