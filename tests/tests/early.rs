//! Clients that call an address just before a Service has it: their retries are served. Connections that were open before go on.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::netns::Netns;
use proxyd_tests::netns::link;
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Conversation, Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World};
use serde_json::{Value, json};

const CLUSTER_IPS: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];
const LOAD_BALANCER_IPS: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];
const EXTERNAL_IPS: [&str; 2] = ["198.51.100.80", "2001:db8:51::80"];

/// The state of a socket of TCP whose SYN nobody has answered, as `/proc/net/tcp` has it.
const SYN_SENT: &str = "02";

fn ips(all: [&str; 2]) -> [IpAddr; 2] {
    all.map(|ip| ip.parse().unwrap())
}

/// The Service `web` in both families, everywhere where a Service can be called but at NodePorts.
fn web(port: Port, pod: &Pod, node: &str) -> Vec<Value> {
    let mut web = service("web", &ips(CLUSTER_IPS), &[port]);
    let ingress = LOAD_BALANCER_IPS.map(|ip| json!({ "ip": ip }));
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["externalIPs"] = json!(EXTERNAL_IPS);
    web["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    let of = |ip: IpAddr| slice("web", &[port], &[(ip, node)]);
    let mut v6 = of(pod.host.v6);
    v6["metadata"]["name"] = "web-6".into();
    vec![web, of(pod.host.v4), v6]
}

/// How many sockets of a namespace wait for an answer to their SYN.
fn waiting(netns: &Netns) -> usize {
    let count = |file: &str| {
        let listed = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let states = listed.lines().map(|line| line.split_whitespace().nth(3));
        states.filter(|state| *state == Some(SYN_SENT)).count()
    };
    netns.enter(|| count("tcp") + count("tcp6"))
}

/// Connects from these hosts to every address of `web` before it is there; all are answered.
fn early_clients_are_served(world: &World, clients: &[&Host], here: &Pod) {
    let node = world.node();
    let nobody = world.cluster.node1.pod("nobody");
    // What is no Service's goes to somebody who does not answer.
    for address in [CLUSTER_IPS, LOAD_BALANCER_IPS, EXTERNAL_IPS]
        .iter()
        .flatten()
    {
        let ip: IpAddr = address.parse().unwrap();
        link::add_route(&node.netns, ip.into(), nobody.host.own(ip)).unwrap();
    }
    let addresses = [CLUSTER_IPS, LOAD_BALANCER_IPS, EXTERNAL_IPS]
        .into_iter()
        .flatten();
    let addresses: Vec<_> = addresses
        .map(|ip| SocketAddr::new(ip.parse().unwrap(), 80))
        .collect();
    thread::scope(|scope| {
        let early = clients.iter().flat_map(|from| {
            addresses.iter().map(|to| {
                let open = || Conversation::open(&from.netns, Protocol::Tcp, *to, PATIENCE);
                (*from, *to, scope.spawn(open))
            })
        });
        let early: Vec<_> = early.collect();
        eventually("all have called, and nobody answers", PATIENCE, || {
            let waits = |host: &&Host| waiting(&host.netns) == addresses.len();
            clients.iter().all(waits)
        });
        world.write(&web(Port::HTTP, here, "node-1"));
        for (from, to, opened) in early {
            let mut opened = opened
                .join()
                .unwrap()
                .unwrap_or_else(|failure| panic!("{} → {to}: {failure}", from.name));
            assert_eq!(opened.ask().unwrap().server, "here", "{} → {to}", from.name);
        }
    });
}

#[test]
fn who_called_before_the_service_was_there_is_served_when_it_tries_again() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let here = cluster.node1.pod("here").serving(8080);
    let world = World::start(cluster, &[], &World::DETECT_PODS);
    let clients = [&asker.host, &world.cluster.client, world.node()];
    early_clients_are_served(&world, &clients, &here);
}

/// Sockets of the node itself were connected before there was anything to balance, and no device translates what the node sends.
#[test]
fn who_called_before_the_service_was_there_is_served_by_programs_too() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let here = cluster.node1.pod("here").serving(8080);
    let sockets = Sockets::of(&[&cluster.node1.host.netns, &asker.host.netns]);
    let args = [&World::DETECT_PODS[..], &sockets.args()].concat();
    let world = World::start(cluster, &[], &args);
    let clients = [&asker.host, &world.cluster.client];
    early_clients_are_served(&world, &clients, &here);
}

#[test]
fn a_connection_to_who_had_the_address_before_goes_on() {
    let port = Port {
        port: 8080,
        ..Port::HTTP
    };
    let cluster = Cluster::new();
    let before = cluster.node1.pod("before").serving(8080);
    let here = cluster.node1.pod("here").serving(8080);
    let node = &cluster.node1.host;
    for ip in ips(LOAD_BALANCER_IPS) {
        link::add_address(&before.host.netns, "lo", ip.into()).unwrap();
        link::add_route(&node.netns, ip.into(), before.host.own(ip)).unwrap();
    }
    let world = World::start(cluster, &[], &World::DETECT_PODS);
    let client = &world.cluster.client;
    let to = ips(LOAD_BALANCER_IPS).map(|ip| SocketAddr::new(ip, 8080));
    let mut open =
        to.map(|to| Conversation::open(&client.netns, Protocol::Tcp, to, PATIENCE).unwrap());
    for conversation in &mut open {
        assert_eq!(conversation.ask().unwrap().server, "before");
    }
    world.write(&web(port, &here, "node-1"));
    world.agent.wait_for_log("tracked flows: deleted", PATIENCE);
    for (conversation, to) in open.iter_mut().zip(to) {
        assert_eq!(conversation.ask().unwrap().server, "before", "{to}");
        let new = ask(&client.netns, Protocol::Tcp, to, PATIENCE);
        assert_eq!(new.unwrap().server, "here", "{to}");
    }
}
