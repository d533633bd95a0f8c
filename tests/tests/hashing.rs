//! Consistent hashing (`--backend ebpf`): nodes that know nothing of each other choose the same endpoint for a client outside.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;

use proxyd_tests::agent::{Agent, run_once};
use proxyd_tests::cluster::{Cluster, Node, Pod};
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Protocol, ask_from_port};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World, start_agent};
use serde_json::{Value, json};

const NODE_PORT: u16 = 30080;
const STICKY_PORT: u16 = 30090;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Two Services in both families, at nodes: one balances every connection, the other one keeps clients.
fn objects(pods: &[(&Pod, &str)]) -> Vec<Value> {
    let services = [
        ("web", ["10.96.0.80", "fd00:10:96::80"], NODE_PORT, "None"),
        (
            "sticky",
            ["10.96.0.90", "fd00:10:96::90"],
            STICKY_PORT,
            "ClientIP",
        ),
    ];
    let mut objects = Vec::new();
    for (name, ips, node_port, affinity) in services {
        let ips = ips.map(|ip| ip.parse().unwrap());
        let ports = [
            Port::HTTP.at_nodes(node_port),
            Port::UDP.at_nodes(node_port),
        ];
        let mut service = service(name, &ips, &ports);
        service["spec"]["sessionAffinity"] = json!(affinity);
        objects.push(service);
        objects.extend(ips.map(|ip| {
            let endpoints = pods.iter().map(|(pod, node)| (pod.host.own(ip), *node));
            slice(name, &ports, &endpoints.collect::<Vec<_>>())
        }));
    }
    objects
}

/// Who answers, for each way to ask.
type Answers = BTreeMap<(Protocol, bool, u16), String>;

/// Asks a node from each of these ports, by both protocols and in both families.
fn ask_node(cluster: &Cluster, node: &Node, node_port: u16, from: Range<u16>) -> Answers {
    let mut answers = Answers::new();
    for protocol in PROTOCOLS {
        for (ip, is_v4) in [(node.host.v4, true), (node.host.v6, false)] {
            let to = SocketAddr::new(ip, node_port);
            for port in from.clone() {
                let answer = ask_from_port(&cluster.client.netns, port, protocol, to, PATIENCE);
                let answer = answer.unwrap_or_else(|failure| {
                    panic!("from port {port} to {to} {protocol}: {failure}")
                });
                // The node's own address: it is the node that chose.
                assert_eq!(answer.seen.ip(), ip, "{answer:?}");
                answers.insert((protocol, is_v4, port), answer.server);
            }
        }
    }
    answers
}

/// Waits until an agent has made and removed so many tables since its start.
#[track_caller]
fn wait_for_tables(agent: &Agent, made: usize, removed: usize) {
    let is_done = || {
        let mut sums = [0; 2];
        for line in agent.log() {
            let Some((_, counts)) = line.split_once("hash tables: ") else {
                continue;
            };
            let numbers = counts
                .split(' ')
                .filter_map(|word| word.parse::<usize>().ok());
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum += number;
            }
        }
        sums[0] >= made && sums[1] >= removed
    };
    let what = format!("{made} tables are made and {removed} removed");
    eventually(&what, PATIENCE, is_done);
}

#[test]
fn nodes_choose_alike_whatever_they_saw_before() {
    let cluster = Cluster::new();
    let pods = ["a", "b", "c", "d", "e"].map(|name| cluster.node1.pod(name).serving(8080));
    let all: Vec<_> = pods.iter().map(|pod| (pod, "node-1")).collect();
    let sockets = [(); 2].map(|()| Sockets::of(&[]));
    let args = |number: usize| [&World::DETECT_PODS[..], &sockets[number].args()].concat();

    // The first node learns of one endpoint later, so it has that in another place than the other node, which is told of all.
    let mut world = World::start(cluster, &objects(&all[1..]), &args(0));
    wait_for_tables(&world.agent, 2, 0);
    world.write(&objects(&all));
    wait_for_tables(&world.agent, 4, 2);
    let mut other = start_agent(&world.cluster.node2.host, &world.manifests, &args(1));
    wait_for_tables(&other, 2, 0);
    let both = |world: &World, port, from: Range<u16>| {
        let nodes = [&world.cluster.node1, &world.cluster.node2];
        nodes.map(|node| ask_node(&world.cluster, node, port, from.clone()))
    };
    let servers = |answers: &Answers| answers.values().cloned().collect::<BTreeSet<_>>();
    let [one, two] = both(&world, NODE_PORT, 40_000..40_025);
    assert_eq!(one, two);
    assert_eq!(servers(&one).len(), pods.len());

    // A client that keeps its endpoint has the same one at all nodes, whatever it asks from; of each port of the Service, in each
    // family, its own.
    let [one, two] = both(&world, STICKY_PORT, 41_000..41_005);
    assert_eq!(one, two);
    let families = PROTOCOLS.map(|protocol| [true, false].map(|is_v4| (protocol, is_v4)));
    for family in families.concat() {
        let of = |((protocol, is_v4, _), server): (&(Protocol, bool, u16), &String)| {
            ((*protocol, *is_v4) == family).then(|| server.clone())
        };
        assert_eq!(one.iter().filter_map(of).collect::<BTreeSet<_>>().len(), 1);
    }

    // One endpoint goes: who had another one keeps it, asking from the same ports as before at a node that has forgotten them.
    let [before, _] = both(&world, NODE_PORT, 42_000..42_050);
    world.write(&objects(&all[..4]));
    wait_for_tables(&world.agent, 6, 4);
    other.terminate();
    let cleanup = |number: usize, node: &Node| {
        let args = [&["--cleanup"], &sockets[number].args()[2..]].concat();
        assert!(run_once(&node.host.netns, &args).status.success());
    };
    cleanup(1, &world.cluster.node2);
    other = start_agent(&world.cluster.node2.host, &world.manifests, &args(1));
    wait_for_tables(&other, 2, 0);
    let after = ask_node(
        &world.cluster,
        &world.cluster.node2,
        NODE_PORT,
        42_000..42_050,
    );
    let kept = before.iter().filter(|(_, server)| *server != "e");
    let moved = kept.clone().filter(|(way, server)| after[way] != **server);
    println!(
        "{} of {} flows to other endpoints moved",
        moved.clone().count(),
        kept.count()
    );
    assert!(moved.count() <= 1);
    assert!(!servers(&after).contains("e"));

    // Tables of another size take the place of those that are there.
    let other_size = ["--maglev-table-size", "251"];
    world = world.restart(&[&args(0)[..], &other_size].concat());
    wait_for_tables(&world.agent, 2, 2);
    other.terminate();
    other = start_agent(
        &world.cluster.node2.host,
        &world.manifests,
        &[&args(1)[..], &other_size].concat(),
    );
    wait_for_tables(&other, 2, 0);
    let [one, two] = both(&world, NODE_PORT, 43_000..43_025);
    assert_eq!(one, two);
    other.terminate();
}
