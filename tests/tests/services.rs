//! Services under real traffic: who answers a connection, and whom the server saw.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::netns::link;
use proxyd_tests::objects::{Port, empty_slice, service, slice};
use proxyd_tests::traffic::{Conversation, EchoServer, Failure, Protocol, ask, ask_from_port};
use proxyd_tests::world::{PATIENCE, World, expect_answers, wait_for_answers, wait_for_failure};
use serde_json::Value;

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const NODE_PORT: u16 = 30080;
const PORTS: [Port; 2] = [
    Port::HTTP.at_nodes(NODE_PORT),
    Port::UDP.at_nodes(NODE_PORT),
];

fn cluster_ips() -> [IpAddr; 2] {
    [
        "10.96.0.80".parse().unwrap(),
        "fd00:10:96::80".parse().unwrap(),
    ]
}

/// A Service `web` in both families, TCP and UDP, with these endpoints.
fn web(pods: &[(&Pod, &str)]) -> Vec<Value> {
    let of = |address: fn(&Pod) -> IpAddr| {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|(pod, node)| (address(pod), *node))
            .collect();
        slice("web", &PORTS, &endpoints)
    };
    vec![
        service("web", &cluster_ips(), &PORTS),
        of(|pod| pod.host.v4),
        of(|pod| pod.host.v6),
    ]
}

/// Calls `check` with the ClusterIP and the families' index, for both families and protocols.
fn each_way(mut check: impl FnMut(usize, Protocol, SocketAddr)) {
    for (family, ip) in cluster_ips().into_iter().enumerate() {
        for protocol in PROTOCOLS {
            check(family, protocol, SocketAddr::new(ip, 80));
        }
    }
}

fn address(host: &Host, family: usize) -> IpAddr {
    [host.v4, host.v6][family]
}

/// A cluster with a pod that asks, a pod here and a pod on the other node that answer, and the Service `web`.
struct Setup {
    world: World,
    asker: Pod,
    here: Pod,
    there: Pod,
}

fn setup(args: &[&str]) -> Setup {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let here = cluster.node1.pod("here").serving(8080);
    let there = cluster.node2.pod("there").serving(8080);
    let objects = web(&[(&here, "node-1"), (&there, "node-2")]);
    let world = World::start(cluster, &objects, args);
    Setup {
        world,
        asker,
        here,
        there,
    }
}

#[test]
fn a_cluster_ip_reaches_every_endpoint_and_keeps_a_pods_address() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(&World::DETECT_PODS);
    let pods = [&here, &there];
    each_way(|family, protocol, to| {
        let node = address(world.node(), family);
        expect_answers(
            &asker.host,
            protocol,
            to,
            &pods,
            address(&asker.host, family),
        );
        expect_answers(world.node(), protocol, to, &pods, node);
        expect_answers(&world.cluster.client, protocol, to, &pods, node);
    });
}

#[test]
fn without_a_detector_a_cluster_ip_keeps_every_source() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    // An endpoint on the other node would answer the client past this one.
    let here = cluster.node1.pod("here").serving(8080);
    let world = World::start(cluster, &web(&[(&here, "node-1")]), &[]);
    each_way(|family, protocol, to| {
        for from in [&asker.host, &world.cluster.client] {
            expect_answers(from, protocol, to, &[&here], address(from, family));
        }
    });
}

#[test]
fn a_node_port_reaches_every_endpoint_masqueraded_from_everywhere() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(&World::DETECT_PODS);
    let pods = [&here, &there];
    each_way(|family, protocol, _| {
        let node = address(world.node(), family);
        let to = SocketAddr::new(node, NODE_PORT);
        expect_answers(&world.cluster.client, protocol, to, &pods, node);
        expect_answers(&asker.host, protocol, to, &pods, node);
        expect_answers(world.node(), protocol, to, &pods, node);
    });
    let loopback = SocketAddr::new("127.0.0.1".parse().unwrap(), NODE_PORT);
    let refused = ask(&world.node().netns, Protocol::Tcp, loopback, PATIENCE);
    assert_eq!(
        refused,
        Err(Failure::Refused),
        "loopback addresses have no NodePorts"
    );
}

/// BPF programs masquerade with the ports from 61000 up, beside the rules, before or after them. Servers that trust low
/// ports see one where the client has one.
#[test]
fn masqueraded_clients_get_ports_that_programs_leave_alone() {
    let setup = setup(&World::DETECT_PODS);
    let client = &setup.world.cluster.client.netns;
    each_way(|family, protocol, _| {
        let to = SocketAddr::new(address(setup.world.node(), family), NODE_PORT);
        // Of 300 ports out of all, none would be above 60999 once in three thousand million runs.
        for _ in 0..300 {
            let port = ask(client, protocol, to, PATIENCE).unwrap().seen.port();
            assert!((1_024..61_000).contains(&port), "{to} {protocol}: {port}");
        }
        let low = ask_from_port(client, 700, protocol, to, PATIENCE).unwrap();
        assert!(low.seen.port() < 1_024, "{to} {protocol}: {low:?}");
    });
}

