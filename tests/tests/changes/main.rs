//! Services that change while traffic flows: type, policy, address, ports, labels, targets.

mod open;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::{Addresses, PORT, Svc, addresses, objects};
use proxyd_tests::flows::{SILENCE, Stage};
use proxyd_tests::traffic::{Conversation, Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];
const ENDPOINTS: &str = "here there";

fn changed(spec: Value) -> Svc {
    Svc::new("changed", spec, ENDPOINTS)
}

/// The Services of a step: the one that changes, and one that does not.
fn step(service: Svc) -> [Svc; 2] {
    [service, Svc::new("steady", json!({}), ENDPOINTS)]
}

fn stage(service: Svc) -> Stage {
    let cast = Cast::new();
    let objects = objects(&step(service), &cast);
    Stage::new(cast, &objects, ARGS)
}

/// Whether somebody answers.
fn answers(stage: &Stage, from: &str, protocol: Protocol, to: SocketAddr) -> bool {
    ask(&stage.cast.host(from).netns, protocol, to, SILENCE).is_ok()
}

/// Waits until all addresses answer that should, and no others, in both families, over TCP and UDP.
#[track_caller]
fn expect(stage: &Stage, what: &str, at_cluster_ip: bool, at_node: bool, at_load_balancer: bool) {
    for family in [0, 1] {
        let Addresses {
            cluster,
            load_balancer,
            node_port,
            ..
        } = addresses(1, family);
        let wanted = [
            (SocketAddr::new(cluster, PORT), at_cluster_ip),
            (
                SocketAddr::new(stage.cast.address("node-1", family), node_port),
                at_node,
            ),
            (SocketAddr::new(load_balancer, PORT), at_load_balancer),
        ];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (to, answered) in wanted {
                let from = if to.ip() == cluster { "pod" } else { "client" };
                eventually(
                    &format!("{what}: {to} {protocol} answers {from}: {answered}"),
                    PATIENCE,
                    || answers(stage, from, protocol, to) == answered,
                );
            }
        }
    }
}

