//! The mark that asks for masquerade: its bit is the one that was asked for, is gone before the packet leaves, and no other
//! bit is touched.

use std::net::SocketAddr;

use proxyd_tests::agent::nft;
use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Stage;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::{PORT, Svc, addresses, objects};
use proxyd_tests::netns::Netns;
use proxyd_tests::traffic::{Protocol, ask_many};
use proxyd_tests::world::PATIENCE;
use serde_json::json;

/// Someone else's table: gives each packet all other bits as it comes in, and counts what it finds before the agent's
/// postrouting chain and after it.
fn observer(family: &str, bit: u32) -> String {
    let mark = 1_u32 << bit;
    let others = !mark;
    format!(
        "table {family} observer {{
            counter asked {{ }}
            counter left {{ }}
            counter whole {{ }}
            counter changed {{ }}
            chain prerouting {{
                type filter hook prerouting priority -150; policy accept;
                meta mark set {others}
            }}
            chain output {{
                type route hook output priority -150; policy accept;
                meta mark set {others}
            }}
            chain before {{
                type filter hook postrouting priority 95; policy accept;
                ct status dnat meta mark & {mark} != 0 counter name asked
            }}
            chain after {{
                type filter hook postrouting priority 150; policy accept;
                ct status dnat meta mark & {mark} != 0 counter name left
                ct status dnat meta mark {others} counter name whole
                ct status dnat meta mark != {others} counter name changed
            }}
        }}"
    )
}

/// How many packets a counter has.
fn packets(node: &Netns, family: &str, counter: &str) -> u64 {
    let text = nft(node, &["list", "counter", family, "observer", counter], "");
    let (_, text) = text.split_once("packets ").expect("a counter says so");
    let number = text.split(' ').next().expect("split has one part");
    number.parse().expect("it is a number")
}

#[track_caller]
fn check(args: &[&str], bit: u32) {
    let cast = Cast::new();
    let observers = ["ip", "ip6"].map(|family| observer(family, bit)).join("\n");
    nft(&cast.host("node-1").netns, &["-f", "-"], &observers);
    let services = [Svc::new("web", json!({}), "here there")];
    let objects = objects(&services, &cast);
    let args = [&["--cluster-cidr", CLUSTER_CIDR], args].concat();
    let stage = Stage::new(cast, &objects, &args);
    for family in [0, 1] {
        let node = stage.cast.address("node-1", family);
        let of_service = addresses(1, family);
        let calls = [
            ("client", SocketAddr::new(of_service.load_balancer, PORT)),
            ("client", SocketAddr::new(node, of_service.node_port)),
            ("pod", SocketAddr::new(node, of_service.node_port)),
            ("node-1", SocketAddr::new(of_service.cluster, PORT)),
        ];
        for (from, to) in calls {
            for protocol in Protocol::ALL {
                let from_netns = &stage.cast.host(from).netns;
                let tally = ask_many(from_netns, protocol, to, PATIENCE, 8);
                assert!(tally.failures.is_empty(), "{from} → {to}: {tally:?}");
                assert_eq!(tally.seen, [node].into(), "{from} → {to} {protocol}");
            }
        }
    }
    let node = &stage.cast.host("node-1").netns;
    for family in ["ip", "ip6"] {
        let count = |counter| packets(node, family, counter);
        let what = format!("{family}, bit {bit}");
        // One new connection for each question: 4 calls, 3 protocols, 8 questions.
        assert!(count("asked") >= 96, "{what}: {} asked", count("asked"));
        assert_eq!(count("left"), 0, "{what}: packets left with the mark");
        assert_eq!(count("changed"), 0, "{what}: packets with other bits");
        assert!(count("whole") >= 2 * 96, "{what}: {} left", count("whole"));
    }
}

#[test]
fn the_mark_is_bit_14_and_is_gone_before_a_packet_leaves() {
    check(&[], 14);
}

#[test]
fn the_mark_may_be_any_bit() {
    check(&["--iptables-masquerade-bit", "31"], 31);
    check(&["--iptables-masquerade-bit", "0"], 0);
}
