//! Which endpoints take a front end's new connections.

use crate::model::{Endpoint, Family, ServicePort, Slice};

use super::{Backend, tables::MAX_BACKENDS};

/// The back ends of a Service port in one family, sorted, each once: the ready ones, or, if none is, those
/// that still serve while they terminate (KEP-1669).
pub(super) fn backends<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    port: &ServicePort,
    family: Family,
) -> Vec<Backend> {
    let candidates: Vec<(&Endpoint, Backend)> = slices
        .flat_map(|slice| {
            let joined = slice
                .ports
                .iter()
                .filter(|p| p.name == port.name && p.protocol == port.protocol);
            joined.flat_map(|p| {
                slice
                    .endpoints
                    .iter()
                    .map(move |endpoint| (endpoint, p.port))
            })
        })
        .filter(|(endpoint, _)| Family::of(endpoint.address) == family)
        .map(|(endpoint, port)| {
            (
                endpoint,
                Backend {
                    ip: endpoint.address,
                    port,
                },
            )
        })
        .collect();
    let pick = |wanted: fn(&Endpoint) -> bool| {
        let wanted = candidates.iter().filter(|(endpoint, _)| wanted(endpoint));
        let mut backends: Vec<Backend> = wanted.map(|(_, backend)| *backend).collect();
        backends.sort_unstable();
        backends.dedup();
        backends.truncate(MAX_BACKENDS);
        backends
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() {
        pick(|endpoint| endpoint.serving && endpoint.terminating)
    } else {
        ready
    }
}
