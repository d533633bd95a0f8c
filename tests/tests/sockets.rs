//! Sockets that are balanced where they connect (`--backend ebpf`): by the programs alone, with the rules gone.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use proxyd_tests::agent::{Agent, nft};
use proxyd_tests::cluster::{Cluster, Pod};
use proxyd_tests::http::get;
use proxyd_tests::netns::Netns;
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Conversation, Protocol, ask};
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::web::{NODE_PORT, PROTOCOLS, cluster_ips, web};
use proxyd_tests::world::{PATIENCE, SILENCE, World, expect_answers, wait_for_answers};
use serde_json::{Value, json};

/// A cluster whose node-1 has an agent that balances sockets, those of a pod there and of the node itself.
struct Balanced {
    world: World,
    pod: Pod,
    endpoints: [Pod; 2],
    sockets: Sockets,
}

impl Balanced {
    fn start(spec: &Value) -> Self {
        let cluster = Cluster::new();
        let pod = cluster.node1.pod("client");
        let endpoints = [
            cluster.node1.pod("here").serving(8080),
            cluster.node2.pod("there").serving(8080),
        ];
        let sockets = Sockets::of(&[&pod.host.netns, &cluster.node1.host.netns]);
        let objects = web(
            &[(&endpoints[0], "node-1"), (&endpoints[1], "node-2")],
            spec,
        );
        let args = [&World::DETECT_PODS[..], &sockets.args()].concat();
        let world = World::start(cluster, &objects, &args);
        Self {
            world,
            pod,
            endpoints,
            sockets,
        }
    }

    fn pods(&self) -> [&Pod; 2] {
        [&self.endpoints[0], &self.endpoints[1]]
    }

    fn args(&self) -> Vec<&str> {
        [&World::DETECT_PODS[..], &self.sockets.args()].concat()
    }
}

#[test]
fn clients_here_reach_every_endpoint_with_their_own_address_and_without_rules() {
    let mut balanced = Balanced::start(&json!({}));
    balanced.world.leave_without_rules();
    let node = balanced.world.node();
    for client in [&balanced.pod.host, node] {
        for ip in cluster_ips() {
            for protocol in PROTOCOLS {
                let called = [
                    SocketAddr::new(ip, 80),
                    SocketAddr::new(node.own(ip), NODE_PORT),
                ];
                for to in called {
                    expect_answers(client, protocol, to, &balanced.pods(), client.own(ip));
                }
            }
        }
    }
}

#[test]
fn the_node_reaches_node_ports_at_its_loopback_address() {
    let balanced = Balanced::start(&json!({}));
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NODE_PORT);
    let node = balanced.world.node();
    for protocol in PROTOCOLS {
        expect_answers(node, protocol, to, &balanced.pods(), node.v4);
    }
    let answer = ask(&balanced.pod.host.netns, Protocol::Tcp, to, PATIENCE);
    assert!(answer.is_err(), "a pod's loopback is its own: {answer:?}");
}

#[test]
fn a_socket_is_told_that_it_talks_to_the_service() {
    let balanced = Balanced::start(&json!({}));
    for ip in cluster_ips() {
        let to = SocketAddr::new(ip, 80);
        balanced.pod.enter(|| {
            let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), to);
            let socket = udp(ip);
            socket.connect(to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), to);
            socket.send(b"who?\n").unwrap();
            assert_eq!(answer(&socket).1, to);
        });
    }
}

#[test]
fn an_ipv6_socket_reaches_ipv4_services() {
    let mut balanced = Balanced::start(&json!({}));
    balanced.world.leave_without_rules();
    let IpAddr::V4(ip) = cluster_ips()[0] else {
        panic!("the first is of IPv4");
    };
    let to = SocketAddr::new(ip.to_ipv6_mapped().into(), 80);
    balanced.pod.enter(|| {
        let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"who?\n", to).unwrap();
        assert_eq!(answer(&socket).1, to);
    });
}

#[test]
fn a_udp_socket_that_is_not_connected_keeps_its_endpoint_until_that_leaves() {
    let balanced = Balanced::start(&json!({}));
    for ip in cluster_ips() {
        let to = SocketAddr::new(ip, 80);
        let socket = balanced.pod.enter(|| udp(ip));
        let servers = |count| -> BTreeSet<String> {
            (0..count)
                .map(|_| {
                    balanced
                        .pod
                        .enter(|| socket.send_to(b"who?\n", to).unwrap());
                    let (server, from) = balanced.pod.enter(|| answer(&socket));
                    assert_eq!(from, to, "the answer comes from the Service");
                    server
                })
                .collect()
        };
        let first = servers(40);
        assert_eq!(first.len(), 1, "{first:?}");
        let all = [("here", "node-1"), ("there", "node-2")];
        let stays: Vec<_> = balanced
            .endpoints
            .iter()
            .zip(all)
            .filter(|(pod, _)| !first.contains(&pod.host.name))
            .map(|(pod, (_, node))| (pod, node))
            .collect();
        balanced.world.write(&web(&stays, &json!({})));
        eventually("it goes to the other endpoint", PATIENCE, || {
            servers(1).contains(&stays[0].0.host.name)
        });
        let pods = balanced.pods();
        balanced.world.write(&web(
            &[(pods[0], "node-1"), (pods[1], "node-2")],
            &json!({}),
        ));
        wait_for_answers(&balanced.pod.host, Protocol::Udp, to, &pods);
        assert_eq!(servers(20).len(), 1, "it stays there");
    }
}

