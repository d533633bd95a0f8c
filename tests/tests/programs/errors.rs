//! ICMP errors about packets that are translated reach whoever sent these, and are about what that one sent.

use std::net::IpAddr;

use proxyd_ebpf_common as bpf;

use super::lifetimes::converse_open;
use super::node::{Fate, NODE, NODE_AT_PODS, Node, PODS, UPLINK, check};
use super::packets::{Kind, Part, Shape, Talk, Trouble, ip_packet};

/// A router on the way.
const ROUTER: u16 = 0x0d01;

/// How much of a packet is quoted: the least that RFC 792 demands, and all of it.
fn cuts(packet: &[u8], kind: Kind) -> [usize; 2] {
    let header = kind.l4() - kind.link.length();
    [header + 8, packet.len()]
}

/// An error about a packet of a talk, as it is at a device.
fn error(
    kind: Kind,
    ends: (IpAddr, IpAddr),
    about: Talk,
    (trouble, cut): (Trouble, usize),
) -> Vec<u8> {
    let quoted = kind.ip_packet(about, Part::Data);
    kind.framed(&kind.error(ends, trouble, &quoted[..cut], &Shape::default()))
}

/// What goes on: itself if it is left as it is.
fn goes_on(fate: Fate, packet: Vec<u8>) -> Vec<u8> {
    match fate {
        Fate::Left => packet,
        Fate::Became(packet) => packet,
        fate => panic!("{fate:?}"),
    }
}

/// Runs a test with a conversation: what the client calls, and what the back end sees of it.
fn check_conversations(test: impl Fn(&mut Node, Talk, Talk, (Trouble, usize)) + Send + Sync) {
    for flags in [0, bpf::MASQUERADE_ALL] {
        check(|node| {
            let (call, backend) = (node.call(), node.backend());
            node.serves(call.to, flags, &[backend]);
            let seen = converse_open(node, call);
            let before = node.flows();
            for trouble in Trouble::ALL {
                for cut in cuts(&node.kind.ip_packet(call, Part::Data), node.kind) {
                    println!("{trouble:?}, {cut} bytes quoted, {seen:?}");
                    test(node, call, seen, (trouble, cut));
                }
            }
            assert_eq!(node.flows(), before, "errors do not keep connections alive");
        });
    }
}

#[test]
fn what_the_back_end_or_a_router_says_of_a_clients_packet_reaches_the_client() {
    check_conversations(|node, call, seen, what| {
        let kind = node.kind;
        let router = kind.ip(ROUTER);
        for (from, then) in [(seen.to.ip(), call.to.ip()), (router, router)] {
            let packet = error(kind, (from, seen.from.ip()), seen, what);
            let inside = goes_on(node.packet_in(PODS, &packet), packet);
            let expected = error(kind, (from, call.from.ip()), call.to(seen.to), what);
            assert_eq!(inside, expected, "in");
            let out = goes_on(node.packet_out(UPLINK, &inside), inside);
            let expected = error(kind, (then, call.from.ip()), call, what);
            assert_eq!(out, expected, "out");
        }
    });
}

#[test]
fn what_the_client_or_a_router_says_of_an_answer_reaches_the_back_end() {
    check_conversations(|node, call, seen, what| {
        let kind = node.kind;
        let router = kind.ip(ROUTER);
        for (from, then) in [(call.from.ip(), seen.from.ip()), (router, router)] {
            let packet = error(kind, (from, call.to.ip()), call.answer(), what);
            let inside = goes_on(node.packet_in(UPLINK, &packet), packet);
            let between = call.to(seen.to).answer();
            let expected = error(kind, (from, seen.to.ip()), between, what);
            assert_eq!(inside, expected, "in");
            let out = goes_on(node.packet_out(PODS, &inside), inside);
            let expected = error(kind, (then, seen.to.ip()), seen.answer(), what);
            assert_eq!(out, expected, "out");
        }
    });
}

#[test]
fn what_the_node_says_of_packets_that_it_forwards_is_understood() {
    check_conversations(|node, call, seen, what| {
        let kind = node.kind;
        // It has seen them after they were translated as they came in.
        let between = call.to(seen.to);
        for (device, own, about, sent) in [
            (UPLINK, NODE, between, call),
            (PODS, NODE_AT_PODS, between.answer(), seen.answer()),
        ] {
            let ends = |talk: Talk| (kind.ip(own), talk.from.ip());
            let packet = error(kind, ends(about), about, what);
            let out = goes_on(node.packet_out(device, &packet), packet);
            assert_eq!(out, error(kind, ends(sent), sent, what));
        }
    });
}

#[test]
fn errors_about_what_nobody_knows_are_left_alone() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        converse_open(node, call);
        let strangers = [
            call.from(kind.at(ROUTER, 40_001)),
            call.from(kind.at(super::node::CLIENT, 40_002)),
            call.to(kind.at(super::node::SERVICE, 81)),
        ];
        for talk in strangers.into_iter().flat_map(|talk| [talk, talk.answer()]) {
            for trouble in Trouble::ALL {
                let cut = cuts(&kind.ip_packet(talk, Part::Data), kind)[0];
                let packet = error(kind, (talk.to.ip(), talk.from.ip()), talk, (trouble, cut));
                assert_eq!(node.packet_in(UPLINK, &packet), Fate::Left);
                assert_eq!(node.packet_out(UPLINK, &packet), Fate::Left);
            }
        }
    });
}

