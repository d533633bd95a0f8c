//! Chains are made for shapes: 5,000 Services of ten shapes have the chains and rules that ten Services have.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use proxyd_tests::agent::{Agent, nft, run_once};
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::list;
use proxyd_tests::tables::Table;
use serde_json::{Value, json};
use tempfile::TempDir;

/// For 5,000 Services on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The chains that the ten shapes need: what each Service below goes to, and what those chains lead to.
const CHAINS: [&str; 18] = [
    "cluster-1",
    "cluster-2",
    "cluster-2-sticky",
    "cluster-3",
    "cluster-4",
    "cluster-5-sticky",
    "cluster-6",
    "external-2-sticky",
    "external-4",
    "external-6",
    "external-local-6-0",
    "lb-6",
    "node-port-external-2-sticky",
    "node-port-external-3",
    "node-port-external-local-3-1",
    "node-port-lb-3",
    "remember-10800",
    "remember-30",
];

/// One Service and its slice. Its shape is the last digit of its number.
fn service(number: u16) -> [Value; 2] {
    let [high, low] = number.to_be_bytes();
    let name = format!("s-{number}");
    let vip = json!({ "loadBalancer": { "ingress": [{ "ip": format!("203.0.{high}.{low}") }] } });
    // Endpoints on this node and on others, what the specification has beside the ports, and whether there are a
    // node port and a load balancer.
    let (here, elsewhere, spec, at_nodes, at_vip) = match number % 10 {
        0 => (0, 0, json!({}), false, false),
        1 => (1, 0, json!({}), false, false),
        2 => (1, 2, json!({}), false, false),
        3 => (
            2,
            7,
            json!({ "internalTrafficPolicy": "Local" }),
            false,
            false,
        ),
        4 => (1, 4, json!({ "sessionAffinity": "ClientIP" }), false, false),
        5 => (1, 4, with_timeout(30), false, false),
        6 => (
            1,
            2,
            json!({ "externalTrafficPolicy": "Local" }),
            true,
            false,
        ),
        7 => (2, 2, json!({}), false, true),
        8 => (
            0,
            6,
            json!({ "externalTrafficPolicy": "Local" }),
            false,
            true,
        ),
        _ => (0, 2, with_timeout(30), true, true),
    };
    let mut port = json!({ "port": 80 });
    if at_nodes {
        port["nodePort"] = json!(20_000 + number);
    }
    let mut spec = spec;
    spec["clusterIP"] = json!(format!("10.96.{high}.{low}"));
    spec["type"] = json!(match (at_nodes, at_vip) {
        (_, true) => "LoadBalancer",
        (true, false) => "NodePort",
        (false, false) => "ClusterIP",
    });
    spec["ports"] = json!([port]);
    let endpoints: Vec<Value> = (0..here + elsewhere)
        .map(|n| {
            let node = if n < here { "node-1" } else { "node-2" };
            let address = format!("10.{}.{high}.{low}", 100 + n);
            json!({ "addresses": [address], "nodeName": node })
        })
        .collect();
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": spec, "status": if at_vip { vip } else { json!({}) },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": name },
            },
            "ports": [{ "port": 8080 }], "endpoints": endpoints,
        }),
    ]
}

fn with_timeout(seconds: u32) -> Value {
    let config = json!({ "clientIP": { "timeoutSeconds": seconds } });
    json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config })
}

fn args(manifests: &TempDir) -> Vec<String> {
    let path = manifests.path().to_str().unwrap();
    let args = [
        "--hostname-override",
        "node-1",
        "--cluster-cidr",
        "10.0.0.0/8",
        "--manifests",
        path,
    ];
    args.map(str::to_owned).to_vec()
}

/// The first so many Services in a directory.
fn manifests(count: u16) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let objects: Vec<Value> = (0..count).flat_map(service).collect();
    fs::write(directory.path().join("objects.json"), list(&objects)).unwrap();
    directory
}

/// The IPv4 table that the agent makes of so many Services.
fn by_agent(manifests: &TempDir) -> Table {
    let netns = Netns::new().unwrap();
    let args = args(manifests);
    let agent = Agent::start(&netns, &args.iter().map(String::as_str).collect::<Vec<_>>());
    agent.wait_for_log("in sync", PATIENCE);
    assert!(Table::of(&netns, "ip6").shapes().is_empty());
    let table = Table::of(&netns, "ip");
    agent.terminate();
    table
}

#[test]
fn five_thousand_services_of_ten_shapes_have_the_chains_of_ten() {
    let ten = by_agent(&manifests(10));
    assert_eq!(ten.shapes(), BTreeSet::from(CHAINS));

    let many = manifests(5_000);
    let table = by_agent(&many);
    assert_eq!(
        table.set("services").len(),
        4_500 + 3 * 500,
        "all are there"
    );
    assert_eq!(table.set("no-endpoints").len(), 500);
    assert_eq!(table.set("node-ports").len(), 1_000);
    assert_eq!(
        table.chains, ten.chains,
        "not a chain and not a rule more than ten Services have"
    );

    let by_nft = Netns::new().unwrap();
    let args = [args(&many), vec!["--dry-run".to_owned()]].concat();
    let dry_run = run_once(
        &by_nft,
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert!(dry_run.status.success(), "{:?}", dry_run.status);
    nft(
        &by_nft,
        &["-f", "-"],
        std::str::from_utf8(&dry_run.stdout).unwrap(),
    );
    let loaded = Table::of(&by_nft, "ip");
    assert_eq!(loaded.chains, table.chains);
    let differing: Vec<_> = loaded
        .elements
        .iter()
        .filter(|(set, elements)| table.elements.get(*set) != Some(elements))
        .map(|(set, _)| set)
        .collect();
    assert!(differing.is_empty(), "{differing:?}");
}
