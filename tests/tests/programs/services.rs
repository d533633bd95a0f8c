//! Clients reach back ends and are answered by whom they called; and who may not call is dropped.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;
use proxyd_ebpf_common as bpf;

use super::node::{
    BACKEND, CLIENT, Fate, Frontend, NODE, NODE_AT_PODS, Node, OTHER_SERVICE, POD, PODS, SERVICE,
    UPLINK, check, check_where,
};
use super::packets::{Kind, Part, Protocol, Shape, Talk};

/// The ports of masqueraded connections.
fn is_masquerade_port(port: u16) -> bool {
    let (first, count) = bpf::MASQUERADE_PORTS;
    port >= first && port - first < count
}

/// A whole conversation of a client at the uplink, whose packets are translated there and back. Tells who talks with the back end.
#[track_caller]
pub(crate) fn converse(node: &Node, call: Talk, backend: SocketAddr) -> Talk {
    let mut seen = None;
    let parts = [
        (true, Part::Syn),
        (false, Part::SynAck),
        (true, Part::Data),
        (false, Part::Data),
        (false, Part::Fin),
        (true, Part::Fin),
        (false, Part::Data),
    ];
    for (is_asked, part) in parts {
        if is_asked {
            let inside = node.comes_in(UPLINK, call, part).unwrap();
            assert_eq!(inside.to, backend, "{part:?} goes to the back end");
            assert_eq!(inside.from.ip(), call.from.ip(), "{part:?}");
            let out = node.goes_out(PODS, inside, part).unwrap();
            assert_eq!(out.to, backend, "{part:?}");
            assert_eq!(
                *seen.get_or_insert(out),
                out,
                "{part:?} comes from where the first came from"
            );
        } else {
            let inside = node.comes_in(PODS, seen.unwrap().answer(), part).unwrap();
            let out = node.goes_out(UPLINK, inside, part).unwrap();
            assert_eq!(
                out,
                call.answer(),
                "{part:?} is from whom the client called"
            );
        }
    }
    seen.unwrap()
}

#[test]
fn a_client_outside_reaches_a_back_end_with_its_own_address_and_is_answered_by_the_service() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, 0, &[backend]);
        assert_eq!(converse(node, call, backend), call.to(backend));
    });
}

#[test]
fn a_client_that_is_masqueraded_has_the_address_of_the_device_that_its_packets_leave_by() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let seen = converse(node, call, backend);
        assert_eq!(seen.from.ip(), node.kind.ip(NODE_AT_PODS));
        assert!(is_masquerade_port(seen.from.port()), "{seen:?}");
    });
}

#[test]
fn who_is_outside_is_masqueraded_where_that_is_wanted_and_known() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        let call_from = |host, port| call.from(node.kind.at(host, port));
        let outside = node.kind.ip(NODE_AT_PODS);
        let pod = IpNet::from(node.kind.ip(POD));
        let (client, by_address) = (call_from(CLIENT, 40_001), call_from(POD, 40_002));
        let unknown = call_from(CLIENT, 40_003);
        node.serves(call.to, bpf::MASQUERADE_OUTSIDE, &[backend]);
        node.has_pods_in(pod);
        assert_eq!(converse(node, client, backend).from.ip(), outside);
        assert_eq!(converse(node, by_address, backend), by_address.to(backend));
        node.knows_pods(false);
        assert_eq!(converse(node, unknown, backend), unknown.to(backend));
    });
}

#[test]
fn who_comes_from_a_device_of_pods_is_a_pod() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_OUTSIDE, &[backend]);
        let inside = node.comes_in(PODS, call, Part::Syn).unwrap();
        assert_eq!(inside, call.to(backend));
        assert_eq!(node.goes_out(UPLINK, inside, Part::Syn), Some(inside));
    });
}

#[test]
fn a_masqueraded_connection_is_dropped_where_the_node_has_no_address() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        node.has_device(PODS, None, true);
        let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
        assert_eq!(node.goes_out(PODS, inside, Part::Syn), None);
        // A device that the agent does not know, the loopback one.
        assert_eq!(node.goes_out(1, inside, Part::Syn), None);
        assert!(node.goes_out(UPLINK, inside, Part::Syn).is_some());
    });
}