#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    let cluster = Cluster::new();
    let alone = cluster.node1.pod("alone").serving(8080);
    let world = World::start(cluster, &web(&[(&alone, "node-1")]), &World::DETECT_PODS);
    each_way(|family, protocol, to| {
        // The address of the node that the pod's link has.
        let answer = ask(&alone.host.netns, protocol, to, PATIENCE).unwrap();
        assert_eq!(answer.server, "alone");
        assert_ne!(
            answer.seen.ip(),
            address(&alone.host, family),
            "{to} {protocol}"
        );
    });
    drop(world);
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let objects = [service("web", &cluster_ips(), &PORTS), empty_slice("web")];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    each_way(|family, protocol, to| {
        let node_port = SocketAddr::new(address(world.node(), family), NODE_PORT);
        for from in [&asker.host, world.node(), &world.cluster.client] {
            for to in [to, node_port] {
                let result = ask(&from.netns, protocol, to, PATIENCE);
                // A local UDP socket hears of it from the kernel itself, before any packet leaves.
                let result = result.map_err(|failure| match failure {
                    Failure::Other(ErrorKind::PermissionDenied) if from.name == "node-1" => {
                        Failure::Refused
                    }
                    other => other,
                });
                assert_eq!(
                    result,
                    Err(Failure::Refused),
                    "{} → {to} {protocol}",
                    from.name
                );
            }
        }
    });
}

#[test]
fn connections_follow_endpoints_as_they_come_and_go() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(&World::DETECT_PODS);
    let third = world.cluster.node1.pod("third").serving(8080);
    let wait = |pods: &[&Pod]| {
        each_way(|_, protocol, to| wait_for_answers(&asker.host, protocol, to, pods));
    };
    wait(&[&here, &there]);
    world.write(&web(&[
        (&here, "node-1"),
        (&there, "node-2"),
        (&third, "node-1"),
    ]));
    wait(&[&here, &there, &third]);
    world.write(&web(&[(&third, "node-1")]));
    wait(&[&third]);

    world.write(&[service("web", &cluster_ips(), &PORTS), empty_slice("web")]);
    each_way(|_, protocol, to| wait_for_failure(&asker.host, protocol, to, Failure::Refused));
    world.write(&web(&[(&here, "node-1")]));
    wait(&[&here]);
    world.write(&[]);
    let host_unreachable = Failure::Other(ErrorKind::HostUnreachable);
    let to = SocketAddr::new(cluster_ips()[0], 80);
    wait_for_failure(&asker.host, Protocol::Tcp, to, host_unreachable);
}

#[test]
fn an_established_connection_outlives_its_endpoint_in_the_service() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(&World::DETECT_PODS);
    let to = SocketAddr::new(cluster_ips()[0], 80);
    let mut conversations: Vec<Conversation> = (0..10)
        .map(|_| Conversation::open(&asker.host.netns, Protocol::Tcp, to, PATIENCE).unwrap())
        .collect();
    let before: Vec<String> = conversations
        .iter_mut()
        .map(|c| c.ask().unwrap().server)
        .collect();
    world.write(&web(&[(&there, "node-2")]));
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&there]);
    let after: Vec<String> = conversations
        .iter_mut()
        .map(|c| c.ask().unwrap().server)
        .collect();
    assert_eq!(before, after);
    drop(here);
}

#[test]
fn tcp_and_udp_of_one_port_may_have_different_endpoints() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let tcp = cluster.node1.pod("tcp").serving(5300);
    let udp = cluster.node2.pod("udp").serving(5353);
    let ports = [
        Port {
            name: "dns-tcp",
            port: 53,
            target: 5300,
            ..Port::HTTP
        },
        Port {
            name: "dns",
            port: 53,
            target: 5353,
            ..Port::UDP
        },
    ];
    let dns = [cluster_ips()[0]];
    let mut of_udp = slice("dns", &ports[1..], &[(udp.host.v4, "node-2")]);
    of_udp["metadata"]["name"] = "dns-udp".into();
    let objects = [
        service("dns", &dns, &ports),
        slice("dns", &ports[..1], &[(tcp.host.v4, "node-1")]),
        of_udp,
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let to = SocketAddr::new(dns[0], 53);
    expect_answers(&asker.host, Protocol::Tcp, to, &[&tcp], asker.host.v4);
    expect_answers(&asker.host, Protocol::Udp, to, &[&udp], asker.host.v4);
    drop(world);
}

#[test]
fn connections_that_are_no_services_are_left_alone() {
    let cluster = Cluster::new();
    let node = &cluster.node1.host;
    // An endpoint in the host's network, and one in a pod: both may run here, and may reach themselves.
    let on_host = EchoServer::start(&node.netns, "on-host", 9000);
    let pod = cluster.node1.pod("pod").serving(8080);
    let port = Port {
        target: 9000,
        ..Port::HTTP
    };
    let objects = [
        service("host", &[cluster_ips()[0]], &[port]),
        slice(
            "host",
            &[port],
            &[(node.v4, "node-1"), (pod.host.v4, "node-1")],
        ),
    ];
    let second = "10.99.0.1/32".parse().unwrap();
    link::add_address(&node.netns, "lo", second).unwrap();
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    for from in [world.node(), &world.cluster.client, &pod.host] {
        let to = SocketAddr::new(world.node().v4, 9000);
        expect_direct(from, to, "on-host");
    }
    expect_direct(&pod.host, SocketAddr::new(pod.host.v4, 8080), "pod");
    drop(on_host);
}

/// Asks the address of a server itself, which must see who asked.
#[track_caller]
fn expect_direct(from: &Host, to: SocketAddr, server: &str) {
    let answer = ask(&from.netns, Protocol::Tcp, to, PATIENCE).unwrap();
    assert_eq!(
        (answer.server.as_str(), answer.seen.ip()),
        (server, from.v4),
        "{} → {to}",
        from.name
    );
}