#[test]
fn a_service_changes_its_type_while_traffic_flows() {
    let stage = stage(changed(json!({ "externalIPs": [] })));
    let types = [
        (
            "ClusterIP",
            json!({ "type": "ClusterIP", "ports": ports(None) }),
            (true, false, false),
        ),
        (
            "NodePort",
            json!({ "type": "NodePort" }),
            (true, true, false),
        ),
        (
            "LoadBalancer",
            json!({ "type": "LoadBalancer" }),
            (true, true, true),
        ),
        (
            "ExternalName",
            json!({ "type": "ExternalName", "externalName": "example.com" }),
            (false, false, false),
        ),
        (
            "NodePort",
            json!({ "type": "NodePort" }),
            (true, true, false),
        ),
        (
            "headless",
            json!({ "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ports": ports(None) }),
            (false, false, false),
        ),
        (
            "LoadBalancer",
            json!({ "type": "LoadBalancer" }),
            (true, true, true),
        ),
        (
            "ClusterIP",
            json!({ "type": "ClusterIP", "ports": ports(None) }),
            (true, false, false),
        ),
        (
            "ExternalName",
            json!({ "type": "ExternalName", "externalName": "example.com" }),
            (false, false, false),
        ),
        (
            "LoadBalancer",
            json!({ "type": "LoadBalancer" }),
            (true, true, true),
        ),
    ];
    let steady = [0, 1].map(|family| SocketAddr::new(addresses(2, family).cluster, PORT));
    let mut kept: Vec<Kept> = [0, 1]
        .into_iter()
        .flat_map(|family| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| Kept::open(&stage, protocol, family))
        })
        .collect();
    let done = AtomicBool::new(false);
    let count = AtomicUsize::new(0);
    thread::scope(|scope| {
        let steady = steady.map(|to| {
            let (stage, done, count) = (&stage, &done, &count);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        let answer = ask(&stage.cast.host("pod").netns, protocol, to, PATIENCE);
                        answer.unwrap_or_else(|failure| {
                            panic!("{to} {protocol}, which does not change: {failure}")
                        });
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        // Whatever happens, the others are told to end.
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (name, spec, (at_cluster_ip, at_node, at_load_balancer)) in types {
                let mut spec = spec;
                spec["externalIPs"] = json!([]);
                stage.write(&step(changed(spec)));
                expect(&stage, name, at_cluster_ip, at_node, at_load_balancer);
                for kept in &mut kept {
                    kept.expect(name, at_cluster_ip);
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        for steady in steady {
            steady.join().unwrap();
        }
        steps.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let count = count.into_inner();
    assert!(
        count > 100,
        "the Service that does not change was asked {count} times only"
    );
}

/// The ports of a Service, with or without a node port.
/// A conversation with a ClusterIP that stays open while the Service changes.
struct Kept {
    what: String,
    protocol: Protocol,
    conversation: Conversation,
    /// Who answered last; `None` if nobody did.
    server: Option<String>,
}

impl Kept {
    fn open(stage: &Stage, protocol: Protocol, family: usize) -> Self {
        let to = SocketAddr::new(addresses(1, family).cluster, PORT);
        // Over UDP nobody may answer for a while.
        let timeout = match protocol {
            Protocol::Udp => SILENCE,
            _ => PATIENCE,
        };
        let from = &stage.cast.host("pod").netns;
        let opened = Conversation::open(from, protocol, to, timeout);
        let mut conversation = opened.expect("the Service has endpoints");
        let server = conversation.ask().expect("they answer").server;
        Self {
            what: format!("the old conversation with {to} {protocol}"),
            protocol,
            conversation,
            server: Some(server),
        }
    }

    /// A connection goes on, whatever becomes of the Service. A UDP client that sends on is not cut off either while the
    /// ClusterIP is served; when it no longer is, nobody answers until it is again.
    #[track_caller]
    fn expect(&mut self, step: &str, at_cluster_ip: bool) {
        let what = format!("{step}: {}", self.what);
        let served = at_cluster_ip || self.protocol == Protocol::Tcp;
        if served && self.server.is_some() {
            let answer = self.conversation.ask();
            let server = answer.map(|answer| answer.server);
            assert_eq!(server.as_ref().ok(), self.server.as_ref(), "{what}");
        } else {
            eventually(&format!("{what} is answered: {served}"), PATIENCE, || {
                let answer = self.conversation.ask();
                self.server = answer.ok().map(|answer| answer.server);
                self.server.is_some() == served
            });
        }
    }
}

fn ports(node_port: Option<u16>) -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": PORT, "nodePort": node_port });
    json!([port("http", "TCP"), port("udp", "UDP")])
}

#[test]
fn policies_addresses_ports_and_families_follow() {
    let stage = stage(changed(json!({})));
    let to = |family: usize, pick: fn(Addresses) -> IpAddr| {
        SocketAddr::new(pick(addresses(1, family)), PORT)
    };
    let wait = |what: &str, from: &str, to: SocketAddr, answered: bool| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            eventually(
                &format!("{what}: {from} → {to} {protocol}: {answered}"),
                PATIENCE,
                || answers(&stage, from, protocol, to) == answered,
            );
        }
    };
    for family in [0, 1] {
        let load_balancer = to(family, |addresses| addresses.load_balancer);
        let external = to(family, |addresses| addresses.external);
        let cluster = to(family, |addresses| addresses.cluster);
        wait("at first", "client", load_balancer, true);
        wait("at first", "client", external, true);

        // Ranges that have nobody, and none again.
        stage.write(&step(changed(
            json!({ "loadBalancerSourceRanges": ["192.0.2.0/24"] }),
        )));
        wait("with ranges", "client", load_balancer, false);
        wait("with ranges", "client", external, true);
        stage.write(&step(changed(json!({}))));
        wait("without ranges", "client", load_balancer, true);

        // No external address, and another port.
        stage.write(&step(changed(json!({ "externalIPs": [] }))));
        wait("without external addresses", "client", external, false);
        let other = json!([
            { "name": "http", "protocol": "TCP", "port": 81 }, { "name": "udp", "protocol": "UDP", "port": 81 },
        ]);
        stage.write(&step(changed(json!({ "ports": other }))));
        let moved = SocketAddr::new(cluster.ip(), 81);
        wait("with another port", "pod", moved, true);
        wait("with another port", "pod", cluster, false);

        // Only the other family.
        let one = addresses(1, 1 - family).cluster;
        stage.write(&step(changed(
            json!({ "clusterIP": one, "clusterIPs": [one] }),
        )));
        wait("with one family", "pod", SocketAddr::new(one, PORT), true);
        wait("with one family", "pod", cluster, false);
        wait("with one family", "client", load_balancer, false);

        // Another ClusterIP.
        let another = [addresses(9, 0).cluster, addresses(9, 1).cluster];
        stage.write(&step(changed(
            json!({ "clusterIP": another[0], "clusterIPs": another }),
        )));
        wait(
            "with another ClusterIP",
            "pod",
            SocketAddr::new(another[family], PORT),
            true,
        );
        wait("with another ClusterIP", "pod", cluster, false);
        stage.write(&step(changed(json!({}))));
        wait("as before", "pod", cluster, true);
    }
}

#[test]
fn labels_hand_a_service_over_and_back() {
    let stage = stage(changed(json!({})));
    let wait = |what: &str, answered: bool| {
        for family in [0, 1] {
            let to = SocketAddr::new(addresses(1, family).cluster, PORT);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                eventually(&format!("{what}: {to} {protocol}"), PATIENCE, || {
                    answers(&stage, "pod", protocol, to) == answered
                });
            }
        }
    };
    wait("it is ours", true);
    let mut others = changed(json!({}));
    others.metadata = json!({ "labels": { "service.kubernetes.io/service-proxy-name": "other" } });
    stage.write(&step(others));
    wait("another proxy has it", false);
    stage.write(&step(changed(json!({}))));
    wait("it is ours again", true);

    let mut headless = objects(&step(changed(json!({}))), &stage.cast);
    for slice in headless
        .iter_mut()
        .filter(|object| object["kind"] == "EndpointSlice")
    {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] == "changed" {
            slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
        }
    }
    stage.write_objects(&headless);
    wait("its slices are headless", false);
    stage.write(&step(changed(json!({}))));
    wait("its slices are its own again", true);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_nothing_behind() {
    let stage = stage(changed(json!({})));
    let mut moved = objects(&step(changed(json!({}))), &stage.cast);
    for slice in moved
        .iter_mut()
        .filter(|object| object["kind"] == "EndpointSlice")
    {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!("steady");
    }
    let wait = |what: &str, number: u8, answered: bool| {
        for family in [0, 1] {
            let to = SocketAddr::new(addresses(number, family).cluster, PORT);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                eventually(&format!("{what}: {to} {protocol}"), PATIENCE, || {
                    answers(&stage, "pod", protocol, to) == answered
                });
            }
        }
    };
    wait("both answer", 1, true);
    wait("both answer", 2, true);
    stage.write_objects(&moved);
    wait("one has nothing left", 1, false);
    wait("the other answers", 2, true);
}