#[test]
fn node_ports_are_at_the_nodes_addresses() {
    check(|node| {
        let backend = node.backend();
        let call = |host| node.call().to(node.kind.at(host, 30_080));
        let calls = [call(NODE), call(NODE_AT_PODS), call(OTHER_SERVICE)];
        let (key, ip) = (node.node_port(30_080), |host| node.kind.ip(host));
        let (yes, loopback) = (ip(NODE), ip(NODE_AT_PODS));
        node.set_frontend(&Frontend {
            flags: bpf::MASQUERADE_ALL,
            backends: vec![backend],
            ..Frontend::new(key)
        });
        node.has_node_ports_at(yes, bpf::ANYBODY);
        node.has_node_ports_at(loopback, bpf::THE_NODE);
        converse(node, calls[0], backend);
        // Only the node itself may call there, and this address has none.
        assert_eq!(node.comes_in(UPLINK, calls[1], Part::Syn), Some(calls[1]));
        assert_eq!(node.comes_in(UPLINK, calls[2], Part::Syn), Some(calls[2]));
    });
}

#[test]
fn what_is_no_front_end_is_left_alone() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let other_port = call.to(node.kind.at(SERVICE, 81));
        let other_address = call.to(node.kind.at(OTHER_SERVICE, 80));
        for talk in [other_port, other_address, call.answer(), call.to(backend)] {
            assert_eq!(node.comes_in(UPLINK, talk, Part::Syn), Some(talk));
            assert_eq!(node.goes_out(UPLINK, talk, Part::Syn), Some(talk));
        }
        assert_eq!(node.goes_out(UPLINK, call, Part::Syn), Some(call));
        assert_eq!(node.flows(), [], "nothing is remembered");
    });
}

#[test]
fn a_front_end_of_tcp_is_none_of_udp() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        let mut key = node.key(call.to);
        key.protocol = 23 - key.protocol;
        node.set_frontend(&Frontend {
            backends: vec![backend],
            ..Frontend::new(key)
        });
        assert_eq!(node.comes_in(UPLINK, call, Part::Syn), Some(call));
    });
}

#[test]
fn every_back_end_gets_connections() {
    check(|node| {
        let (call, backends) = (node.call(), [node.backend(), node.other_backend()]);
        node.serves(call.to, 0, &backends);
        let chosen = (0..64).map(|i| {
            let from = node.kind.at(CLIENT, 41_000 + i);
            node.comes_in(UPLINK, call.from(from), Part::Syn)
                .unwrap()
                .to
        });
        assert_eq!(chosen.collect::<BTreeSet<_>>(), BTreeSet::from(backends));
    });
}

#[test]
fn with_policy_local_clients_outside_get_back_ends_here_or_none() {
    check(|node| {
        let (call, here, there) = (node.call(), node.backend(), node.other_backend());
        let key = node.key(call.to);
        let frontend = |local| Frontend {
            flags: bpf::LOCAL_OUTSIDE,
            backends: vec![there],
            local,
            ..Frontend::new(key)
        };
        node.set_frontend(&frontend(vec![here]));
        assert_eq!(converse(node, call, here), call.to(here));
        let another = call.from(node.kind.at(CLIENT, 40_002));
        let of_pod = call.from(node.kind.at(POD, 40_003));
        node.set_frontend(&frontend(Vec::new()));
        assert_eq!(node.comes_in(UPLINK, another, Part::Syn), None);
        assert_eq!(
            node.comes_in(PODS, of_pod, Part::Syn),
            Some(of_pod.to(there))
        );
    });
}

#[test]
fn only_allowed_sources_reach_a_guarded_front_end() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        let key = node.key(call.to);
        node.serves(call.to, bpf::GUARDED, &[backend]);
        // CLIENT is 1.1, and the network all of 1.*.
        let bits = if node.kind.is_v4 { 24 } else { 120 };
        let network = IpNet::new(node.kind.ip(CLIENT), bits).unwrap().trunc();
        node.allows(key, network);
        let stranger = call.from(node.kind.at(0x0401, 40_001));
        assert_eq!(node.comes_in(UPLINK, stranger, Part::Syn), None);
        assert_eq!(converse(node, call, backend), call.to(backend));
        // What goes on is not asked again.
        assert_eq!(
            node.comes_in(UPLINK, stranger, Part::Fin).is_none(),
            node.kind.protocol == Protocol::Udp
        );
    });
}

