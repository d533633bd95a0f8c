//! Any bytes, and valid packets of which some bytes are others: what holds of whatever may come.
//!
//! A seed gives the same packets again: `PROXYD_PACKETS_SEED`, and `PROXYD_PACKETS` says how many there are of each kind.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use proxyd_ebpf_common as bpf;
use proxyd_tests::random::from_environment;

use super::lifetimes::converse_open;
use super::node::{Fate, Node, PODS, UPLINK, check};
use super::packets::{Fragment, Kind, Part, Shape, Talk, Trouble};

/// How many packets of each of eight kinds, in each test.
const PACKETS: u64 = 400;

/// Where in a packet may be changed what, found by other means than the programs'.
#[derive(Debug, Default)]
struct Map {
    /// The checksum of the IPv4 header, and that header.
    ip: Option<(usize, Range<usize>)>,
    /// Both addresses.
    addresses: Range<usize>,
    /// Both ports.
    ports: Range<usize>,
    /// The checksum of the transport protocol, or of ICMP, and what it counts beside a pseudo header.
    transport: Option<(usize, Range<usize>)>,
    /// The number of the protocol.
    protocol: u8,
}

impl Map {
    /// That of what begins at `at`; `None`: it has no IP header.
    fn of(packet: &[u8], at: usize, is_v4: bool) -> Option<Self> {
        let byte = |at: usize| packet.get(at).copied();
        let (addresses, protocol, l4, is_later, ip) = if is_v4 {
            let length = usize::from(byte(at)? & 0xf) * 4;
            packet.get(at..at + 20)?;
            let is_later = byte(at + 6)? & 0x1f != 0 || byte(at + 7)? != 0;
            let ip = Some((at + 10, at..at + length));
            (at + 12..at + 20, byte(at + 9)?, at + length, is_later, ip)
        } else {
            packet.get(at..at + 40)?;
            let (mut next, mut l4, mut is_later) = (byte(at + 6)?, at + 40, false);
            while [0, 43, 44, 60].contains(&next) && !is_later {
                let length = if next == 44 {
                    is_later = byte(l4 + 2)? != 0 || byte(l4 + 3)? >> 3 != 0;
                    8
                } else {
                    8 * (usize::from(byte(l4 + 1)?) + 1)
                };
                next = byte(l4)?;
                l4 += length;
            }
            (at + 8..at + 40, next, l4, is_later, None)
        };
        let mut map = Self {
            ip,
            addresses,
            protocol,
            ..Self::default()
        };
        if is_later {
            return Some(map);
        }
        let checksum = match protocol {
            6 => 16,
            17 => 6,
            1 | 58 => 2,
            _ => return Some(map),
        };
        if matches!(protocol, 6 | 17) {
            map.ports = l4..l4 + 4;
        }
        map.transport = Some((l4 + checksum, l4..packet.len()));
        Some(map)
    }

    /// The packet that an ICMP error is about.
    fn quoted(&self, packet: &[u8], is_v4: bool) -> Option<Self> {
        let (_, icmp) = self.transport.as_ref()?;
        let is_icmp = matches!(self.protocol, 1 | 58);
        is_icmp.then(|| Self::of(packet, icmp.start + 8, is_v4))?
    }

    /// Whether it is of a transport protocol, and from or to one of these.
    fn is_of(&self, packet: &[u8], protocol: u8, known: &[SocketAddr]) -> bool {
        let bytes = |range: &Range<usize>| packet.get(range.clone()).unwrap_or(&[]);
        let (addresses, ports) = (bytes(&self.addresses), bytes(&self.ports));
        let (from, to) = addresses.split_at(addresses.len() / 2);
        let is = |at: &SocketAddr, ip: &[u8], port: usize| {
            let is_ip = match at.ip() {
                IpAddr::V4(own) => own.octets() == ip,
                IpAddr::V6(own) => own.octets() == ip,
            };
            // Later fragments have no ports.
            let is_port = ports.is_empty() || ports[port..port + 2] == at.port().to_be_bytes();
            is_ip && is_port
        };
        let is_known = |at: &SocketAddr| is(at, from, 0) || is(at, to, 2);
        self.protocol == protocol && known.iter().any(is_known)
    }

