//! None, many and long: endpoints, ports, names.

use std::collections::BTreeSet;
use std::time::Duration;

use proxyd_tests::cluster::Cluster;
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Failure, Protocol, ask};
use proxyd_tests::world::{PATIENCE, World, expect_answers, wait_for_answers};
use serde_json::{Value, json};

use super::{at, service, slice};

/// For thousands of endpoints on a busy machine.
const MUCH_PATIENCE: Duration = Duration::from_secs(60);

/// A Service with port 80 and `count` endpoints, in slices of `each`.
fn many(name: &str, ip: &str, count: usize, each: usize) -> Vec<Value> {
    let addresses: Vec<String> = (0..count)
        .map(|n| format!("10.250.{}.{}", n / 250, 1 + n % 250))
        .collect();
    let spec = json!({ "clusterIP": ip, "ports": [{ "port": 80 }] });
    let slices = addresses.chunks(each).enumerate();
    let ports = json!([{ "port": 8080 }]);
    let slices = slices.map(|(i, some)| slice(&format!("{name}-{i}"), name, ports.clone(), some));
    [service(name, 2026, spec, &[])]
        .into_iter()
        .chain(slices)
        .collect()
}

#[test]
fn a_service_may_have_none_to_five_thousand_endpoints() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let objects = [
        many("thousands", "10.96.0.1", 5_000, 1_000),
        many("hundreds", "10.96.0.2", 5_000, 100),
        many("none", "10.96.0.3", 0, 1),
    ]
    .concat();
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let node = &world.node().netns;
    let table = Table::of(node, "ip");
    for ip in ["10.96.0.1", "10.96.0.2"] {
        let key = format!("{ip} . tcp . 80");
        let element = format!("{key} : goto cluster-5000");
        assert!(table.set("services").contains(&element));
        let endpoints = table.set("endpoints").iter();
        let endpoints: BTreeSet<&str> = endpoints
            .filter(|element| element.starts_with(&key))
            .filter_map(|element| element.split_once(" : ").map(|(_, endpoint)| endpoint))
            .collect();
        assert_eq!(endpoints.len(), 5_000, "each endpoint has a place at {ip}");
    }
    let refused = ask(
        &asker.host.netns,
        Protocol::Tcp,
        at("10.96.0.3:80"),
        PATIENCE,
    );
    assert_eq!(refused, Err(Failure::Refused));

    // One endpoint goes: its place, and the last one's. The front end goes to another chain.
    let mut fewer = objects.clone();
    fewer[1]["endpoints"].as_array_mut().unwrap().remove(0);
    world.write(&fewer);
    world
        .agent
        .wait_for_log("IPv4: 3 changes of ", MUCH_PATIENCE);
}

#[test]
fn a_service_may_have_five_hundred_ports() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let each = |port: fn(u16) -> Value| -> Vec<Value> { (0..500).map(port).collect() };
    let ports =
        each(|n| json!({ "name": format!("p-{n}"), "port": 1_000 + n, "nodePort": 30_000 + n }));
    let targets = each(|n| json!({ "name": format!("p-{n}"), "port": 8080 }));
    let spec = json!({ "type": "NodePort", "clusterIP": "10.96.0.1", "ports": ports });
    let objects = [
        service("web", 2026, spec, &[]),
        slice("web-1", "web", json!(targets), &[pod.host.v4.to_string()]),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    for port in [1_000, 1_250, 1_499] {
        let to = at(&format!("10.96.0.1:{port}"));
        expect_answers(&asker.host, Protocol::Tcp, to, &[&pod], asker.host.v4);
        let to = at(&format!("192.168.0.2:{}", port + 29_000));
        expect_answers(
            &world.cluster.client,
            Protocol::Tcp,
            to,
            &[&pod],
            world.node().v4,
        );
    }
    let to = at("10.96.0.1:1500");
    let refused = ask(&asker.host.netns, Protocol::Tcp, to, PATIENCE);
    assert_eq!(
        refused,
        Err(Failure::Refused),
        "a port that it does not have"
    );
}

#[test]
fn names_may_be_as_long_as_kubernetes_lets_them() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let [name, slice_name, port] = [63, 253, 15].map(|length| "n".repeat(length));
    let spec = json!({ "clusterIP": "10.96.0.1", "ports": [{ "name": port, "port": 80 }, { "name": "x", "port": 81 }] });
    let mut objects = [
        service(&name, 2026, spec, &[]),
        slice(
            &slice_name,
            &name,
            json!([{ "name": port, "port": 8080 }]),
            &[pod.host.v4.to_string()],
        ),
    ];
    for object in &mut objects {
        object["metadata"]["namespace"] = json!("s".repeat(63));
    }
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    expect_answers(
        &asker.host,
        Protocol::Tcp,
        at("10.96.0.1:80"),
        &[&pod],
        asker.host.v4,
    );
    // The dry run and the log show such names whole.
    objects[0]["spec"]["ports"][1]["port"] = json!(0);
    world.write(&objects);
    let full = format!("Service {}/{name}: spec.ports[1].port", "s".repeat(63));
    world.agent.wait_for_log(&full, PATIENCE);
    wait_for_answers(&asker.host, Protocol::Tcp, at("10.96.0.1:80"), &[&pod]);
}