#[test]
fn a_guard_of_one_front_end_is_none_of_another() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        let other = call.to(node.kind.at(OTHER_SERVICE, 80));
        let (key, client) = (node.key(other.to), IpNet::from(node.kind.ip(CLIENT)));
        node.serves(call.to, bpf::GUARDED, &[backend]);
        node.serves(other.to, bpf::GUARDED, &[backend]);
        node.allows(key, client);
        assert_eq!(node.comes_in(UPLINK, call, Part::Syn), None);
        assert_eq!(
            node.comes_in(UPLINK, other, Part::Syn),
            Some(other.to(backend))
        );
    });
}

#[test]
fn with_affinity_a_client_keeps_its_back_end_for_a_time_and_while_that_is_there() {
    check(|node| {
        let (call, first, second) = (node.call(), node.backend(), node.other_backend());
        let key = node.key(call.to);
        let backends: Vec<SocketAddr> = (0..16).map(|i| node.kind.at(BACKEND, 9_000 + i)).collect();
        let frontend = |backends| Frontend {
            affinity_seconds: 60,
            backends,
            ..Frontend::new(key)
        };
        let from = |node: &Node, i: u16| call.from(node.kind.at(CLIENT, 42_000 + i));
        let ask = |node: &Node, i: u16| node.comes_in(UPLINK, from(node, i), Part::Syn).unwrap().to;
        node.set_frontend(&frontend(backends));
        let chosen = ask(node, 0);
        assert!((1..32).all(|i| ask(node, i) == chosen));
        let others = (0..32).map(|i| {
            let other = call.from(node.kind.at(0x0700 + i, 42_000));
            node.comes_in(UPLINK, other, Part::Syn).unwrap().to
        });
        assert!(
            others.collect::<BTreeSet<_>>().len() > 1,
            "clients are spread"
        );
        // It counts from the last use.
        node.grows_older(59);
        assert_eq!(ask(node, 32), chosen);
        node.grows_older(59);
        assert_eq!(ask(node, 33), chosen);
        let spread = (34..66).map(|i| {
            node.grows_older(60);
            ask(node, i)
        });
        assert!(spread.collect::<BTreeSet<_>>().len() > 1, "it is over");
        node.set_frontend(&frontend(vec![first, second]));
        let kept = ask(node, 66);
        assert!(
            (67..99).all(|i| ask(node, i) == kept),
            "the one that left is not chosen"
        );
        assert!([first, second].contains(&kept));
    });
}

#[test]
fn with_affinity_a_client_has_one_back_end_at_all_front_ends_of_a_service_port() {
    check(|node| {
        let (first, second) = (node.backend(), node.other_backend());
        let [one, other] = [80, 9_000].map(|port| node.kind.at(SERVICE, port));
        let keys = [one, other].map(|to| node.key(to));
        let frontend = |key, backends: &[SocketAddr]| Frontend {
            affinity_seconds: 60,
            backends: backends.to_vec(),
            ..Frontend::new(key)
        };
        for key in keys {
            node.set_frontend(&frontend(key, &[first, second]));
            node.share_affinity(key, key);
        }
        node.grows_older(61);
        // Each time from another port, or it would be the connection that is known.
        let ports = Cell::new(10_000);
        let ask = |node: &Node, host: u16, to| {
            ports.set(ports.get() + 1);
            let from = node.kind.at(0x0700 + host, ports.get());
            node.comes_in(UPLINK, Talk { from, to }, Part::Syn)
                .unwrap()
                .to
        };
        let differ = |node: &Node, hosts: Range<u16>| {
            let differs = |host: &u16| ask(node, *host, one) != ask(node, *host, other);
            hosts.filter(differs).count()
        };
        assert!(differ(node, 0..32) > 0, "each remembers its own");
        node.share_affinity(keys[1], keys[0]);
        assert_eq!(differ(node, 0..32), 0, "what is shared counts");
        assert_eq!(differ(node, 32..96), 0);
        node.set_frontend(&frontend(keys[1], &[first]));
        for host in 0..96 {
            let to = ask(node, host, other);
            assert_eq!(to, first, "none that the front end does not have");
            assert_eq!(ask(node, host, one), first, "there the client stays");
        }
    });
}