    /// What may be changed.
    fn places(&self) -> BTreeSet<usize> {
        let checksums = [&self.ip, &self.transport].into_iter().flatten();
        let checksums = checksums.flat_map(|(at, _)| *at..*at + 2);
        let ends = self.addresses.clone().chain(self.ports.clone());
        checksums.chain(ends).collect()
    }
}

/// The sum of what a checksum counts, itself included: it says by how much it is wrong.
fn sum(bytes: &[&[u8]]) -> u32 {
    let words = bytes.iter().flat_map(|bytes| bytes.chunks(2));
    let words = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    words.sum::<u32>() % 0xffff
}

/// By how much the checksums of a packet are wrong: that of the IP header, and that of what is in it.
fn wrong(packet: &[u8], map: &Map, is_v4: bool) -> (u32, u32) {
    let part = |range: &Range<usize>| packet.get(range.clone()).unwrap_or(&[]);
    let ip = map.ip.as_ref().map_or(0, |(_, range)| sum(&[part(range)]));
    let transport = map.transport.as_ref().map_or(0, |(at, range)| {
        let is_icmp_v4 = map.protocol == 1 && is_v4;
        let has_none = map.protocol == 17 && part(&(*at..*at + 2)) == [0, 0];
        match () {
            () if has_none => 0,
            () if is_icmp_v4 => sum(&[part(range)]),
            () => sum(&[part(&map.addresses), part(range)]),
        }
    });
    (ip, transport)
}

/// What holds of each packet, whatever it is. That it keeps its length and gets one of two answers holds of all test runs.
fn law(kind: Kind, known: &[SocketAddr], packet: &[u8], fate: &Fate) -> Result<(), TestCaseError> {
    let Fate::Became(became) = fate else {
        return Ok(());
    };
    let at = kind.link.length();
    let map = Map::of(packet, at, kind.is_v4);
    let map = map.ok_or_else(|| TestCaseError::fail("what is no packet was changed"))?;
    let quoted = map.quoted(packet, kind.is_v4);
    let who = quoted.as_ref().unwrap_or(&map);
    let is_known = who.is_of(packet, kind.number(), known);
    prop_assert!(is_known, "it is of strangers: {:?}", who);
    let mut places = map.places();
    places.extend(quoted.iter().flat_map(Map::places));
    let changed = (0..packet.len()).filter(|i| packet[*i] != became[*i]);
    for place in changed {
        prop_assert!(
            places.contains(&place),
            "byte {} was changed: {:?}",
            place,
            map
        );
    }
    let (before, after) = (
        wrong(packet, &map, kind.is_v4),
        wrong(became, &map, kind.is_v4),
    );
    prop_assert_eq!(
        before,
        after,
        "checksums are as wrong as they were: {:?}",
        map
    );
    if let Some(quoted) = quoted {
        let ip = |packet| wrong(packet, &quoted, kind.is_v4).0;
        prop_assert_eq!(ip(packet), ip(became), "the header inside: {:?}", quoted);
    }
    Ok(())
}

/// Packets of which all are translated: those that come in, then those that go out.
fn valid(node: &Node, call: Talk, seen: Talk) -> [Vec<Vec<u8>>; 2] {
    let kind = node.kind;
    let inside = call.to(seen.to);
    let of = |talks: [Talk; 2]| {
        talks.into_iter().flat_map(move |talk| {
            let segment = kind.segment(talk, Part::Data);
            let shape = Shape {
                has_options: true,
                extensions: vec![60, 0],
                fragment: Some(Fragment {
                    id: 9,
                    offset: 0,
                    more: true,
                }),
                ..Shape::default()
            };
            let about = kind.ip_packet(talk.answer(), Part::Data);
            let ends = (talk.from.ip(), talk.to.ip());
            let error = kind.error(ends, Trouble::TooBig, &about, &Shape::default());
            [
                kind.packet(talk, Part::Syn),
                kind.packet(talk, Part::Data),
                kind.framed(&kind.shaped(talk, &segment, &shape)),
                kind.framed(&error),
            ]
        })
    };
    let comes_in = of([call, seen.answer()]).collect();
    [comes_in, of([inside, inside.answer()]).collect()]
}