#[test]
fn a_client_keeps_its_endpoint_for_the_time_of_its_affinity() {
    let timeout = json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 2 } } });
    let balanced = Balanced::start(&timeout);
    let to = SocketAddr::new(cluster_ips()[0], 80);
    let server = |netns: &Netns| ask(netns, Protocol::Tcp, to, PATIENCE).unwrap().server;
    let netns = &balanced.pod.host.netns;
    let first = server(netns);
    for _ in 0..20 {
        assert_eq!(server(netns), first);
    }
    let silence = Duration::from_millis(2_100);
    eventually("another endpoint, after silence", PATIENCE * 3, || {
        let never: Option<()> = poll(silence, || None);
        never.is_none() && server(netns) != first
    });
}

#[test]
fn conversations_outlive_a_restart_and_a_change_of_the_back_end() {
    let balanced = Balanced::start(&json!({}));
    let netns = &balanced.pod.host.netns;
    let open = |ip, protocol| {
        let to = SocketAddr::new(ip, 80);
        Conversation::open(netns, protocol, to, PATIENCE).unwrap()
    };
    let open_all = || {
        cluster_ips()
            .into_iter()
            .flat_map(|ip| PROTOCOLS.map(|p| open(ip, p)))
    };
    let mut conversations: Vec<Conversation> = open_all().collect();
    let mut go_on = |what: &str, more: &mut dyn Iterator<Item = Conversation>| {
        conversations.extend(more);
        for conversation in &mut conversations {
            let answer = conversation.ask();
            assert!(answer.is_ok(), "{what}: {answer:?}");
        }
    };
    go_on("at first", &mut std::iter::empty());
    let args = balanced.args();
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let world = balanced.world.restart(&args);
    go_on("after a restart", &mut open_all());
    let pins = balanced.sockets.pins();
    assert!(pins.join("links/connect4").exists());
    // Maps of another layout, which an older version left.
    let older = pins.join("maps-0");
    std::fs::create_dir(&older).unwrap();
    let world = world.restart(&args);
    assert!(!older.exists());
    let nftables = [
        &World::DETECT_PODS[..],
        &["--bpf-path", pins.to_str().unwrap()],
    ]
    .concat();
    let world = world.restart(&nftables);
    assert!(!pins.exists(), "nothing is left of the programs");
    go_on("with --backend nftables", &mut open_all());
    let world = world.restart(&args);
    go_on("with --backend ebpf again", &mut open_all());
    drop(world);
}

#[test]
fn programs_that_others_take_away_are_attached_again() {
    let balanced = Balanced::start(&json!({}));
    let to = SocketAddr::new(cluster_ips()[0], 80);
    let node = &balanced.world.node().netns;
    // A node that is masqueraded by the rules is not by the programs: its second address tells.
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NODE_PORT);
    let are_at_work = || ask(node, Protocol::Tcp, loopback, PATIENCE).is_ok();
    assert!(are_at_work());
    let links = balanced.sockets.pins().join("links");
    for name in ["connect4", "recvmsg6"] {
        std::fs::remove_file(links.join(name)).unwrap();
    }
    let patience = PATIENCE * 3;
    eventually("they are pinned again", patience, || {
        links.join("recvmsg6").exists()
    });
    assert!(are_at_work());
    // Longer than the agent takes to look again: it is content with what it made.
    let longer = Duration::from_secs(6);
    let never: Option<()> = poll(longer, || None);
    assert!(never.is_none() && are_at_work());
    balanced.sockets.remake_cgroup();
    assert!(!are_at_work(), "they went with their cgroup");
    eventually("they are attached again", patience, are_at_work);
    let pods = balanced.pods();
    wait_for_answers(&balanced.pod.host, Protocol::Tcp, to, &pods);
    // Two times, for two families; a third time would be one that nobody asked for.
    let counter = "kubeproxy_sync_proxy_rules_foreign_changes_total";
    for family in ["IPv4", "IPv6"] {
        let line = format!("{counter}{{ip_family=\"{family}\"}} 2");
        eventually(&line, PATIENCE, || {
            let metrics = get(node, "127.0.0.1:10249".parse().unwrap(), "/metrics").unwrap();
            metrics.body.contains(&line)
        });
    }
}

