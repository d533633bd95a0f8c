//! Fragments go where the first one goes; headers that are longer than usual change nothing.

use super::lifetimes::converse_open;
use super::node::{Fate, Node, PODS, UPLINK, check, check_where};
use super::packets::{Fragment, Kind, Link, Part, Shape, Talk};
use proxyd_ebpf_common as bpf;

/// Where a datagram is cut, in bytes.
const CUTS: [usize; 3] = [24, 64, 104];

const PAYLOAD: [u8; 160] = [7; 160];

/// A packet of a talk in fragments, as they are at a device.
fn fragments(kind: Kind, talk: Talk, id: u16, extensions: &[u8]) -> Vec<Vec<u8>> {
    let datagram = kind.segment_with(talk, Part::Data, &PAYLOAD);
    let starts = [0].into_iter().chain(CUTS);
    let ends = CUTS.into_iter().chain([datagram.len()]);
    let fragment = |(start, end): (usize, usize)| {
        let shape = Shape {
            extensions: extensions.to_vec(),
            fragment: Some(Fragment {
                id,
                offset: u16::try_from(start / 8).unwrap(),
                more: end < datagram.len(),
            }),
            ..Shape::default()
        };
        kind.framed(&kind.shaped(talk, &datagram[start..end], &shape))
    };
    starts.zip(ends).map(fragment).collect()
}

/// What becomes of each, in this order.
fn all(packets: &[Vec<u8>], mut fate: impl FnMut(&[u8]) -> Fate) -> Vec<Vec<u8>> {
    let goes_on = |packet: &Vec<u8>| match fate(packet) {
        Fate::Left => packet.clone(),
        Fate::Became(packet) => packet,
        fate => panic!("{fate:?}"),
    };
    packets.iter().map(goes_on).collect()
}

/// A conversation with a back end; what is called, and what that sees.
fn conversation(node: &mut Node) -> (Talk, Talk) {
    let (call, backend) = (node.call(), node.backend());
    node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
    (call, converse_open(node, call))
}

#[test]
fn all_fragments_go_where_the_first_one_goes_both_ways() {
    check(|node| {
        let (call, seen) = conversation(node);
        let kind = node.kind;
        let inside = call.to(seen.to);
        for (id, extensions) in [(1, &[][..]), (2, &[0, 60])] {
            let of = |talk| fragments(kind, talk, id, extensions);
            let packets = all(&of(call), |packet| node.packet_in(UPLINK, packet));
            assert_eq!(packets, of(inside));
            let packets = all(&packets, |packet| node.packet_out(PODS, packet));
            assert_eq!(packets, of(seen));
            let packets = all(&of(seen.answer()), |packet| node.packet_in(PODS, packet));
            assert_eq!(packets, of(inside.answer()));
            let packets = all(&packets, |packet| node.packet_out(UPLINK, packet));
            assert_eq!(packets, of(call.answer()));
        }
    });
}

#[test]
fn a_fragment_whose_first_one_was_not_seen_is_left_alone() {
    check(|node| {
        let (call, seen) = conversation(node);
        let (kind, inside) = (node.kind, call.to(seen.to));
        let packets = fragments(kind, call, 3, &[]);
        assert_eq!(node.packet_in(UPLINK, &packets[1]), Fate::Left);
        // Then it comes, and the others may come in any order.
        let expected = fragments(kind, inside, 3, &[]);
        for i in [0, 3, 1, 2] {
            let fate = node.packet_in(UPLINK, &packets[i]);
            assert_eq!(fate, Fate::Became(expected[i].clone()), "{i}");
        }
        // Those of another datagram, or of another sender.
        let other = call.from(kind.at(super::node::POD, 40_001));
        for packets in [
            fragments(kind, call, 4, &[]),
            fragments(kind, other, 3, &[]),
        ] {
            for packet in &packets[1..] {
                assert_eq!(node.packet_in(UPLINK, packet), Fate::Left);
            }
        }
    });
}