#[test]
fn a_back_end_that_calls_its_own_service_hears_from_the_node() {
    check(|node| {
        let backend = node.backend();
        let call = node.call().from(node.kind.at(BACKEND, 40_001));
        hairpin(node, call, backend);
    });
}

#[test]
fn a_back_end_that_calls_its_own_service_from_its_own_port_hears_from_the_node() {
    check(|node| {
        let backend = node.backend();
        hairpin(node, node.call().from(backend), backend);
    });
}

fn hairpin(node: &mut Node, call: Talk, backend: SocketAddr) {
    node.serves(call.to, 0, &[backend]);
    for part in [Part::Syn, Part::Data] {
        let inside = node.comes_in(PODS, call, part).unwrap();
        assert_eq!((inside.from.ip(), inside.to), (call.from.ip(), backend));
        let out = node.goes_out(PODS, inside, part).unwrap();
        assert_eq!(
            (out.from.ip(), out.to),
            (node.kind.ip(NODE_AT_PODS), backend)
        );
        let inside = node.comes_in(PODS, out.answer(), Part::SynAck).unwrap();
        let answer = node.goes_out(PODS, inside, Part::SynAck).unwrap();
        assert_eq!(answer, call.answer());
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without_one() {
    let is_udp_v4 = |kind: Kind| kind.is_v4 && kind.protocol == Protocol::Udp;
    check_where(is_udp_v4, |node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let packet = |talk| {
            let mut datagram = kind.segment(talk, Part::Data);
            datagram[6..8].fill(0);
            kind.framed(&kind.shaped(talk, &datagram, &Shape::default()))
        };
        let became = |fate| match fate {
            Fate::Became(bytes) => {
                let talk = kind.read(&bytes);
                assert_eq!(bytes, packet(talk));
                talk
            }
            other => panic!("{other:?}"),
        };
        let inside = became(node.packet_in(UPLINK, &packet(call)));
        let out = became(node.packet_out(PODS, &packet(inside)));
        let inside = became(node.packet_in(PODS, &packet(out.answer())));
        let answer = became(node.packet_out(UPLINK, &packet(inside)));
        assert_eq!(answer, call.answer());
    });
}

#[test]
fn a_wrong_checksum_stays_wrong_by_as_much() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        let at = kind.l4() + kind.checksum();
        let broken = |talk, by: u16| {
            let mut packet = kind.packet(talk, Part::Data);
            let right = u16::from_be_bytes([packet[at], packet[at + 1]]);
            let (sum, carry) = right.overflowing_add(by);
            packet[at..at + 2].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            packet
        };
        node.comes_in(UPLINK, call, Part::Syn).unwrap();
        for by in [1, 0x100, 0xfffe, 0x1234] {
            let fate = node.packet_in(UPLINK, &broken(call, by));
            assert_eq!(fate, Fate::Became(broken(call.to(backend), by)), "{by}");
        }
    });
}

#[test]
fn clients_of_one_family_do_not_meet_those_of_the_other() {
    check_where(
        |kind| !kind.is_v4,
        |node| {
            // The maps keep IPv4 addresses mapped; on a wire such ones mean nothing.
            let v4 = Kind {
                is_v4: true,
                ..node.kind
            };
            let (service, backend) = (v4.at(SERVICE, 80), v4.at(BACKEND, 8_080));
            node.serves(service, 0, &[backend]);
            let mapped = |at: SocketAddr| match at.ip() {
                IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), at.port()),
                IpAddr::V6(_) => at,
            };
            for from in [mapped(v4.at(CLIENT, 40_001)), node.kind.at(CLIENT, 40_001)] {
                let talk = Talk {
                    from,
                    to: mapped(service),
                };
                assert_eq!(node.comes_in(UPLINK, talk, Part::Syn), Some(talk));
            }
        },
    );
}
