//! Clients whose sockets no program sees (`--backend ebpf`): their packets are translated at devices, by the programs alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use aya::{EbpfLoader, include_bytes_aligned};
use proxyd_tests::agent::nft;
use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::netns::link;
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Conversation, Protocol};
use proxyd_tests::wait::eventually;
use proxyd_tests::web::{PROTOCOLS, called_at, cluster_ips, web};
use proxyd_tests::world::{PATIENCE, World, expect_answers, wait_for_answers};
use serde_json::{Value, json};

/// A cluster whose node-1 has an agent with programs at devices, and in a cgroup that nobody is in.
struct Translated {
    world: World,
    here: Pod,
    there: Pod,
    nobodys: Sockets,
}

impl Translated {
    fn start(args: &[&str]) -> Self {
        let cluster = Cluster::new();
        let here = cluster.node1.pod("here").serving(8080);
        let there = cluster.node2.pod("there").serving(8080);
        let nobodys = Sockets::of(&[]);
        let objects = web(&[(&here, "node-1"), (&there, "node-2")], &json!({}));
        let args = [&World::DETECT_PODS[..], &nobodys.args(), args].concat();
        let world = World::start(cluster, &objects, &args);
        Self {
            world,
            here,
            there,
            nobodys,
        }
    }

    fn pods(&self) -> [&Pod; 2] {
        [&self.here, &self.there]
    }

    #[track_caller]
    fn expect_service(&self, from: &Host, seen_as: &Host) {
        for to in called_at(self.world.node()) {
            for protocol in PROTOCOLS {
                let seen = seen_as.own(to.ip());
                expect_answers(from, protocol, to, &self.pods(), seen);
            }
        }
    }

    /// A pod on the node that has just come is served at ClusterIPs soon, and keeps its address.
    #[track_caller]
    fn expect_service_for_pod(&self, pod: &Pod) {
        let to = SocketAddr::new(cluster_ips()[0], 80);
        wait_for_answers(&pod.host, Protocol::Tcp, to, &self.pods());
        for ip in cluster_ips() {
            for protocol in PROTOCOLS {
                let to = SocketAddr::new(ip, 80);
                let seen = pod.host.own(ip);
                expect_answers(&pod.host, protocol, to, &self.pods(), seen);
            }
        }
    }
}

#[test]
fn clients_outside_are_served_without_rules() {
    let mut translated = Translated::start(&[]);
    translated.world.leave_without_rules();
    let World { cluster, .. } = &translated.world;
    translated.expect_service(&cluster.client, &cluster.node1.host);
}

/// On a node they do so all day: nothing of that is for an operator to read, and nobody is accused of detaching programs.
#[test]
fn pods_that_come_and_go_leave_no_lines_in_the_log() {
    let translated = Translated::start(&[]);
    let links = || {
        let entries = fs::read_dir(translated.nobodys.pins().join("links")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("tc-"))
            .count()
    };
    let agent = &translated.world.agent;
    let (before, at_start) = (agent.log().len(), links());
    assert!(at_start > 0);
    for round in 0..10 {
        let pod = translated
            .world
            .cluster
            .node1
            .pod(&format!("passing-{round}"));
        eventually("the pod has programs", PATIENCE, || links() > at_start);
        drop(pod);
        eventually("they go with the pod", PATIENCE, || links() == at_start);
    }
    let log = agent.log();
    let of_devices: Vec<_> = log[before..]
        .iter()
        .filter(|line| line.contains("device") && !line.contains("DEBUG"))
        .collect();
    assert!(of_devices.is_empty(), "{of_devices:#?}");
}

