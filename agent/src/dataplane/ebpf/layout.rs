//! What is held → what the maps of the programs hold.
//!
//! Pure. The client of a socket is on this node, so the short circuits of traffic policies apply: it gets all back ends
//! that are planned. What is not here (front ends that drop, refuse, or ask for the source of a packet, and SCTP) is left to
//! the rules of the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proxyd_ebpf_common as bpf;

use crate::diff::{Delta, Entry, Held, Verdict};
use crate::model::{AffinityTimeout, Family, Frontend, Port, Protocol};
use crate::plan::{Backend, Member, Policy};

/// The contents of the maps, as far as they are of interest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// How front ends balance.
    pub(super) frontends: BTreeMap<bpf::FrontendKey, bpf::Frontend>,
    /// Their back ends.
    pub(super) backends: BTreeMap<bpf::BackendKey, bpf::Destination>,
    /// Which back ends a front end has whose clients keep theirs.
    pub(super) members: BTreeSet<bpf::MemberKey>,
    /// Which addresses have NodePorts.
    pub(super) node_addresses: BTreeMap<[u8; 16], bpf::WhoMayCall>,
}

impl Entries {
    /// What the maps hold of a family.
    pub(super) fn of(family: Family, held: &Held) -> Self {
        let mut entries = Self::default();
        for (frontend, entry) in &held.entries {
            if !held.members.contains(&Member::Guarded(*frontend)) {
                entries.add(*frontend, entry);
            }
        }
        let addresses = held.members.iter().filter_map(|member| match member {
            Member::NodePortAddress(ip) => Some(*ip),
            _ => None,
        });
        let addresses = addresses.map(|ip| (address(ip), bpf::ANYBODY));
        entries.node_addresses.extend(addresses);
        if family == Family::V4 && !entries.node_addresses.is_empty() {
            let loopback = address(Ipv4Addr::LOCALHOST.into());
            entries.node_addresses.insert(loopback, bpf::THE_NODE);
        }
        entries
    }

    /// What a delta touches, before and after.
    pub(super) fn around(family: Family, held: &Held, delta: &Delta) -> (Self, Self) {
        let guarded = delta.members.iter().filter_map(|change| match change.key {
            Member::Guarded(frontend) => Some(frontend),
            _ => None,
        });
        let touched: BTreeSet<Frontend> = delta.frontends().chain(guarded).collect();
        let entries = touched.iter();
        let entries = entries.filter_map(|f| Some((*f, held.entries.get(f)?.clone())));
        let of_touched = touched.iter().map(|f| Member::Guarded(*f));
        let of_node = held.members.iter().copied();
        let of_node = of_node.filter(|member| matches!(member, Member::NodePortAddress(_)));
        let mut part = Held {
            entries: entries.collect(),
            members: of_touched
                .filter(|member| held.members.contains(member))
                .chain(of_node)
                .collect(),
        };
        let before = Self::of(family, &part);
        part.apply(delta);
        (before, Self::of(family, &part))
    }

    fn add(&mut self, frontend: Frontend, entry: &Entry) {
        let Some(Verdict::Balance {
            policy,
            count,
            affinity,
            ..
        }) = entry.verdict
        else {
            return;
        };
        let Some(key) = frontend_key(frontend) else {
            return;
        };
        // Which other clients are pods the rules know, by the addresses and interfaces of packets.
        let is_for_node = policy == Policy::ExternalLocal;
        let value = bpf::Frontend {
            count: count.into(),
            affinity_seconds: affinity.map_or(0, AffinityTimeout::seconds),
            flags: if is_for_node { bpf::FOR_NODE_ONLY } else { 0 },
        };
        self.frontends.insert(key, value);
        let keeps_clients = affinity.is_some() || key.protocol == Protocol::Udp.number();
        for (index, backend) in (0..).zip(&entry.slots) {
            let Some(backend) = backend.map(destination) else {
                continue;
            };
            let frontend = key;
            let place = bpf::BackendKey { frontend, index };
            self.backends.insert(place, backend);
            if keeps_clients {
                let member = bpf::MemberKey { frontend, backend };
                self.members.insert(member);
            }
        }
    }
}

/// Whether a key is one of a family.
pub(super) fn is_of(family: Family, key: &bpf::FrontendKey) -> bool {
    let of = match key.kind {
        bpf::NODE_PORT_V4 => Family::V4,
        bpf::NODE_PORT_V6 => Family::V6,
        _ => family_of(&key.address),
    };
    of == family
}

/// The family of an address.
pub(super) fn family_of(address: &[u8; 16]) -> Family {
    match std::net::Ipv6Addr::from(*address).to_ipv4_mapped() {
        Some(_) => Family::V4,
        None => Family::V6,
    }
}

/// The key of a front end; `None` for protocols that are not balanced here.
fn frontend_key(frontend: Frontend) -> Option<bpf::FrontendKey> {
    let (ip, protocol, port, kind) = match frontend {
        Frontend::Address { ip, protocol, port } => (Some(ip), protocol, port, bpf::AT_ADDRESS),
        Frontend::NodePort {
            family,
            protocol,
            port,
        } => match family {
            Family::V4 => (None, protocol, port, bpf::NODE_PORT_V4),
            Family::V6 => (None, protocol, port, bpf::NODE_PORT_V6),
        },
    };
    (protocol != Protocol::Sctp).then(|| bpf::FrontendKey {
        address: ip.map_or([0; 16], address),
        port: network_order(port),
        protocol: protocol.number(),
        kind,
    })
}

fn destination(backend: Backend) -> bpf::Destination {
    bpf::Destination {
        address: address(backend.ip),
        port: network_order(backend.port),
        padding: 0,
    }
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn network_order(port: Port) -> u16 {
    port.get().to_be()
}