#[test]
fn an_error_about_a_fragment_is_understood_if_that_has_ports() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        converse_open(node, call);
        let error = |to: Talk, offset, more| {
            let fragment = super::packets::Fragment {
                id: 77,
                offset,
                more,
            };
            let shape = Shape {
                has_options: true,
                extensions: vec![60],
                fragment: Some(fragment),
                ..Shape::default()
            };
            let quoted = kind.shaped(to.answer(), &kind.segment(to.answer(), Part::Data), &shape);
            let ends = (to.from.ip(), to.to.ip());
            kind.framed(&kind.error(ends, Trouble::TimeExceeded, &quoted, &Shape::default()))
        };
        let inside = call.to(backend);
        for more in [false, true] {
            let fate = node.packet_in(UPLINK, &error(call, 0, more));
            assert_eq!(fate, Fate::Became(error(inside, 0, more)));
            let later = error(call, 3, more);
            assert_eq!(node.packet_in(UPLINK, &later), Fate::Left);
        }
    });
}

#[test]
fn an_error_that_comes_in_fragments_is_left_alone() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        converse_open(node, call);
        let quoted = kind.ip_packet(call.answer(), Part::Data);
        let ends = (call.from.ip(), call.to.ip());
        for (offset, more) in [(0, true), (1, true), (1, false)] {
            let fragment = super::packets::Fragment {
                id: 78,
                offset,
                more,
            };
            let shape = Shape {
                fragment: Some(fragment),
                ..Shape::default()
            };
            let packet = kind.framed(&kind.error(ends, Trouble::TooBig, &quoted, &shape));
            assert_eq!(
                node.packet_in(UPLINK, &packet),
                Fate::Left,
                "{offset} {more}"
            );
        }
    });
}

#[test]
fn errors_about_other_protocols_or_about_errors_are_left_alone() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        converse_open(node, call);
        let (client, service) = (call.from.ip(), call.to.ip());
        let segment = kind.segment(call.answer(), Part::Data);
        let icmp = if kind.is_v4 { 1 } else { 58 };
        let inner = kind.error(
            (service, client),
            Trouble::PortUnreachable,
            &kind.ip_packet(call, Part::Data),
            &Shape::default(),
        );
        let sctp = ip_packet((service, client), 132, &segment, &Shape::default());
        let echo = ip_packet((service, client), icmp, &segment, &Shape::default());
        for quoted in [inner, sctp, echo] {
            let packet = kind.error(
                (client, service),
                Trouble::TimeExceeded,
                &quoted,
                &Shape::default(),
            );
            let packet = kind.framed(&packet);
            assert_eq!(node.packet_in(UPLINK, &packet), Fate::Left);
        }
    });
}

#[test]
fn other_messages_than_errors_are_left_alone() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        converse_open(node, call);
        let errors: &[u8] = if kind.is_v4 {
            &[3, 11, 12]
        } else {
            &[1, 2, 3, 4]
        };
        let about = call.answer();
        let cut = cuts(&kind.ip_packet(about, Part::Data), kind)[1];
        let what = (Trouble::PortUnreachable, cut);
        let packet = error(kind, (call.from.ip(), call.to.ip()), about, what);
        let at = kind.l4();
        for number in 0..=255 {
            let mut packet = packet.clone();
            packet[at] = number;
            let is_left = node.packet_in(UPLINK, &packet) == Fate::Left;
            assert_eq!(is_left, !errors.contains(&number), "type {number}");
        }
    });
}

#[test]
fn an_error_that_quotes_too_little_is_left_alone() {
    check(|node| {
        let (call, backend, kind) = (node.call(), node.backend(), node.kind);
        node.serves(call.to, 0, &[backend]);
        converse_open(node, call);
        let ends = (call.from.ip(), call.to.ip());
        let whole = kind.ip_packet(call.answer(), Part::Data).len();
        let enough = kind.l4() - kind.link.length() + 4;
        for cut in 0..=whole {
            let what = (Trouble::TimeExceeded, cut);
            let packet = error(kind, ends, call.answer(), what);
            // Less than that a test run takes for no IP packet.
            let least = 14 + if kind.is_v4 { 20 } else { 40 };
            if packet.len() < least {
                continue;
            }
            let fate = node.packet_in(UPLINK, &packet);
            if cut < enough {
                assert_eq!(fate, Fate::Left, "{cut}");
                continue;
            }
            let inside = call.to(backend);
            let mut quoted = kind.ip_packet(inside.answer(), Part::Data);
            quoted.truncate(cut);
            // Half a checksum stays.
            if cut == enough - 4 + kind.checksum() + 1 {
                quoted[cut - 1] = packet[packet.len() - 1];
            }
            let ends = (inside.from.ip(), inside.to.ip());
            let expected = kind.error(ends, what.0, &quoted, &Shape::default());
            let expected = kind.framed(&expected);
            assert_eq!(fate, Fate::Became(expected), "{cut}");
        }
    });
}