/// Before Linux 6.6 there is no other way.
#[test]
fn filters_do_what_links_do_and_cleanup_removes_them() {
    let mut translated = Translated::start(&["--enable-tcx", "false"]);
    translated.world.leave_without_rules();
    let World { cluster, .. } = &translated.world;
    translated.expect_service(&cluster.client, &cluster.node1.host);
    let names: Vec<_> = fs::read_dir(translated.nobodys.pins().join("links"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("tc-"))
        .collect();
    assert_eq!(names, Vec::<String>::new());

    // Another agent puts its programs in their place, or links instead.
    let Translated {
        world,
        here,
        there,
        nobodys,
    } = translated;
    let World {
        cluster, manifests, ..
    } = world;
    let args = [&World::DETECT_PODS[..], &nobodys.args()].concat();
    let world = World::resume(cluster, manifests, &args);
    let translated = Translated {
        world,
        here,
        there,
        nobodys,
    };
    let World { cluster, .. } = &translated.world;
    translated.expect_service(&cluster.client, &cluster.node1.host);
}

#[test]
fn a_pod_that_comes_later_is_served() {
    let translated = Translated::start(&[]);
    let pod = translated.world.cluster.node1.pod("late");
    translated.expect_service_for_pod(&pod);
}

#[test]
fn connections_from_outside_outlive_a_change_of_the_back_end() {
    let Translated {
        mut world,
        here: _here,
        there: _there,
        nobodys,
    } = Translated::start(&[]);
    let with_programs = [&World::DETECT_PODS[..], &nobodys.args()].concat();
    let pins = nobodys.args()[5].to_owned();
    let with_rules = [&World::DETECT_PODS[..], &["--bpf-path", &pins]].concat();
    let open = |world: &World| {
        let to = cluster_ips().map(|ip| SocketAddr::new(ip, 80));
        let client = &world.cluster.client.netns;
        to.map(|to| Conversation::open(client, Protocol::Tcp, to, PATIENCE).unwrap())
    };
    let mut open_ones = Vec::from(open(&world));
    for args in [&with_rules, &with_programs, &with_rules, &with_programs] {
        for conversation in &mut open_ones {
            conversation.ask().unwrap();
        }
        world = world.restart(args);
        open_ones.extend(open(&world));
        for conversation in &mut open_ones {
            conversation.ask().unwrap();
        }
    }
}

#[test]
fn programs_that_are_removed_come_back() {
    let translated = Translated::start(&[]);
    let links = translated.nobodys.pins().join("links");
    let of_devices = || {
        let entries = fs::read_dir(&links).unwrap().map(|entry| entry.unwrap());
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("tc-")).count()
    };
    let before = of_devices();
    assert!(before >= 4, "{before} links");
    for entry in fs::read_dir(&links).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("/tc-") {
            fs::remove_file(path).unwrap();
        }
    }
    eventually("the links are back", PATIENCE, || of_devices() == before);
    let World { cluster, .. } = &translated.world;
    translated.expect_service(&cluster.client, &cluster.node1.host);
}

/// The tables forget who was silent for longest; who talks is remembered.
#[test]
fn ten_thousand_connections_more_than_there_is_room_for_cost_no_connection_that_is_used() {
    const ROOM: usize = 1_024;
    let room = ROOM.to_string();
    let mut translated = Translated::start(&["--connection-table-size", &room]);
    translated.world.leave_without_rules();
    let World { cluster, .. } = &translated.world;
    let client = &cluster.client;
    let called = called_at(translated.world.node());
    let mut open: Vec<Conversation> = called
        .iter()
        .map(|to| Conversation::open(&client.netns, Protocol::Tcp, *to, PATIENCE).unwrap())
        .collect();
    let served_by: Vec<String> = open.iter_mut().map(|it| it.ask().unwrap().server).collect();
    for _ in 0..(ROOM + 10_000).div_ceil(100) {
        client.netns.enter(|| {
            for _ in 0..100 {
                drop(TcpStream::connect_timeout(&called[0], PATIENCE).unwrap());
            }
        });
        for (conversation, server) in open.iter_mut().zip(&served_by) {
            assert_eq!(&conversation.ask().unwrap().server, server);
        }
    }
    translated.expect_service(client, &cluster.node1.host);
}

/// Of a connection that devices translate and do not masquerade, only the first packet meets the node's firewall.
#[test]
fn packets_on_the_fast_path_pass_no_firewall() {
    let translated = Translated::start(&["--fast-path"]);
    let World { cluster, .. } = &translated.world;
    let node = translated.world.node();
    translated.expect_service(&cluster.client, &cluster.node1.host);
    let pod = cluster.node1.pod("client");
    wait_for_answers(
        &pod.host,
        Protocol::Tcp,
        SocketAddr::new(cluster_ips()[0], 80),
        &translated.pods(),
    );
    let rules = "table inet counts {
        counter forwarded { }
        chain forward { type filter hook forward priority 0; counter name forwarded; }
    }";
    nft(&node.netns, &["-f", "-"], rules);
    let forwarded = || {
        let counter = ["-j", "list", "counter", "inet", "counts", "forwarded"];
        let text = nft(&node.netns, &counter, "");
        let shown: Value = serde_json::from_str(&text).unwrap();
        shown["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    for ip in cluster_ips() {
        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            let before = forwarded();
            let to = SocketAddr::new(ip, 80);
            let mut open =
                Conversation::open(&pod.host.netns, Protocol::Tcp, to, PATIENCE).unwrap();
            let answers: Vec<_> = (0..50).map(|_| open.ask().unwrap()).collect();
            assert!(answers.iter().all(|answer| answer == &answers[0]));
            assert_eq!(answers[0].seen.ip(), pod.host.own(ip));
            let server = answers[0].server.clone();
            let met = forwarded() - before;
            match &*server {
                "here" => assert!(met <= 1, "{met} packets were forwarded"),
                // Where it is, the node is asked; answers go the short way.
                _ => assert!((50..=90).contains(&met), "{met} packets were forwarded"),
            }
            seen.insert(server);
        }
    }
}

