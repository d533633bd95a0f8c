//! The harness itself: if one of these fails, no other test's result means anything.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use proxyd_tests::agent::{Agent, nft};
use proxyd_tests::cluster::{Cluster, Host};
use proxyd_tests::netns::{Netns, link};
use proxyd_tests::traffic::{Conversation, EchoServer, Failure, Protocol, Tally, ask, ask_many};
use proxyd_tests::wait::eventually;

/// For what must come: much longer than it takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// For what must not come: nothing in a namespace takes this long.
const SILENCE: Duration = Duration::from_millis(300);

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn each_family(host: &Host) -> [IpAddr; 2] {
    [host.v4, host.v6]
}

/// Asks `to` in every way, and expects an answer from it that names the address of `from`, unchanged.
#[track_caller]
fn check_reaches(from: &Host, to: &Host, port: u16) {
    for (source, destination) in each_family(from).into_iter().zip(each_family(to)) {
        for protocol in PROTOCOLS {
            let answer = ask(&from.netns, protocol, at(destination, port), PATIENCE)
                .unwrap_or_else(|failure| {
                    panic!(
                        "{} → {} {destination} {protocol}: {failure}",
                        from.name, to.name
                    )
                });
            assert_eq!(
                (answer.server.as_str(), answer.seen.ip()),
                (to.name.as_str(), source),
                "{protocol}"
            );
        }
    }
}

#[test]
fn pods_reach_each_other_with_their_own_addresses() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let b = cluster.node1.pod("b").serving(8080);
    let c = cluster.node2.pod("c").serving(8080);
    check_reaches(&a.host, &b.host, 8080);
    check_reaches(&a.host, &c.host, 8080);
    check_reaches(&c.host, &b.host, 8080);
    check_reaches(&a.host, &a.host, 8080);
}

#[test]
fn nodes_and_the_client_reach_each_other_and_pods() {
    let cluster = Cluster::new();
    let pod = cluster.node2.pod("pod").serving(8080);
    let Cluster {
        node1,
        node2,
        client,
        ..
    } = &cluster;
    let _on_node = EchoServer::start(&node1.host.netns, &node1.host.name, 9000);
    let _on_client = EchoServer::start(&client.netns, &client.name, 9000);
    check_reaches(client, &node1.host, 9000);
    check_reaches(client, &pod.host, 8080);
    check_reaches(&node1.host, &pod.host, 8080);
    check_reaches(&node2.host, &pod.host, 8080);
    check_reaches(&node2.host, &node1.host, 9000);
    check_reaches(&pod.host, client, 9000);
}

#[test]
fn chosen_addresses_are_used() {
    let cluster = Cluster::new();
    let chosen: [IpAddr; 2] = [
        "10.244.1.7".parse().unwrap(),
        "fd00:10:244:1::7".parse().unwrap(),
    ];
    let pod = cluster.node1.pod_at("chosen", &chosen).serving(80);
    assert_eq!(each_family(&pod.host), chosen);
    check_reaches(&cluster.client, &pod.host, 80);
    // A pod that comes after one that is gone may have its address.
    drop(pod);
    let pod = cluster.node1.pod_at("successor", &chosen).serving(80);
    check_reaches(&cluster.client, &pod.host, 80);
}

#[test]
fn closed_port_is_refused_every_time() {
    let cluster = Cluster::new();
    let pod = cluster.node2.pod("pod");
    for address in each_family(&pod.host) {
        for protocol in PROTOCOLS {
            // More often than ICMP rate limits would allow.
            let tally = ask_many(
                &cluster.client.netns,
                protocol,
                at(address, 81),
                PATIENCE,
                100,
            );
            let refused = Tally {
                failures: [(Failure::Refused, 100)].into(),
                ..Tally::default()
            };
            assert_eq!(tally, refused, "{address} {protocol}");
        }
    }
}

