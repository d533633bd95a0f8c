//! Ports: of clients that talk to one back end in several ways, and of the node, which masquerades many.

use std::collections::{BTreeMap, BTreeSet};

use proxyd_ebpf_common as bpf;

use super::lifetimes::LONG;
use super::node::{Node, OTHER_SERVICE, PODS, UPLINK, check, check_where};
use super::packets::{Kind, Link, Part, Protocol, Talk};
use super::services::converse;

fn is_ethernet(kind: Kind) -> bool {
    matches!(kind.link, Link::Ethernet)
}

#[test]
fn a_client_may_reach_one_back_end_by_two_front_ends_from_one_port() {
    for flags in [0, bpf::MASQUERADE_ALL] {
        check(|node| {
            let (call, backend) = (node.call(), node.backend());
            let other = call.to(node.kind.at(OTHER_SERVICE, 80));
            node.serves(call.to, flags, &[backend]);
            node.serves(other.to, flags, &[backend]);
            let seen = [call, other].map(|call| {
                let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
                node.goes_out(PODS, inside, Part::Syn).unwrap()
            });
            assert_ne!(seen[0], seen[1], "the back end can tell them apart");
            for (call, seen) in [call, other].into_iter().zip(seen) {
                let inside = node.comes_in(PODS, seen.answer(), Part::SynAck).unwrap();
                assert_eq!(
                    node.goes_out(UPLINK, inside, Part::SynAck),
                    Some(call.answer())
                );
                let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
                assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
            }
        });
    }
}

#[test]
fn a_client_may_reach_one_back_end_by_a_front_end_and_by_itself_from_one_port() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        let direct = call.to(backend);
        node.serves(call.to, 0, &[backend]);
        let seen = converse(node, call, backend);
        assert_eq!(seen, direct);
        let other = node.comes_in(UPLINK, direct, Part::Syn).unwrap();
        assert_eq!((other.from.ip(), other.to), (direct.from.ip(), direct.to));
        assert_ne!(other.from.port(), direct.from.port());
        for (call, seen) in [(call, seen), (direct, other)] {
            let answer = node.goes_out(UPLINK, seen.answer(), Part::Data);
            assert_eq!(answer, Some(call.answer()));
            assert_eq!(node.comes_in(UPLINK, call, Part::Data), Some(seen));
        }
    });
}

#[test]
fn a_client_keeps_its_port_once_what_had_it_is_over() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        let direct = call.to(backend);
        node.serves(call.to, 0, &[backend]);
        converse(node, call, backend);
        let other = node.comes_in(UPLINK, direct, Part::Syn).unwrap();
        assert_ne!(other, direct);
        for (talk, seen) in [(call, direct), (direct, other)] {
            node.comes_in(UPLINK, talk, Part::Rst).unwrap();
            node.goes_out(UPLINK, seen.answer(), Part::Rst).unwrap();
        }
        node.grows_older(LONG);
        for part in [Part::Syn, Part::Data] {
            assert_eq!(node.comes_in(UPLINK, direct, part), Some(direct));
            assert_eq!(
                node.goes_out(UPLINK, direct.answer(), part),
                Some(direct.answer())
            );
        }
    });
}

#[test]
fn connections_of_many_clients_get_ports_of_their_own() {
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let calls: Vec<Talk> = (0..300)
            .map(|i| call.from(node.kind.at(0x0500 + i, 40_001)))
            .collect();
        let seen = calls.iter().map(|call| {
            let inside = node.comes_in(UPLINK, *call, Part::Syn).unwrap();
            node.goes_out(PODS, inside, Part::Syn).unwrap()
        });
        let seen: Vec<Talk> = seen.collect();
        let ports: BTreeSet<u16> = seen.iter().map(|talk| talk.from.port()).collect();
        assert_eq!(ports.len(), calls.len());
        for (call, seen) in calls.iter().zip(seen) {
            let inside = node.comes_in(PODS, seen.answer(), Part::SynAck).unwrap();
            assert_eq!(
                node.goes_out(UPLINK, inside, Part::SynAck),
                Some(call.answer())
            );
        }
    });
}

#[test]
fn when_ports_run_out_connections_that_are_over_give_theirs() {
    check_where(is_ethernet, |node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let begin = |node: &Node, number: u16| {
            let call = call.from(
                node.kind
                    .at(0x0500 + number / 1_000, 40_000 + number % 1_000),
            );
            let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
            (call, inside, node.goes_out(PODS, inside, Part::Syn))
        };
        let (ports, more) = (bpf::MASQUERADE_PORTS.1, 1_000);
        let mut seen = BTreeMap::new();
        for number in 0..ports {
            let (call, inside, out) = begin(node, number);
            // As many as there are find all but the last few.
            let Some(out) = out else { continue };
            seen.insert(out.from.port(), call);
            if node.kind.protocol == Protocol::Tcp {
                node.comes_in(UPLINK, call, Part::Rst).unwrap();
                node.goes_out(PODS, inside, Part::Rst).unwrap();
            }
        }
        assert!(seen.len() > usize::from(ports) / 2, "{}", seen.len());
        node.grows_older(2);
        for number in ports..ports + more {
            let (call, _, out) = begin(node, number);
            let out = out.expect("a port");
            let before = seen.insert(out.from.port(), call);
            let inside = node.comes_in(PODS, out.answer(), Part::SynAck).unwrap();
            let answer = node.goes_out(UPLINK, inside, Part::SynAck);
            assert_eq!(answer, Some(call.answer()));
            // Who had it, and was silent, may begin anew, but is not mistaken for the other.
            if let Some(before) = before {
                let inside = node.comes_in(UPLINK, before, Part::Syn).unwrap();
                let again = node.goes_out(PODS, inside, Part::Syn).expect("a port");
                assert_ne!(again, out);
                seen.insert(again.from.port(), before);
            }
        }
    });
}