/// A map without room for all back ends costs nobody his connection: rules balance beside the programs, also after a restart.
/// Both masquerade clients, each with ports of its own.
#[test]
fn what_does_not_fit_the_maps_is_balanced_by_rules() {
    const OBJECT: &[u8] = include_bytes_aligned!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../ebpf/objects/proxyd-ebpf.o"
    ));
    let mut translated = Translated::start(&[]);
    let path = translated.nobodys.map("backends");
    let args = translated.nobodys.args().map(str::to_owned);
    let args: Vec<&str> = World::DETECT_PODS
        .into_iter()
        .chain(args.iter().map(String::as_str))
        .collect();
    fs::remove_file(&path).unwrap();
    let mut smaller = EbpfLoader::new();
    smaller.map_max_entries("backends", 3);
    smaller.map_pin_path("backends", path);
    drop(smaller.load(OBJECT).unwrap());
    for _ in 0..2 {
        translated.world = translated.world.restart(&args);
        let World { agent, cluster, .. } = &translated.world;
        agent.wait_for_log("the BPF map backends is full", PATIENCE);
        translated.expect_service_for_pod(&cluster.node1.pod("client"));
        translated.expect_service(&cluster.client, &cluster.node1.host);
    }
}

/// Datagrams in fragments, both ways.
#[test]
fn large_datagrams_reach_the_back_end_and_the_client() {
    const LENGTH: usize = 4_000;
    let cluster = Cluster::new();
    let there = cluster.node2.pod("there");
    let nobodys = Sockets::of(&[]);
    let args = [&World::DETECT_PODS[..], &nobodys.args()].concat();
    let world = World::start(cluster, &web(&[(&there, "node-2")], &json!({})), &args);
    for ip in cluster_ips() {
        let address = SocketAddr::new(there.host.own(ip), 8080);
        let server = there.enter(|| UdpSocket::bind(address).unwrap());
        let client = world.cluster.client.enter(|| {
            let socket = UdpSocket::bind((world.cluster.client.own(ip), 0)).unwrap();
            socket.connect((ip, 80)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let question: Vec<u8> = (0..LENGTH).map(|byte| (byte % 251) as u8).collect();
        client.send(&question).unwrap();
        let mut received = vec![0; 2 * LENGTH];
        let (length, from) = server.recv_from(&mut received).unwrap();
        assert_eq!(received[..length], question);
        assert_eq!(from.ip(), world.node().own(ip));
        let answer: Vec<u8> = question.iter().rev().copied().collect();
        server.send_to(&answer, from).unwrap();
        let length = client.recv(&mut received).unwrap();
        assert_eq!(received[..length], answer);
    }
}

/// A link on the way to the back end that takes small packets only: the router there, node-2, says so to node-1, whose
/// programs tell the client.
#[test]
fn a_small_link_on_the_way_is_told_to_the_client() {
    const MTU: u32 = 1_400;
    const LENGTH: usize = 300_000;
    let cluster = Cluster::new();
    let there = cluster.node2.pod("there");
    link::set_mtu(&cluster.node2.host.netns, "pod-0", MTU).unwrap();
    let nobodys = Sockets::of(&[]);
    let args = [&World::DETECT_PODS[..], &nobodys.args()].concat();
    let world = World::start(cluster, &web(&[(&there, "node-2")], &json!({})), &args);
    for ip in cluster_ips() {
        let address = SocketAddr::new(there.host.own(ip), 8080);
        let listener = there.enter(|| TcpListener::bind(address).unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = vec![0; LENGTH];
            stream.read_exact(&mut received).unwrap();
            stream.write_all(&received[..1]).unwrap();
            received
        });
        let mut client = world
            .cluster
            .client
            .enter(|| TcpStream::connect((ip, 80)).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let question: Vec<u8> = (0..LENGTH).map(|byte| (byte % 251) as u8).collect();
        client.write_all(&question).unwrap();
        let mut answer = [1];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(server.join().unwrap(), question);
    }
}
