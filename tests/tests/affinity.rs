//! Session affinity: a client keeps its endpoint, for as long as it should and no longer.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use proxyd_tests::agent::nft;
use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Stage;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::{Addresses, PORT, Svc, addresses, objects};
use proxyd_tests::traffic::{Protocol, ask};
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];
const ALL: &str = "here here2 there there2";
const FAMILIES: [usize; 2] = [0, 1];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// How often a client asks where the same server must answer each time: one of four does so by chance once in 16,000.
const QUESTIONS: usize = 8;

/// A Service whose clients keep their endpoint for so many seconds, with more fields in its `spec`.
fn sticky(seconds: u32, endpoints: &str, more: Value) -> Svc {
    let mut spec = json!({
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
    });
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    Svc::new("sticky", spec, endpoints)
}

fn stage(service: Svc) -> Stage {
    let cast = Cast::new();
    // Its answers from node-2 come back the way that its questions went.
    cast.cluster.return_by_node1(cast.host("pod-3"));
    let objects = objects(&[service], &cast);
    Stage::new(cast, &objects, ARGS)
}

/// One of the Service's addresses.
fn at(family: usize, pick: fn(Addresses) -> std::net::IpAddr) -> SocketAddr {
    SocketAddr::new(pick(addresses(1, family)), PORT)
}

fn cluster_ip(family: usize) -> SocketAddr {
    at(family, |addresses| addresses.cluster)
}

/// Who answers.
#[track_caller]
fn server(stage: &Stage, from: &str, protocol: Protocol, to: SocketAddr) -> String {
    let answer = ask(&stage.cast.host(from).netns, protocol, to, PATIENCE);
    answer
        .unwrap_or_else(|failure| panic!("{from} → {to} {protocol}: {failure}"))
        .server
}

/// Who answers, each time.
#[track_caller]
fn same_server(stage: &Stage, from: &str, protocol: Protocol, to: SocketAddr) -> String {
    let first = server(stage, from, protocol, to);
    for _ in 1..QUESTIONS {
        assert_eq!(
            server(stage, from, protocol, to),
            first,
            "{from} → {to} {protocol}"
        );
    }
    first
}

/// Whether the kernel remembers nobody.
fn nobody_is_remembered(stage: &Stage) -> bool {
    ["ip", "ip6"].into_iter().all(|family| {
        let text = nft(
            &stage.cast.host("node-1").netns,
            &["list", "map", family, "proxyd", "affinity"],
            "",
        );
        !text.contains("elements")
    })
}

#[test]
fn a_client_keeps_its_endpoint_at_every_address() {
    let stage = stage(sticky(100, ALL, json!({})));
    for family in FAMILIES {
        let node_port = SocketAddr::new(
            stage.cast.address("node-1", family),
            addresses(1, family).node_port,
        );
        let kinds = [
            cluster_ip(family),
            at(family, |addresses| addresses.load_balancer),
            at(family, |addresses| addresses.external),
            node_port,
        ];
        for protocol in PROTOCOLS {
            for to in kinds {
                for from in ["pod", "client", "node-1", "here"] {
                    same_server(&stage, from, protocol, to);
                }
            }
        }
    }
}

#[test]
fn clients_are_spread_over_the_endpoints() {
    let stage = stage(sticky(100, ALL, json!({})));
    // Each family and protocol is remembered for itself, so a client is as good as another one there.
    let clients = ["pod", "client", "node-1", "here", "here2", "pod-3"];
    let ways = FAMILIES.into_iter();
    let ways = ways.flat_map(|family| PROTOCOLS.map(|protocol| (protocol, cluster_ip(family))));
    let calls = ways.flat_map(|(protocol, to)| clients.map(|from| (from, protocol, to)));
    let mut servers: Vec<String> = calls
        .map(|(from, protocol, to)| server(&stage, from, protocol, to))
        .collect();
    servers.sort();
    servers.dedup();
    assert!(servers.len() > 1, "24 clients have one server: {servers:?}");
}

#[test]
fn a_client_outside_keeps_a_local_endpoint_with_policy_local() {
    let stage = stage(sticky(
        100,
        ALL,
        json!({ "externalTrafficPolicy": "Local" }),
    ));
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let to = at(family, |addresses| addresses.load_balancer);
            let local = same_server(&stage, "client", protocol, to);
            assert!(["here", "here2"].contains(&local.as_str()), "{local}");
            same_server(&stage, "pod", protocol, to);
            same_server(&stage, "node-1", protocol, to);
        }
    }
}

#[test]
fn every_connection_begins_the_time_anew_and_then_it_ends() {
    let timeout = Duration::from_secs(3);
    let stage = stage(sticky(3, ALL, json!({})));
    for family in FAMILIES {
        let to = cluster_ip(family);
        let first = server(&stage, "pod", Protocol::Tcp, to);
        let begun = Instant::now();
        while begun.elapsed() < timeout * 2 {
            assert_eq!(
                server(&stage, "pod", Protocol::Tcp, to),
                first,
                "{:?} after the first",
                begun.elapsed()
            );
        }
        // Without a connection it is forgotten, and sooner or later another server is chosen.
        let moved = poll(PATIENCE * 6, || {
            eventually("nobody is remembered", PATIENCE, || {
                nobody_is_remembered(&stage)
            });
            (server(&stage, "pod", Protocol::Tcp, to) != first).then_some(())
        });
        assert!(moved.is_some(), "{first} answers after every pause");
    }
}