#[test]
fn cleanup_leaves_nothing() {
    let mut balanced = Balanced::start(&json!({}));
    let pins = balanced.sockets.pins().to_owned();
    assert!(pins.join("links/connect4").exists());
    let reserved = |node: &Netns| {
        let list = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        node.enter(|| std::fs::read_to_string(list).unwrap())
    };
    assert_eq!(reserved(&balanced.world.node().netns), "61000-65535\n");
    let agent = &mut balanced.world.agent;
    agent.signal(Signal::SIGTERM);
    eventually("it has ended", PATIENCE, || agent.exited().is_some());
    let binary = proxyd_tests::agent::binary();
    let node = &balanced.world.node().netns;
    let args = ["--cleanup", "--bpf-path", pins.to_str().unwrap()];
    let output = node.run(&binary, &args, "").unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!pins.exists());
    assert_eq!(reserved(node), "\n");
    assert_eq!(nft(node, &["list", "tables"], ""), "");
    let to = SocketAddr::new(cluster_ips()[0], 80);
    // The kernel detaches programs a moment after their pins are gone.
    eventually("nothing is balanced", PATIENCE, || {
        ask(&balanced.pod.host.netns, Protocol::Tcp, to, SILENCE).is_err()
    });
}

/// A program that anybody can run, and an empty directory of manifests: what is built may lie where only its owner reads.
fn program_for_anybody() -> (tempfile::TempDir, String, [String; 4]) {
    let directory = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), mode).unwrap();
    let program = directory.path().join("proxyd");
    fs::copy(proxyd_tests::agent::binary(), &program).unwrap();
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let args = ["--hostname-override", "n", "--manifests", text(&manifests)].map(str::to_owned);
    (directory, text(&program).to_owned(), args)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_the_machine_lacks_is_said_in_one_message_and_nothing_is_changed() {
    let (directory, program, own) = program_for_anybody();
    let node = Netns::new().unwrap();
    let sockets = Sockets::of(&[]);
    let cgroup = Path::new(sockets.args()[3]).to_owned();
    let elsewhere = directory.path().join("pins");
    // Who runs it (nothing: root), where, and what is said.
    let check = |by: &[&str], cgroup: &Path, pins: &Path, expected: &[&str]| {
        let own = own.iter().map(String::as_str);
        let places = ["--cgroup", text(cgroup), "--bpf-path", text(pins)];
        let args = by.iter().copied().chain([program.as_str()]).chain(own);
        let args = args.chain(["--backend", "ebpf"]).chain(places);
        let args: Vec<&str> = args.collect();
        let output = node.run("env", &args, "").unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for part in expected {
            assert!(said.contains(part), "{part:?}: {said}");
        }
        // What is not pinned went with the process.
        assert!(!pins.exists(), "{said}");
        assert_eq!(nft(&node, &["list", "tables"], ""), "");
    };
    let not_v2 = "is not a directory of cgroup v2";
    let not_bpf = "is not in a BPF filesystem";
    let alternative = "; --backend nftables needs none of that\n";
    let everything = [not_v2, not_bpf, alternative];
    check(&[], directory.path(), &elsewhere, &everything);
    check(
        &[],
        directory.path(),
        sockets.pins(),
        &[not_v2, alternative],
    );
    check(&[], &cgroup, &elsewhere, &[not_bpf, alternative]);

    let of_root = sockets.pins();
    fs::create_dir(of_root).unwrap();
    let pins = of_root.join("pins");
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let expected = [
        "error: --backend ebpf cannot be had: user 65534 has no CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN (run proxyd as root",
        &format!("{} cannot be written to: Permission denied", text(of_root)),
        "; --backend nftables needs none of that but CAP_NET_ADMIN\n",
    ];
    check(&nobody, &cgroup, &pins, &expected);
    let few = [
        "setpriv",
        "--bounding-set=-all,+bpf,+net_admin",
        "--inh-caps=-all",
    ];
    let expected = ["user 0 has no CAP_PERFMON (run proxyd", alternative];
    check(&few, &cgroup, &pins, &expected);
    let without_sys = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "umount -l /sys && exec \"$@\"",
        "sh",
    ];
    let expected = [
        "has no BTF at /sys/kernel/btf/vmlinux",
        "use Linux 5.15 or later",
        not_v2,
        alternative,
    ];
    check(&without_sys, &cgroup, &pins, &expected);
    let in_user_namespace = ["unshare", "--user", "--map-root-user", "--net"];
    let expected = ["proxyd is in a user namespace", alternative];
    check(&in_user_namespace, &cgroup, &pins, &expected);
}

#[test]
fn three_capabilities_are_enough() {
    let (_directory, program, own) = program_for_anybody();
    let node = Netns::new().unwrap();
    let sockets = Sockets::of(&[]);
    let only = [
        "--bounding-set=-all,+bpf,+perfmon,+net_admin",
        "--inh-caps=-all",
    ];
    let args = only.into_iter().chain([program.as_str()]);
    let args: Vec<&str> = args
        .chain(own.iter().map(String::as_str))
        .chain(sockets.args())
        .collect();
    let agent = Agent::start_binary("setpriv", &node, &args);
    agent.wait_for_log("in sync", PATIENCE);
    let pinned = fs::read_dir(sockets.pins().join("links")).unwrap();
    assert_eq!(pinned.count(), 8);
    agent.terminate();
}

fn udp(ip: IpAddr) -> UdpSocket {
    let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Who answers, and from which address.
fn answer(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut datagram = [0; 256];
    let (length, from) = socket.recv_from(&mut datagram).unwrap();
    let line = String::from_utf8_lossy(&datagram[..length]);
    (line.split(' ').next().unwrap().to_owned(), from)
}
