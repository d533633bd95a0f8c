//! What load balancers are told of a Service: how many endpoints of it this node has.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ObjectName, Place, Port, Snapshot};

/// What a Service's port for health checks answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceHealth {
    /// The port (`spec.healthCheckNodePort`).
    pub port: Port,
    /// How many ready endpoints this node has, by address; those that terminate do not count.
    pub local_endpoints: usize,
}

/// The health of every Service that has a port for it.
pub fn service_health(snapshot: &Snapshot) -> BTreeMap<ObjectName, ServiceHealth> {
    let services = snapshot.health_checked().filter_map(|service| {
        let slices = snapshot.slices_of(&service.name);
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter());
        let ready = endpoints.filter(|e| e.ready && e.place == Place::Here);
        let addresses: BTreeSet<_> = ready.map(|endpoint| endpoint.address).collect();
        let health = ServiceHealth {
            port: service.health_check_port?,
            local_endpoints: addresses.len(),
        };
        Some((service.name.clone(), health))
    });
    services.collect()
}