#[test]
fn address_that_nobody_has_times_out() {
    let cluster = Cluster::new();
    let pod = cluster.node1.pod("pod");
    for address in [
        "10.244.1.99",
        "10.244.2.99",
        "192.0.2.1",
        "fd00:10:244:2::99",
        "2001:db8:ffff::1",
    ] {
        for protocol in PROTOCOLS {
            let result = ask(
                &cluster.client.netns,
                protocol,
                at(address.parse().unwrap(), 80),
                SILENCE,
            );
            assert_eq!(
                result,
                Err(Failure::TimedOut),
                "client → {address} {protocol}"
            );
        }
    }
    let result = ask(
        &pod.host.netns,
        Protocol::Tcp,
        "192.0.2.1:80".parse().unwrap(),
        SILENCE,
    );
    assert_eq!(result, Err(Failure::TimedOut));
}

#[test]
fn service_address_without_rules_is_told_from_a_drop() {
    let cluster = Cluster::new();
    for address in [
        "10.96.0.10",
        "203.0.113.80",
        "198.51.100.1",
        "fd00:10:96::10",
        "2001:db8:113::80",
    ] {
        let to = at(address.parse().unwrap(), 80);
        let result = ask(&cluster.client.netns, Protocol::Tcp, to, PATIENCE);
        assert_eq!(
            result,
            Err(Failure::Other(io::ErrorKind::HostUnreachable)),
            "{address}"
        );
    }
}

#[test]
fn stopped_server_refuses_and_closes() {
    let cluster = Cluster::new();
    let mut pod = cluster.node1.pod("pod").serving(80);
    let to = at(pod.host.v4, 80);
    let mut open = Conversation::open(&cluster.client.netns, Protocol::Tcp, to, PATIENCE).unwrap();
    let first = open.ask().unwrap();
    assert_eq!(open.ask(), Ok(first), "one connection, one source");
    pod.stop_serving();
    assert_eq!(open.ask(), Err(Failure::Reset));
    for protocol in PROTOCOLS {
        assert_eq!(
            ask(&cluster.client.netns, protocol, to, PATIENCE),
            Err(Failure::Refused),
            "{protocol}"
        );
    }
}

#[test]
fn udp_source_port_can_be_chosen_and_kept() {
    let cluster = Cluster::new();
    let pod = cluster.node1.pod("pod").serving(53);
    let client = &cluster.client;
    for _ in 0..2 {
        let mut open =
            Conversation::open_udp_from_port(&client.netns, 4000, at(pod.host.v6, 53), PATIENCE)
                .unwrap();
        assert_eq!(open.ask().unwrap().seen, at(client.v6, 4000));
        assert_eq!(open.ask().unwrap().seen, at(client.v6, 4000));
    }
}

#[test]
fn nft_rules_translate_and_masquerade() {
    let cluster = Cluster::new();
    let a = cluster
        .node1
        .pod_at("a", &["10.244.1.1".parse().unwrap()])
        .serving(8080);
    let _b = cluster
        .node2
        .pod_at("b", &["10.244.2.1".parse().unwrap()])
        .serving(8080);
    let node = &cluster.node1.host;
    nft(
        &node.netns,
        &["-f", "-"],
        "table ip test {
             chain services {
                 type nat hook prerouting priority dstnat
                 ip daddr 10.96.0.1 meta l4proto { tcp, udp } th dport 80 dnat ip to numgen inc mod 2 map {
                     0 : 10.244.1.1 . 8080, 1 : 10.244.2.1 . 8080
                 }
             }
             chain sources {
                 type nat hook postrouting priority srcnat
                 ct status dnat ip saddr != 10.244.0.0/16 masquerade
                 ip saddr . ip daddr { 10.244.1.1 . 10.244.1.1 } masquerade
             }
         }",
    );
    let both = [("a".to_owned(), 5), ("b".to_owned(), 5)];
    for (from, seen) in [
        (&cluster.client, [node.v4].into()),
        (&a.host, [node.v4, a.host.v4].into()),
    ] {
        for protocol in PROTOCOLS {
            let tally = ask_many(
                &from.netns,
                protocol,
                "10.96.0.1:80".parse().unwrap(),
                PATIENCE,
                10,
            );
            let expected = Tally {
                servers: both.clone().into(),
                seen: Clone::clone(&seen),
                ..Tally::default()
            };
            assert_eq!(tally, expected, "{} {protocol}", from.name);
        }
    }
    assert!(nft(&node.netns, &["list", "tables"], "").contains("table ip test"));
    assert_eq!(
        nft(&cluster.fabric, &["list", "tables"], ""),
        "",
        "rules stay in their namespace"
    );
}