#[test]
fn a_restart_of_the_agent_forgets_nobody() {
    let mut stage = stage(sticky(100, ALL, json!({})));
    let calls = FAMILIES
        .into_iter()
        .flat_map(|family| PROTOCOLS.map(|protocol| (protocol, cluster_ip(family))));
    let calls: Vec<_> = calls
        .flat_map(|(protocol, to)| ["pod", "client"].map(|from| (from, protocol, to)))
        .collect();
    let before: Vec<String> = calls
        .iter()
        .map(|(from, protocol, to)| same_server(&stage, from, *protocol, *to))
        .collect();
    stage = stage.restart(ARGS);
    let after: Vec<String> = calls
        .iter()
        .map(|(from, protocol, to)| same_server(&stage, from, *protocol, *to))
        .collect();
    assert_eq!(before, after);
}

#[test]
fn a_client_moves_when_its_endpoint_goes_and_the_others_stay() {
    let stage = stage(sticky(100, ALL, json!({})));
    for family in FAMILIES {
        let clients = ["pod", "client", "node-1", "pod-3"];
        let to = cluster_ip(family);
        let servers = clients.map(|from| same_server(&stage, from, Protocol::Tcp, to));
        let lost = &servers[0];
        let left: Vec<&str> = ALL.split(' ').filter(|name| name != lost).collect();
        stage.write(&[sticky(100, &left.join(" "), json!({}))]);
        eventually("the first client moves", PATIENCE, || {
            server(&stage, "pod", Protocol::Tcp, to) != *lost
        });
        for (from, before) in clients.iter().zip(&servers) {
            let now = same_server(&stage, from, Protocol::Tcp, to);
            assert_ne!(now, *lost, "{from}");
            assert!(
                before == lost || now == *before,
                "{from} had {before} and has {now}"
            );
        }
        // It does not go back when the endpoint does.
        let moved = same_server(&stage, "pod", Protocol::Tcp, to);
        stage.write(&[sticky(100, ALL, json!({}))]);
        let elements = ["list", "map", ["ip", "ip6"][family], "proxyd", "services"];
        eventually("four endpoints are there again", PATIENCE, || {
            nft(&stage.cast.host("node-1").netns, &elements, "").contains("cluster-4-sticky")
        });
        assert_eq!(same_server(&stage, "pod", Protocol::Tcp, to), moved);
    }
}

#[test]
fn an_endpoint_that_went_while_no_agent_was_there_is_not_used() {
    let mut stage = stage(sticky(100, ALL, json!({})));
    let calls = FAMILIES.map(cluster_ip);
    let lost = calls.map(|to| same_server(&stage, "pod", Protocol::Tcp, to));
    let left: Vec<&str> = ALL
        .split(' ')
        .filter(|name| !lost.iter().any(|lost| lost == name))
        .collect();
    let stopped = stage.agent.pid();
    stage = stage.restart_with(&[sticky(100, &left.join(" "), json!({}))], ARGS);
    assert_ne!(stage.agent.pid(), stopped);
    for (to, lost) in calls.into_iter().zip(lost) {
        assert_ne!(same_server(&stage, "pod", Protocol::Tcp, to), lost);
    }
}

#[test]
fn all_are_forgotten_when_affinity_ends() {
    let stage = stage(sticky(1000, ALL, json!({})));
    let calls: Vec<_> = FAMILIES
        .into_iter()
        .flat_map(|family| PROTOCOLS.map(|protocol| (protocol, cluster_ip(family))))
        .collect();
    for (protocol, to) in &calls {
        same_server(&stage, "pod", *protocol, *to);
    }
    assert!(!nobody_is_remembered(&stage));
    stage.write(&[Svc::new("sticky", json!({}), ALL)]);
    eventually("nobody is remembered", PATIENCE, || {
        nobody_is_remembered(&stage)
    });
    for (protocol, to) in calls {
        let answered = poll(PATIENCE, || {
            let servers: Vec<String> = (0..QUESTIONS)
                .map(|_| server(&stage, "pod", protocol, to))
                .collect();
            (servers.iter().any(|server| *server != servers[0])).then_some(())
        });
        assert!(answered.is_some(), "{to} {protocol} has one server still");
    }
    assert!(nobody_is_remembered(&stage), "and nobody is any more");
}

