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

const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// The chains that the ten shapes need: what each Service below goes to, and what those chains lead to.
const CHAINS: [&str; 20] = [
    "cluster-1",
    "cluster-2",
    "cluster-2-sticky",
    "cluster-3",
    "cluster-4",
    "cluster-5-sticky",
    "cluster-6",
    "external-2-shared",
    "external-4",
    "external-6",
    "external-local-6-0",
    "lb-6",
    "node-port-external-2-shared",
    "node-port-external-3",
    "node-port-external-local-3-1",
    "node-port-lb-3",
    "remember-10800",
    "remember-30",
    "remember-address-30",
    "remember-node-port-30",
];

/// One Service, in both families, and its slices. Its shape is the last digit of its number.
fn service(number: u16) -> [Value; 3] {
    let [high, low] = number.to_be_bytes();
    let name = format!("s-{number}");
    let vip = json!({ "loadBalancer": { "ingress": [
        { "ip": format!("203.0.{high}.{low}") }, { "ip": format!("2001:db8:113::{number:x}") },
    ] } });
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
    let cluster_ips = [
        format!("10.96.{high}.{low}"),
        format!("fd00:10:96::{number:x}"),
    ];
    spec["clusterIP"] = json!(cluster_ips[0]);
    spec["clusterIPs"] = json!(cluster_ips);
    spec["type"] = json!(match (at_nodes, at_vip) {
        (_, true) => "LoadBalancer",
        (true, false) => "NodePort",
        (false, false) => "ClusterIP",
    });
    spec["ports"] = json!([port]);
    let slice = |family: &str, address: &dyn Fn(u8) -> String| {
        let endpoints = (0..here + elsewhere).map(|n| {
            let node = if n < here { "node-1" } else { "node-2" };
            json!({ "addresses": [address(n)], "nodeName": node })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("{name}-{family}"), "namespace": "default",
                "labels": { "kubernetes.io/service-name": name },
            },
            "ports": [{ "port": 8080 }], "endpoints": endpoints.collect::<Vec<_>>(),
        })
    };
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": spec, "status": if at_vip { vip } else { json!({}) },
        }),
        slice("IPv4", &|n| format!("10.{}.{high}.{low}", 100 + n)),
        slice("IPv6", &|n| format!("fd00:{}::{number:x}", 100 + n)),
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
        "10.0.0.0/8,fd00::/16",
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

/// The tables that the agent makes of so many Services.
fn by_agent(manifests: &TempDir) -> [Table; 2] {
    let netns = Netns::new().unwrap();
    let args = args(manifests);
    let agent = Agent::start(&netns, &args.iter().map(String::as_str).collect::<Vec<_>>());
    agent.wait_for_log("in sync", PATIENCE);
    let tables = FAMILIES.map(|family| Table::of(&netns, family));
    agent.terminate();
    tables
}

/// Leaves out what nft up to 1.0.6 cannot load: the rules that remember IPv6 clients, those that look up whose key a front end
/// shares, and what leads to them.
fn loadable(family: &str, table: &Table) -> Table {
    let mut table = table.clone();
    let is_left_out = |chain: &str| {
        let rest = chain.strip_prefix("remember-");
        rest.is_some_and(|rest| family == "ip6" || rest.parse::<u32>().is_err())
    };
    table.chains.retain(|chain, _| !is_left_out(chain));
    for (chain, rules) in &mut table.chains {
        if chain.ends_with("-shared") {
            rules.retain(|rule| !rule.contains("@affinity"));
        }
    }
    for elements in table.elements.values_mut() {
        elements.retain(|element| {
            let chain = element.rsplit_once("goto ").map(|(_, chain)| chain);
            !chain.is_some_and(is_left_out)
        });
    }
    table
}

#[test]
fn five_thousand_services_of_ten_shapes_have_the_chains_of_ten() {
    let ten = by_agent(&manifests(10));
    let many = manifests(5_000);
    let tables = by_agent(&many);
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
    for (family, (ten, table)) in FAMILIES.into_iter().zip(ten.iter().zip(&tables)) {
        assert_eq!(ten.shapes(), BTreeSet::from(CHAINS), "{family}");
        let count = |set| table.set(set).len();
        assert_eq!(
            count("services"),
            4_500 + 3 * 500,
            "{family}: all are there"
        );
        assert_eq!(count("no-endpoints"), 500, "{family}");
        assert_eq!(count("node-ports"), 1_000, "{family}");
        assert_eq!(
            table.chains, ten.chains,
            "{family}: not a chain and not a rule more than ten Services have"
        );

        let loaded = loadable(family, &Table::of(&by_nft, family));
        let table = loadable(family, table);
        assert_eq!(loaded.chains, table.chains, "{family}");
        let differing: Vec<_> = loaded
            .elements
            .iter()
            .filter(|(set, elements)| table.elements.get(*set) != Some(elements))
            .map(|(set, _)| set)
            .collect();
        assert!(differing.is_empty(), "{family}: {differing:?}");
    }
}
