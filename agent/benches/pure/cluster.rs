//! Made-up clusters of single-port Services, as the API server's JSON and as the snapshot that it comes to.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use proxyd::model::translate::{self, name_of};
use proxyd::model::{Family, Scope, Service, Slice, Snapshot};
use proxyd::plan::{NodePortAddresses, PlanConfig, PodNetworks};
use serde_json::json;

/// How many Services there are.
pub(crate) const SIZES: [usize; 2] = [1_000, 10_000];

/// How many endpoints each has.
pub(crate) const ENDPOINTS: usize = 5;

/// The family of everything.
pub(crate) const FAMILY: Family = Family::V4;

/// The settings without any flag.
pub(crate) fn config() -> PlanConfig {
    PlanConfig {
        node_port_addresses: NodePortAddresses::primary(),
        pod_networks: PodNetworks::OfNode,
        masquerade_all: false,
        external_ips: true,
    }
}

/// The Service with this number, as the API server sends it.
pub(crate) fn service_json(number: usize) -> Vec<u8> {
    let ip = format!("10.{}.{}.1", 100 + number / 250, number % 250);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": format!("svc-{number}"), "namespace": "default", "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z", "uid": format!("00000000-0000-0000-0000-{number:012}"),
            "labels": { "app": format!("svc-{number}") },
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080 }],
            "selector": { "app": format!("svc-{number}") },
        },
        "status": { "loadBalancer": {} },
    });
    object.to_string().into_bytes()
}

/// The slice of the Service with this number, as the API server sends it; each version has another first endpoint.
pub(crate) fn slice_json(number: usize, endpoints: usize, version: usize) -> Vec<u8> {
    let endpoint = |index: usize| {
        let last = if index == 0 { 201 + version } else { index };
        json!({
            "addresses": [format!("10.{}.{}.{last}", 1 + number / 250, number % 250)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node-{}", index % 50),
            "targetRef": { "kind": "Pod", "name": format!("svc-{number}-{index}"), "namespace": "default" },
            "zone": format!("zone-{}", index % 3),
        })
    };
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("svc-{number}-abcde"), "namespace": "default", "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z", "uid": format!("00000000-0000-0000-0001-{number:012}"),
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" },
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": format!("svc-{number}"),
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    });
    object.to_string().into_bytes()
}

/// A Service out of its JSON.
pub(crate) fn parse_service(json: &[u8]) -> Service {
    let object: core::Service = serde_json::from_slice(json).expect("it is a Service");
    let parsed = translate::service(&object);
    parsed.object.expect("it has rules")
}

/// A slice out of its JSON.
pub(crate) fn parse_slice(json: &[u8]) -> Slice {
    let object: discovery::EndpointSlice = serde_json::from_slice(json).expect("it is a slice");
    let parsed = translate::slice(&object, "node-1");
    parsed
        .object
        .unwrap_or_else(|| panic!("{} has endpoints", name_of(&object.metadata)))
}

/// A cluster of so many Services, in which nothing has changed.
pub(crate) fn snapshot(services: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..services {
        snapshot.put_service(parse_service(&service_json(number)));
        snapshot.put_slice(parse_slice(&slice_json(number, ENDPOINTS, 0)));
    }
    snapshot.take_touched(FAMILY);
    snapshot
}

/// Replaces one endpoint of one Service in the middle, and tells what that touches.
pub(crate) fn change(snapshot: &mut Snapshot, services: usize) -> Scope {
    let changed = parse_slice(&slice_json(services / 2, ENDPOINTS, 1));
    snapshot.put_slice(changed);
    Scope::Touched(snapshot.take_touched(FAMILY))
}
