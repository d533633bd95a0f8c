//! NodePorts at 127.0.0.1 and `::1`, asked for by `--nodeport-addresses`: relayed by the agent beside its rules.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use proxyd_tests::cluster::{Cluster, Pod};
use proxyd_tests::http::get;
use proxyd_tests::traffic::{Conversation, Failure, Protocol, ask};
use proxyd_tests::web::{NODE_PORT, web};
use proxyd_tests::world::{
    PATIENCE, SILENCE, World, expect_answers, wait_for_answers, wait_for_failure,
};
use serde_json::{Value, json};

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, NODE_PORT)
}

/// A pod on each node, and the Service `web` with a NodePort for them.
struct Setup {
    world: World,
    here: Pod,
    there: Pod,
}

fn setup(addresses: &str, spec: &Value) -> Setup {
    let cluster = Cluster::new();
    let here = cluster.node1.pod("here").serving(8080);
    let there = cluster.node2.pod("there").serving(8080);
    let objects = web(&[(&here, "node-1"), (&there, "node-2")], spec);
    let args = ["--nodeport-addresses", addresses];
    let world = World::start(
        cluster,
        &objects,
        &[&args, &World::DETECT_PODS[..]].concat(),
    );
    Setup { world, here, there }
}

#[test]
fn node_ports_answer_at_localhost_in_both_families() {
    // This node calls, so endpoints elsewhere count whatever the policy says.
    let spec = json!({ "externalTrafficPolicy": "Local" });
    let setup = setup("primary,localhost", &spec);
    let node = setup.world.node();
    let pods = [&setup.here, &setup.there];
    for ip in LOOPBACK {
        wait_for_answers(node, Protocol::Tcp, at(ip), &pods);
        // The kernel's own checks are as they were.
        let udp = ask(&node.netns, Protocol::Udp, at(ip), SILENCE).unwrap_err();
        assert_eq!(udp, Failure::Refused, "{ip}: not of UDP");
    }
    for ip in [node.v4, node.v6] {
        // Beside them, the rules serve the node's own addresses.
        expect_answers(node, Protocol::Tcp, at(ip), &pods, ip);
    }
    let told = setup.world.agent.wait_for_log("serves TCP alone", PATIENCE);
    assert!(told.contains("Service default/web"), "{told}");
    let metrics = SocketAddr::new(LOOPBACK[0], 10_249);
    let text = get(&node.netns, metrics, "/metrics").unwrap().body;
    for family in ["IPv4", "IPv6"] {
        let series =
            format!("kubeproxy_nodeport_relay_connections_total{{ip_family=\"{family}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&series));
        assert!(count.unwrap().parse::<u64>().unwrap() >= 40, "{text}");
    }
    let (_, log) = setup.world.agent.terminate();
    let told = log.iter().filter(|line| line.contains("serves TCP alone"));
    assert_eq!(told.count(), 1, "{log:?}");
}

#[test]
fn only_the_families_that_were_asked_for_are_at_localhost() {
    let setup = setup("127.0.0.0/8", &json!({}));
    let node = setup.world.node();
    let pods = [&setup.here, &setup.there];
    wait_for_answers(node, Protocol::Tcp, at(LOOPBACK[0]), &pods);
    for ip in [LOOPBACK[1], node.v4] {
        let refused = ask(&node.netns, Protocol::Tcp, at(ip), SILENCE).unwrap_err();
        assert_eq!(refused, Failure::Refused, "{ip}");
    }
    setup.world.agent.terminate();
}

#[test]
fn without_endpoints_or_service_localhost_refuses_and_open_connections_go_on() {
    let setup = setup("localhost", &json!({}));
    let node = setup.world.node();
    let pods = [&setup.here, &setup.there];
    let objects = web(
        &[(&setup.here, "node-1"), (&setup.there, "node-2")],
        &json!({}),
    );
    for without in [vec![objects[0].clone()], Vec::new()] {
        setup.world.write(&objects);
        for ip in LOOPBACK {
            wait_for_answers(node, Protocol::Tcp, at(ip), &pods);
        }
        let mut open: Vec<_> = LOOPBACK
            .iter()
            .map(|ip| Conversation::open(&node.netns, Protocol::Tcp, at(*ip), PATIENCE).unwrap())
            .collect();
        for conversation in &mut open {
            conversation.ask().unwrap();
        }
        setup.world.write(&without);
        for ip in LOOPBACK {
            wait_for_failure(node, Protocol::Tcp, at(ip), Failure::Refused);
        }
        for conversation in &mut open {
            conversation.ask().unwrap();
        }
    }
    setup.world.agent.terminate();
}

#[test]
fn session_affinity_keeps_localhost_at_one_endpoint() {
    let setup = setup("localhost", &json!({ "sessionAffinity": "ClientIP" }));
    let node = setup.world.node();
    for ip in LOOPBACK {
        wait_for_failure_to_pass(&setup.world, ip);
        let first = ask(&node.netns, Protocol::Tcp, at(ip), PATIENCE).unwrap();
        for _ in 0..20 {
            let next = ask(&node.netns, Protocol::Tcp, at(ip), PATIENCE).unwrap();
            assert_eq!(next.server, first.server, "{ip}");
        }
    }
    setup.world.agent.terminate();
}

fn wait_for_failure_to_pass(world: &World, ip: IpAddr) {
    proxyd_tests::wait::eventually(&format!("{ip} answers"), PATIENCE, || {
        ask(&world.node().netns, Protocol::Tcp, at(ip), PATIENCE).is_ok()
    });
}

#[test]
fn a_port_that_is_taken_is_a_warning_until_it_is_free() {
    let cluster = Cluster::new();
    let here = cluster.node1.pod("here").serving(8080);
    let holder = cluster
        .node1
        .enter(|| TcpListener::bind(at(LOOPBACK[0])).unwrap());
    let objects = web(&[(&here, "node-1")], &json!({}));
    let args = ["--nodeport-addresses", "localhost"];
    let world = World::start(cluster, &objects, &args);
    let told = world
        .agent
        .wait_for_log("NodePort at the loopback address", PATIENCE);
    assert!(
        told.contains("WARN")
            && told.contains("127.0.0.1:30080")
            && told.contains("another process"),
        "{told}"
    );
    // The other family is served all the same.
    wait_for_answers(world.node(), Protocol::Tcp, at(LOOPBACK[1]), &[&here]);
    drop(holder);
    wait_for_answers(world.node(), Protocol::Tcp, at(LOOPBACK[0]), &[&here]);
    world.agent.wait_for_log("is there after all", PATIENCE);
    world.agent.terminate();
}

/// A client that says all and then reads, as `nc -N` does.
#[test]
fn a_half_closed_connection_still_gets_its_answer() {
    let setup = setup("localhost", &json!({}));
    let node = setup.world.node();
    for ip in LOOPBACK {
        wait_for_failure_to_pass(&setup.world, ip);
        let answer = node.enter(|| {
            let mut stream = TcpStream::connect(at(ip)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"who?\n").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.contains("here"), "{ip}: {answer:?}");
    }
    setup.world.agent.terminate();
}