#[test]
fn a_first_fragment_may_begin_a_conversation_and_a_later_one_may_not() {
    check_where(
        |kind| kind.number() == 17,
        |node| {
            let (call, backend, kind) = (node.call(), node.backend(), node.kind);
            node.serves(call.to, 0, &[backend]);
            let packets = fragments(kind, call, 5, &[]);
            for packet in &packets[1..] {
                assert_eq!(node.packet_in(UPLINK, packet), Fate::Left);
            }
            assert_eq!(node.flows(), []);
            let became = all(&packets, |packet| node.packet_in(UPLINK, packet));
            assert_eq!(became, fragments(kind, call.to(backend), 5, &[]));
        },
    );
}

#[test]
fn a_fragment_that_is_the_whole_is_none() {
    check(|node| {
        let (call, seen) = conversation(node);
        let kind = node.kind;
        let packet = |talk| {
            let shape = Shape {
                fragment: Some(Fragment {
                    id: 6,
                    offset: 0,
                    more: false,
                }),
                ..Shape::default()
            };
            kind.framed(&kind.shaped(talk, &kind.segment(talk, Part::Data), &shape))
        };
        let fate = node.packet_in(UPLINK, &packet(call));
        assert_eq!(fate, Fate::Became(packet(call.to(seen.to))));
    });
}

#[test]
fn ipv4_options_and_up_to_four_ipv6_extension_headers_are_passed_over() {
    check(|node| {
        let (call, seen) = conversation(node);
        let kind = node.kind;
        let some: [&[u8]; 5] = [&[], &[0], &[60], &[0, 60], &[0, 60, 0, 60]];
        let packet = |talk, extensions: &[u8]| {
            let shape = Shape {
                has_options: true,
                extensions: extensions.to_vec(),
                ..Shape::default()
            };
            kind.framed(&kind.shaped(talk, &kind.segment(talk, Part::Data), &shape))
        };
        for extensions in some {
            let fate = node.packet_in(UPLINK, &packet(call, extensions));
            let expected = packet(call.to(seen.to), extensions);
            assert_eq!(fate, Fate::Became(expected), "{extensions:?}");
        }
        if !kind.is_v4 {
            for extensions in [
                &[0, 60, 60, 60, 60][..],
                &[60; 40],
                &[51],
                &[50],
                &[59],
                &[135],
            ] {
                let packet = packet(call, extensions);
                assert_eq!(
                    node.packet_in(UPLINK, &packet),
                    Fate::Left,
                    "{extensions:?}"
                );
            }
        }
    });
}

#[test]
fn frames_with_tags_of_vlans_and_of_other_protocols_are_left_alone() {
    check_where(
        |kind| kind.link == Link::Ethernet,
        |node| {
            let (call, seen) = conversation(node);
            let kind = node.kind;
            for (packet, is_in) in [
                (kind.packet(call, Part::Data), true),
                (kind.packet(call.to(seen.to), Part::Data), false),
            ] {
                let run = |packet: &[u8]| {
                    if is_in {
                        node.packet_in(UPLINK, packet)
                    } else {
                        node.packet_out(PODS, packet)
                    }
                };
                assert!(matches!(run(&packet), Fate::Became(_)), "without a tag");
                let tag = |protocol: [u8; 2], packet: &[u8]| {
                    let tag = [protocol[0], protocol[1], 0, 42];
                    [&packet[..12], &tag, &packet[12..]].concat()
                };
                // 802.1Q, 802.1ad, and both.
                let one = tag([0x81, 0], &packet);
                let other = tag([0x88, 0xa8], &packet);
                let both = tag([0x88, 0xa8], &one);
                for tagged in [one, other, both] {
                    assert_eq!(run(&tagged), Fate::Left);
                }
                // ARP, PPPoE, MPLS, and a length (802.3).
                for protocol in [[0x08, 0x06], [0x88, 0x64], [0x88, 0x47], [0, 60]] {
                    let mut frame = packet.clone();
                    frame[12..14].copy_from_slice(&protocol);
                    assert_eq!(run(&frame), Fate::Left, "{protocol:x?}");
                }
            }
        },
    );
}