#[test]
fn clients_are_remembered_while_many_come_and_endpoints_change() {
    // Endpoints come and go on one Service while clients of another keep theirs.
    let cast = Cast::new();
    let other =
        |endpoints: &str| Svc::new("other", json!({ "sessionAffinity": "ClientIP" }), endpoints);
    let services = |endpoints: &str| [sticky(100, ALL, json!({})), other(endpoints)];
    let first = objects(&services(ALL), &cast);
    let stage = Stage::new(cast, &first, ARGS);
    let to = cluster_ip(1);
    let kept = same_server(&stage, "client", Protocol::Udp, to);
    let others = SocketAddr::new(addresses(2, 1).cluster, PORT);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for _ in 0..200 {
                assert_eq!(server(&stage, "client", Protocol::Udp, to), kept);
            }
        });
        let mut round = 0;
        while !asking.is_finished() {
            round += 1;
            stage.write(&services(["here there", "here2 there2"][round % 2]));
            let wanted = [["here", "there"], ["here2", "there2"]][round % 2];
            eventually("the other Service has moved", PATIENCE, || {
                wanted.contains(&server(&stage, "pod", Protocol::Tcp, others).as_str())
            });
        }
    });
}

#[test]
fn an_endpoint_of_the_node_itself_is_remembered_too() {
    let stage = stage(sticky(100, "node-1 there", json!({})));
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            // With sixteen clients, the node is among the chosen but for once in 65,000.
            let kinds = [
                cluster_ip(family),
                at(family, |addresses| addresses.load_balancer),
                at(family, |addresses| addresses.external),
            ];
            for to in kinds {
                for from in ["pod", "client", "here2", "here"] {
                    same_server(&stage, from, protocol, to);
                }
            }
        }
    }
}

#[test]
fn a_client_that_gets_no_answers_moves_too() {
    let stage = stage(sticky(100, "here there", json!({})));
    for family in FAMILIES {
        let to = cluster_ip(family);
        let first = server(&stage, "pod", Protocol::Udp, to);
        // It sends on and on from one port, and nobody answers: its flow stays new, and is kept for its time.
        let pod = &stage.cast.host("pod").netns;
        let any: std::net::IpAddr = if to.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = pod.enter(|| std::net::UdpSocket::bind((any, 0))).unwrap();
        let silent = SocketAddr::new(to.ip(), PORT);
        socket.connect(silent).unwrap();
        let left = if first == "here" { "there" } else { "here" };
        let stop = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Refusals of datagrams before are of no interest.
                    drop(socket.send(b""));
                    thread::yield_now();
                }
            });
            stage.write(&[sticky(100, left, json!({}))]);
            let map = ["list", "map", ["ip", "ip6"][family], "proxyd", "affinity"];
            let lost = stage.cast.address(&first, family).to_string();
            eventually("the endpoint that went is forgotten", PATIENCE, || {
                !nft(&stage.cast.host("node-1").netns, &map, "").contains(&format!(": {lost} . "))
            });
            let answered = server(&stage, "pod", Protocol::Udp, to);
            let again =
                nft(&stage.cast.host("node-1").netns, &map, "").contains(&format!(": {lost} . "));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(answered, left);
            assert!(!again, "{lost} is remembered again");
        });
        stage.write(&[sticky(100, "here there", json!({}))]);
        eventually("both are there again", PATIENCE, || {
            let services = ["list", "map", ["ip", "ip6"][family], "proxyd", "services"];
            nft(&stage.cast.host("node-1").netns, &services, "").contains("cluster-2-sticky")
        });
    }
}

#[test]
fn rules_do_not_wait_for_clients_that_expire_while_they_are_forgotten() {
    let stage = stage(sticky(1000, ALL, json!({})));
    let node = &stage.cast.host("node-1").netns;
    // Many clients, of which some expire at every moment.
    let clients = (0..20_000_u32).map(|number| {
        let (ip, milliseconds) = (
            std::net::Ipv4Addr::from_bits(0x0b00_0000 + number),
            500 + number % 20_000,
        );
        let to = addresses(1, 0).cluster;
        let endpoint = stage.cast.address("here", 0);
        format!("{ip} . {to} . tcp . 80 timeout {milliseconds}ms : {endpoint} . 8080")
    });
    let clients: Vec<String> = clients.collect();
    nft(
        node,
        &["-f", "-"],
        &format!(
            "add element ip proxyd affinity {{ {} }}",
            clients.join(", ")
        ),
    );
    // They lose their endpoint, and another Service comes at once.
    let other = Svc::new("other", json!({}), "there");
    stage.write(&[sticky(1000, "here2 there there2", json!({})), other]);
    let begun = Instant::now();
    let to = SocketAddr::new(addresses(2, 0).cluster, PORT);
    let there = poll(PATIENCE, || {
        ask(&stage.cast.host("pod").netns, Protocol::Tcp, to, PATIENCE).ok()
    });
    assert!(
        there.is_some(),
        "the other Service is not there after {:?}",
        begun.elapsed()
    );
    let gone = format!(": {} . 8080", stage.cast.address("here", 0));
    eventually("all are forgotten", PATIENCE, || {
        !nft(node, &["list", "map", "ip", "proxyd", "affinity"], "").contains(&gone)
    });
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "they were forgotten, not expired"
    );
    assert!(
        !stage
            .agent
            .log()
            .iter()
            .any(|line| line.contains("not in sync"))
    );
}