/// Gives a node so many packets that are made up, in both directions, and looks at what becomes of them.
fn try_all<S: Strategy<Value = Vec<u8>>>(
    packets: impl Fn(Kind, &[Vec<u8>]) -> S + Send + Sync,
    holds: impl Fn(Kind, &[u8], &Fate) -> Result<(), TestCaseError> + Send + Sync,
) {
    let seed = from_environment("PROXYD_PACKETS_SEED", 1);
    let count = from_environment("PROXYD_PACKETS", PACKETS);
    println!("PROXYD_PACKETS_SEED={seed} PROXYD_PACKETS={count}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: count.try_into().unwrap(),
        failure_persistence: None,
        ..Config::default()
    };
    check(|node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let seen = converse_open(node, call);
        let kind = node.kind;
        for (is_in, valid) in [true, false].into_iter().zip(valid(node, call, seen)) {
            let run = |packet: &[u8]| {
                if is_in {
                    node.packet_in(UPLINK, packet)
                } else {
                    node.packet_out(PODS, packet)
                }
            };
            for packet in &valid {
                assert!(matches!(run(packet), Fate::Became(_)), "{packet:x?}");
            }
            let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
            let mut runner = TestRunner::new_with_rng(config.clone(), rng);
            let run = |packet: Vec<u8>| {
                let fate = run(&packet);
                law(kind, &[call.to, backend], &packet, &fate)?;
                holds(kind, &packet, &fate)
            };
            let result = runner.run(&packets(kind, &valid), run);
            result.unwrap_or_else(|error| panic!("in: {is_in}: {error}"));
        }
    });
}

/// A test run takes no packet that ends within what it takes for an IP header.
fn shortest(kind: Kind) -> usize {
    14 + if kind.is_v4 { 20 } else { 40 }
}

#[test]
fn of_mutated_packets_only_addresses_ports_and_checksums_change() {
    let mutated = |kind: Kind, valid: &[Vec<u8>]| {
        let changes = vec((any::<Index>(), any::<u8>()), 0..6);
        let cut = prop_oneof![3 => Just(None), 1 => any::<Index>().prop_map(Some)];
        (select(valid.to_vec()), changes, cut).prop_map(move |(mut packet, changes, cut)| {
            let framed = kind.link.length();
            for (place, byte) in changes {
                let length = packet.len() - framed;
                packet[framed + place.index(length)] = byte;
            }
            let shortest = shortest(kind);
            if let Some(cut) = cut {
                packet.truncate(shortest + cut.index(packet.len() - shortest + 1));
            }
            packet
        })
    };
    try_all(mutated, |_, _, _| Ok(()));
}

#[test]
fn packets_of_any_bytes_are_left_alone() {
    let any_bytes = |kind: Kind, _: &[Vec<u8>]| {
        let header = kind.framed(&[]);
        vec(any::<u8>(), shortest(kind)..300).prop_map(move |mut packet| {
            packet[..header.len()].copy_from_slice(&header);
            packet
        })
    };
    try_all(any_bytes, |_, _, fate| {
        prop_assert_eq!(fate, &Fate::Left);
        Ok(())
    });
}

#[test]
fn packets_with_right_ip_headers_and_any_bytes_behind_are_left_alone_if_they_are_of_strangers() {
    let strangers = |kind: Kind, _: &[Vec<u8>]| {
        let hosts = (0x2000_u16..0x3000, 0x2000_u16..0x3000);
        let protocol = prop_oneof![Just(1), Just(6), Just(17), Just(58), any::<u8>()];
        (hosts, protocol, vec(any::<u8>(), 20..200)).prop_map(
            move |((from, to), protocol, payload)| {
                let ends = (kind.ip(from), kind.ip(to));
                let shape = Shape::default();
                kind.framed(&super::packets::ip_packet(ends, protocol, &payload, &shape))
            },
        )
    };
    try_all(strangers, |_, _, fate| {
        prop_assert_eq!(fate, &Fate::Left);
        Ok(())
    });
}
