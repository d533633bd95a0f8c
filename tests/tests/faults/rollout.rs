//! Endpoints roll while clients call them: nobody notices, if they end as Kubernetes has them end.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proxyd_tests::apiserver::Options;
use proxyd_tests::cluster::{Cluster, Pod};
use proxyd_tests::live::Live;
use proxyd_tests::load::{Load, syns_sent_again};
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Conversation, Failure, Protocol, ask};
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::world::{PATIENCE, SILENCE};
use serde_json::{Value, json};

use crate::http_at;

const REPLICAS: usize = 10;
const CLIENTS: usize = 200;

/// Each client connects about this often.
const PACE: Duration = Duration::from_millis(200);

const PLAIN: &str = "10.96.0.1";
const STICKY: &str = "10.96.0.2";
const LOCAL: &str = "10.96.0.3";
const LOAD_BALANCER: &str = "203.0.113.80";

/// A replica, and the conditions of its endpoint.
struct Replica {
    pod: Pod,
    node: &'static str,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Replica {
    /// One that has just been started: it is in the slices, and not ready.
    fn new(cluster: &Cluster, number: usize) -> Self {
        let (node, name) = if number.is_multiple_of(2) {
            (&cluster.node1, "node-1")
        } else {
            (&cluster.node2, "node-2")
        };
        Self {
            pod: node.pod(&format!("replica-{number}")),
            node: name,
            ready: false,
            serving: false,
            terminating: false,
        }
    }

    /// It listens, and its readiness probe has succeeded.
    fn become_ready(mut self) -> Self {
        self.pod = self.pod.serving(8080);
        self.ready = true;
        self.serving = true;
        self
    }
}

/// The slices of all Services, as the endpoint-slice controller writes them.
fn slices(replicas: &[Replica]) -> Vec<Value> {
    let endpoints = replicas.iter().map(|replica| {
        json!({
            "addresses": [replica.pod.host.v4],
            "nodeName": replica.node,
            "conditions": {
                "ready": replica.ready, "serving": replica.serving, "terminating": replica.terminating,
            },
        })
    });
    let endpoints: Value = endpoints.collect();
    let of = |name| {
        let any = [(IpAddr::from([10, 1, 0, 1]), "node-1")];
        let mut slice = slice(name, &[Port::HTTP], &any);
        slice["endpoints"] = endpoints.clone();
        slice
    };
    ["plain", "sticky", "local"].map(of).into()
}

fn services() -> [Value; 3] {
    let at = |name, ip: &str| service(name, &[ip.parse().unwrap()], &[Port::HTTP]);
    let mut sticky = at("sticky", STICKY);
    sticky["spec"]["sessionAffinity"] = json!("ClientIP");
    let mut local = at("local", LOCAL);
    local["spec"]["type"] = json!("LoadBalancer");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": LOAD_BALANCER }] } });
    [at("plain", PLAIN), sticky, local]
}

/// Whether the kernel sends anybody to an address.
fn is_endpoint(live: &Live, ip: IpAddr) -> bool {
    let table = Table::of(live.node(), "ip");
    let to = format!(" : {ip} . 8080");
    table.set("endpoints").iter().any(|it| it.ends_with(&to))
}

fn update(live: &Live, replicas: &[Replica]) {
    for slice in slices(replicas) {
        live.server.update(&slice);
    }
}

