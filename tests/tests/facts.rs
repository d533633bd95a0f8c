//! Facts of the cluster and the node, as an API server tells them: ServiceCIDRs, labels, zones, podCIDRs.

use std::net::IpAddr;

use proxyd_tests::agent::nft;
use proxyd_tests::apiserver::{Options, Refusal, Resource};
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::served::Served;
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

/// Waits until a set or map of the IPv4 table has elements with each of these texts, or no element at all.
#[track_caller]
fn wait_for(served: &Served, set: &str, texts: &[&str]) {
    let kind = if set.ends_with("s") && ["services", "endpoints"].contains(&set) {
        "map"
    } else {
        "set"
    };
    eventually(&format!("{set} has {texts:?}"), PATIENCE, || {
        let listed = nft(&served.node, &["list", kind, "ip", "proxyd", set], "");
        let has_elements = listed.contains("elements");
        has_elements != texts.is_empty() && texts.iter().all(|text| listed.contains(text))
    });
}

fn web() -> [Value; 2] {
    let endpoints: [(IpAddr, &str); 2] = [
        ([10, 1, 0, 1].into(), "node-1"),
        ([10, 1, 0, 2].into(), "node-2"),
    ];
    [
        service("web", &[[10, 96, 0, 1].into()], &[Port::HTTP]),
        slice("web", &[Port::HTTP], &endpoints),
    ]
}

fn cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": name },
        "spec": { "cidrs": cidrs },
    })
}

#[test]
fn service_cidrs_come_and_go() {
    let served = Served::new(Options::default());
    served.create(&[cidr("kubernetes", &["10.96.0.0/16", "fd00:10:96::/112"])]);
    let _agent = served.start_in_sync(&[]);
    wait_for(&served, "service-networks", &["10.96.0.0/16"]);
    served.create(&[cidr("more", &["10.98.0.0/16"])]);
    wait_for(
        &served,
        "service-networks",
        &["10.96.0.0/16", "10.98.0.0/16"],
    );
    // Neighbours become one.
    served.create(&[cidr("next", &["10.97.0.0/16"])]);
    wait_for(
        &served,
        "service-networks",
        &["10.96.0.0/15", "10.98.0.0/16"],
    );
    for name in ["kubernetes", "more", "next"] {
        served.server.delete(Resource::ServiceCidrs, "", name);
    }
    wait_for(&served, "service-networks", &[]);
}

#[test]
fn a_server_that_shows_no_service_cidrs_is_done_without() {
    for status in [403, 404] {
        let served = Served::new(Options::default());
        served.create(&web());
        let refusal = Refusal::with(status).times(usize::MAX);
        served.server.refuse(refusal.on(Resource::ServiceCidrs));
        let agent = served.start_in_sync(&[]);
        agent.wait_for_log("the API server shows no servicecidrs", PATIENCE);
        wait_for(&served, "services", &["goto cluster-2"]);
    }
}

#[test]
fn labels_that_come_and_go_hand_a_service_over_and_back() {
    let served = Served::new(Options::default());
    served.create(&web());
    let _agent = served.start_in_sync(&[]);
    wait_for(
        &served,
        "services",
        &["10.96.0.1 . tcp . 80", "goto cluster-2"],
    );

    let [mut others, mut headless] = web();
    others["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    served.server.update(&others);
    wait_for(&served, "services", &[]);
    let [service, slice] = web();
    served.server.update(&service);
    wait_for(&served, "services", &["goto cluster-2"]);

    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    served.server.update(&headless);
    wait_for(&served, "services", &[]);
    served.server.update(&slice);
    wait_for(&served, "services", &["goto cluster-2"]);
}

#[test]
fn the_nodes_zone_and_pod_networks_follow_its_object() {
    let node = |zone: &str, pods: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "node-1", "labels": { "topology.kubernetes.io/zone": zone } },
            "spec": { "podCIDR": pods, "podCIDRs": [pods] },
        })
    };
    let served = Served::new(Options::default());
    let [service, mut slice] = web();
    for (endpoint, zone) in [(0, "a"), (1, "b")] {
        slice["endpoints"][endpoint]["hints"] = json!({ "forZones": [{ "name": zone }] });
    }
    served.create(&[service, slice, node("a", "10.1.0.0/24")]);
    let _agent = served.start_in_sync(&["--detect-local-mode", "NodeCIDR"]);
    wait_for(&served, "endpoints", &["10.1.0.1 . 8080"]);
    wait_for(&served, "pod-networks", &["10.1.0.0/24"]);
    served.server.update(&node("b", "10.2.0.0/24"));
    wait_for(&served, "endpoints", &["10.1.0.2 . 8080"]);
    wait_for(&served, "pod-networks", &["10.2.0.0/24"]);
    served.server.update(&node("c", "10.2.0.0/24"));
    wait_for(
        &served,
        "endpoints",
        &["10.1.0.1 . 8080", "10.1.0.2 . 8080"],
    );
}
