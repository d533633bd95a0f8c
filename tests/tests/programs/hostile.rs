//! Packets that are cut off, and headers that lie: never more than addresses, ports and checksums is changed.

use super::lifetimes::converse_open;
use super::node::{Fate, Node, PODS, UPLINK, check, check_where};
use super::packets::{Kind, Link, Part, Protocol, Talk};

/// A test run takes no packet that ends within what it takes for an IP header.
fn shortest(kind: Kind) -> usize {
    14 + if kind.is_v4 { 20 } else { 40 }
}

fn conversation(node: &mut Node) -> (Talk, Talk) {
    let (call, backend) = (node.call(), node.backend());
    node.serves(call.to, proxyd_ebpf_common::MASQUERADE_ALL, &[backend]);
    (call, converse_open(node, call))
}

#[test]
fn a_packet_that_is_cut_off_is_translated_if_its_checksum_is_there_and_else_not_sent_on_changed() {
    check(|node| {
        let (call, seen) = conversation(node);
        let kind = node.kind;
        let inside = call.to(seen.to);
        let needed = kind.l4() + kind.checksum() + 2;
        // To tell whose it is.
        let known = kind.l4()
            + if kind.protocol == Protocol::Tcp {
                14
            } else {
                4
            };
        for (from, to, is_in) in [(call, inside, true), (inside, seen, false)] {
            let (from, to) = (kind.packet(from, Part::Data), kind.packet(to, Part::Data));
            for length in shortest(kind)..=from.len() {
                let packet = &from[..length];
                let fate = if is_in {
                    node.packet_in(UPLINK, packet)
                } else {
                    node.packet_out(PODS, packet)
                };
                let expected = if length < known {
                    Fate::Left
                } else if length < needed {
                    Fate::Dropped
                } else {
                    Fate::Became(to[..length].to_vec())
                };
                assert_eq!(fate, expected, "{length} bytes");
            }
        }
    });
}

#[test]
fn headers_of_other_versions_or_that_are_too_short_are_left_alone() {
    check(|node| {
        let (call, seen) = conversation(node);
        let kind = node.kind;
        let at = kind.link.length();
        for first in 0..=255 {
            let mut packet = kind.packet(call, Part::Data);
            packet[at] = first;
            let fate = node.packet_in(UPLINK, &packet);
            let is_right = if kind.is_v4 {
                first == 0x45
            } else {
                first >> 4 == 6
            };
            if is_right {
                let mut expected = kind.packet(call.to(seen.to), Part::Data);
                expected[at] = first;
                assert_eq!(fate, Fate::Became(expected), "{first:x}");
            } else if kind.is_v4 && first > 0x45 && first < 0x50 {
                // Ports are elsewhere then: nobody's.
                assert!(!matches!(fate, Fate::Became(_)), "{first:x}: {fate:?}");
            } else {
                assert_eq!(fate, Fate::Left, "{first:x}");
            }
        }
    });
}

#[test]
fn lengths_that_lie_change_nothing() {
    check(|node| {
        let (call, seen) = conversation(node);
        let kind = node.kind;
        let ip = kind.link.length() + if kind.is_v4 { 2 } else { 4 };
        let mut places = vec![ip];
        if kind.protocol == Protocol::Udp {
            places.push(kind.l4() + 4);
        }
        for at in places {
            for length in [0, 1, 7, 8, 19, 20, 21, 1_000, 0x7fff, 0xffff_u16] {
                let packet = |talk| {
                    let mut packet = kind.packet(talk, Part::Data);
                    packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
                    packet
                };
                let fate = node.packet_in(UPLINK, &packet(call));
                assert_eq!(fate, Fate::Became(packet(call.to(seen.to))), "{length}");
            }
        }
    });
}

#[test]
fn flags_of_tcp_that_make_no_sense_begin_nothing() {
    check_where(
        |kind| kind.protocol == Protocol::Tcp,
        |node| {
            let (call, backend, kind) = (node.call(), node.backend(), node.kind);
            node.serves(call.to, 0, &[backend]);
            for flags in 0..=255_u8 {
                let mut packet = kind.packet(
                    call.from(kind.at(super::node::CLIENT, 50_000 + u16::from(flags))),
                    Part::Syn,
                );
                packet[kind.l4() + 13] = flags;
                let is_new = flags & 0b1_0111 == 0b10;
                let is_left = node.packet_in(UPLINK, &packet) == Fate::Left;
                assert_eq!(is_left, !is_new, "{flags:#b}");
            }
        },
    );
}

#[test]
fn who_has_the_services_own_address_or_no_port_is_translated_like_anybody() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        for from in [call.to, kind.at(super::node::CLIENT, 0)] {
            let talk = call.from(from);
            let inside = node.comes_in(UPLINK, talk, Part::Syn);
            assert_eq!(inside, Some(talk.to(backend)));
            let answer = inside.unwrap().answer();
            assert_eq!(
                node.goes_out(UPLINK, answer, Part::SynAck),
                Some(talk.answer())
            );
        }
    });
}

#[test]
fn bytes_behind_a_packet_stay() {
    check_where(
        |kind| kind.link == Link::Ethernet,
        |node| {
            let (call, seen) = conversation(node);
            let kind = node.kind;
            let padded = |talk| [kind.packet(talk, Part::Data), vec![0xa5; 33]].concat();
            let fate = node.packet_in(UPLINK, &padded(call));
            assert_eq!(fate, Fate::Became(padded(call.to(seen.to))));
        },
    );
}