#[test]
fn a_deployment_rolls_under_the_load_of_200_clients_and_none_of_them_notices() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let mut replicas: Vec<Replica> = (0..REPLICAS)
        .map(|number| Replica::new(&cluster, number).become_ready())
        .collect();
    let live = Live::new(cluster, Options::default());
    for object in services().iter().chain(&slices(&replicas)) {
        live.server.create(object);
    }
    let agent = live.start_in_sync();
    let client = &live.cluster.client;
    let [plain, sticky, local] = [PLAIN, STICKY, LOAD_BALANCER].map(http_at);
    let inside = Load::start(&asker.host, &[plain, sticky], CLIENTS / 2, PACE);
    let outside = Load::start(client, &[plain, local], CLIENTS / 2, PACE);
    inside.wait_for_round();
    outside.wait_for_round();

    for number in REPLICAS..2 * REPLICAS {
        // One more than wanted (maxSurge), and when that is ready the oldest goes.
        replicas.push(Replica::new(&live.cluster, number));
        update(&live, &replicas);
        let new = replicas.pop().unwrap().become_ready();
        let new_ip = new.pod.host.v4;
        replicas.push(new);
        update(&live, &replicas);
        eventually("the new one gets connections", PATIENCE, || {
            is_endpoint(&live, new_ip)
        });
        let old = &mut replicas[0];
        (old.ready, old.terminating) = (false, true);
        let old_ip = old.pod.host.v4;
        update(&live, &replicas);
        // Its grace: it serves until it is out of the rules, and those have come round who had found it there.
        eventually("the old one gets no more", PATIENCE, || {
            !is_endpoint(&live, old_ip)
        });
        inside.wait_for_round();
        outside.wait_for_round();
        drop(replicas.remove(0));
        update(&live, &replicas);
    }

    inside.wait_for_round();
    outside.wait_for_round();
    for (from, load, addresses) in [
        (&asker.host, inside, [plain, sticky]),
        (client, outside, [plain, local]),
    ] {
        let seen = load.finish();
        let name = &from.name;
        assert!(seen.failures.is_empty(), "{name}: {:?}", seen.failures);
        assert_eq!(syns_sent_again(from), 0, "{name}: no SYN got lost");
        println!("{name}: {} connections, none failed", seen.total());
        let [at_plain, other] = addresses.map(|address| seen.servers(address).len());
        assert_eq!(at_plain, 2 * REPLICAS, "{name}: {seen:?}");
        if addresses[1] == local {
            assert_eq!(other, REPLICAS, "half of them are on this node: {seen:?}");
        } else {
            assert!(
                other >= 2,
                "who is remembered moves on when its pod goes: {seen:?}"
            );
        }
    }
    live.expect_planned_tables();
    agent.terminate();
}

#[test]
fn clients_of_a_stateful_set_follow_its_pod_to_another_address() {
    clients_follow_to_another_address(None);
}

#[test]
fn clients_that_devices_translate_follow_a_pod_of_a_stateful_set_to_another_address() {
    clients_follow_to_another_address(Some(Sockets::of(&[])));
}

/// `db-0` comes back with another address, while something else has its old one and would answer.
fn clients_follow_to_another_address(programs: Option<Sockets>) {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let mut homes: Vec<Pod> = ["first", "second", "third", "fourth"]
        .into_iter()
        .map(|name| cluster.node2.pod(name).serving(8080))
        .collect();
    let ports = [Port::HTTP, Port::UDP];
    let ip: IpAddr = "10.96.0.1".parse().unwrap();
    let mut live = Live::new(cluster, Options::default());
    live.programs = programs;
    let mut without = slice("db-0", &ports, &[(homes[0].host.v4, "node-2")]);
    without["endpoints"] = json!([]);
    live.server.create(&service("db-0", &[ip], &ports));
    live.server.create(&without);
    let agent = live.start_in_sync();
    let to = SocketAddr::new(ip, 80);
    let clients = [&asker.host, &live.cluster.client];
    let mut udp: Vec<Conversation> = clients
        .iter()
        .zip(40_000..)
        .map(|(from, port)| {
            Conversation::open_udp_from_port(&from.netns, port, to, SILENCE).unwrap()
        })
        .collect();
    let mut longest = Duration::ZERO;
    for home in &homes {
        let name = home.host.name.as_str();
        let endpoints = [(home.host.v4, "node-2")];
        live.server.update(&slice("db-0", &ports, &endpoints));
        let begun = Instant::now();
        // Everyone tries all the time, as soon as it can.
        for (from, conversation) in clients.iter().zip(&mut udp) {
            let follows = poll(PATIENCE, || {
                let answer = conversation.ask().ok()?;
                (answer.server == name).then_some(())
            });
            assert!(
                follows.is_some(),
                "{}: the UDP client follows to {name}",
                from.name
            );
            let answer = ask(&from.netns, Protocol::Tcp, to, PATIENCE);
            assert_eq!(answer.unwrap().server, name, "{}: TCP", from.name);
        }
        longest = longest.max(begun.elapsed());
        for conversation in &mut udp {
            // No answer may get lost. One that takes long, beside other work on the machine, does not.
            conversation.set_timeout(PATIENCE);
            for _ in 0..20 {
                assert_eq!(conversation.ask().unwrap().server, name, "it stays there");
            }
            conversation.set_timeout(SILENCE);
        }
        // The pod goes before its successor is there: clients are refused, and go on trying.
        live.server.update(&without);
        eventually("nobody answers", PATIENCE, || {
            ask(&asker.host.netns, Protocol::Tcp, to, PATIENCE) == Err(Failure::Refused)
        });
        eventually(
            "the flows are not at the old address any more",
            PATIENCE,
            || {
                udp.iter_mut()
                    .all(|conversation| conversation.ask() == Err(Failure::Refused))
            },
        );
    }
    println!("all clients had followed after {longest:?} at most");
    homes.clear();
    agent.terminate();
}