#[test]
fn node_address_comes_and_goes() {
    let cluster = Cluster::new();
    let node = &cluster.node1.host;
    let _server = EchoServer::start(&node.netns, &node.name, 9000);
    // An address from the external range, which is routed to this node.
    let (address, to) = (
        "198.51.100.7/32".parse().unwrap(),
        "198.51.100.7:9000".parse().unwrap(),
    );
    link::add_address(&node.netns, link::LEAF_DEVICE, address).unwrap();
    assert!(ask(&cluster.client.netns, Protocol::Tcp, to, PATIENCE).is_ok());
    link::remove_address(&node.netns, link::LEAF_DEVICE, address).unwrap();
    assert!(ask(&cluster.client.netns, Protocol::Tcp, to, PATIENCE).is_err());
}

#[test]
fn dropped_pod_is_gone_with_its_link() {
    let cluster = Cluster::new();
    let node = &cluster.node1.host.netns;
    let devices = || {
        let mut ip = node.run("cat", &["/proc/thread-self/net/dev"], "").unwrap();
        String::from_utf8(std::mem::take(&mut ip.stdout)).unwrap()
    };
    let pod = cluster.node1.pod("pod").serving(80);
    assert!(devices().contains("pod-0:"));
    drop(pod);
    eventually("the pod's link is removed by the kernel", PATIENCE, || {
        !devices().contains("pod-0:")
    });
}

#[test]
fn spawned_program_outlives_the_thread_that_asked_for_it() {
    let netns = Netns::new().unwrap();
    let mut child = std::thread::scope(|scope| {
        let spawn = || {
            netns
                .spawn("cat", |cat| {
                    cat.stdin(Stdio::piped()).stdout(Stdio::null());
                })
                .unwrap()
        };
        scope.spawn(spawn).join().unwrap()
    });
    let inside = std::fs::read_link(format!("/proc/{}/ns/net", child.id())).unwrap();
    let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_ne!(inside, ours);
    drop(child.stdin.take());
    assert!(
        child.wait().unwrap().success(),
        "ended by the end of its input, not by a signal"
    );
}

#[test]
fn spawned_program_dies_with_the_process_that_started_it() {
    const VARIABLE: &str = "HARNESS_TEST_PARENT";
    if std::env::var_os(VARIABLE).is_some() {
        // The second self: starts a program, says which, and is killed.
        let netns = Netns::new().unwrap();
        let child = netns
            .spawn("sleep", |sleep| {
                sleep.arg("60").stdout(Stdio::null()).stderr(Stdio::null());
            })
            .unwrap()
            .id();
        // Until then it is still setpriv(1), which may not have asked for the signal yet.
        let comm = format!("/proc/{child}/comm");
        eventually("the program runs", PATIENCE, || {
            std::fs::read_to_string(&comm).unwrap() == "sleep\n"
        });
        println!("\nchild={child}");
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "spawned_program_dies_with_the_process_that_started_it",
            "--nocapture",
        ])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("child="))
        .expect("the second self says its child");
    eventually("the child is gone", PATIENCE, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

/// A stand-in for the agent: says that it runs, and does until it is told to end.
const STAND_IN: [&str; 2] = [
    "-c",
    "trap 'echo bye >&2; exit 3' TERM; echo ready >&2; while :; do sleep 0.01; done",
];

#[test]
fn agent_log_is_waited_for_and_a_polite_end_is_seen() {
    let netns = Netns::new().unwrap();
    let mut agent = Agent::start_binary("sh", &netns, &STAND_IN);
    assert_eq!(agent.wait_for_log("read", PATIENCE), "ready");
    assert_eq!(agent.exited(), None);
    let (status, log) = agent.terminate();
    assert_eq!(status.code(), Some(3));
    assert_eq!(log, ["ready", "bye"]);
}

#[test]
fn agent_is_gone_when_killed_or_dropped() {
    let netns = Netns::new().unwrap();
    for end in [Agent::kill, drop] {
        let agent = Agent::start_binary("sh", &netns, &STAND_IN);
        agent.wait_for_log("ready", PATIENCE);
        let process = format!("/proc/{}", agent.pid());
        end(agent);
        assert!(!std::path::Path::new(&process).exists());
    }
}
