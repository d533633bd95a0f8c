//! What is held → what the maps of the programs hold.
//!
//! Pure. What is not here (front ends that drop or refuse, and SCTP) is left to the rules of the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use proxyd_ebpf_common as bpf;

use super::super::nft::Duty;
use super::maglev::{Backends, TableSize};
use crate::diff::{Delta, Entry, Held, Verdict};
use crate::model::{AffinityTimeout, Family, Frontend, Protocol};
use crate::plan::{Backend, Member, Policy, Tables};

/// How many bytes the key of a front end has.
pub(super) const FRONTEND_BYTES: u32 = size_of::<bpf::FrontendKey>() as u32;

/// The contents of the maps, as far as they are of interest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// How front ends balance.
    pub(super) frontends: BTreeMap<bpf::FrontendKey, bpf::Frontend>,
    /// Their back ends.
    pub(super) backends: BTreeMap<bpf::BackendKey, bpf::Destination>,
    /// Which back ends a front end has whose clients keep theirs, and in which of its lists.
    pub(super) members: BTreeMap<bpf::MemberKey, u8>,
    /// Which addresses have NodePorts.
    pub(super) node_addresses: BTreeMap<bpf::Address, bpf::WhoMayCall>,
    /// Which networks pods are in.
    pub(super) pod_networks: BTreeMap<Prefix<bpf::NetworkKey>, ()>,
    /// Which sources may call front ends that only some may.
    pub(super) allowed: BTreeMap<Prefix<bpf::AllowedKey>, ()>,
    /// The tables by which front ends choose for clients outside; those with the same back ends share one.
    pub(super) tables: BTreeMap<bpf::Table, Backends>,
}

/// A key of which only a prefix counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix<K> {
    /// The key.
    pub(super) key: K,
    /// How many bits of it count.
    pub(super) bits: u32,
}

impl Entries {
    /// What the maps hold of a family.
    pub(super) fn of(family: Family, held: &Held, size: TableSize) -> Self {
        let mut entries = Self::default();
        for (frontend, entry) in &held.entries {
            entries.add(*frontend, entry, &held.members, size);
        }
        for member in &held.members {
            match *member {
                Member::NodePortAddress(ip) => {
                    entries.node_addresses.insert(ip.into(), bpf::ANYBODY);
                }
                Member::PodNetwork(network) => {
                    entries.pod_networks.insert(network_key(network), ());
                }
                Member::AllowedSource(frontend, network) => {
                    let key = allowed_key(frontend, network);
                    entries.allowed.extend(key.map(|key| (key, ())));
                }
                Member::Guarded(_)
                | Member::Hairpin(_)
                | Member::ClusterIp(_)
                | Member::ServiceNetwork(_) => {}
            }
        }
        if family == Family::V4 && !entries.node_addresses.is_empty() {
            let loopback = IpAddr::from(Ipv4Addr::LOCALHOST).into();
            entries.node_addresses.insert(loopback, bpf::THE_NODE);
        }
        entries
    }

    /// What a delta touches, before and after.
    pub(super) fn around(
        family: Family,
        held: &Held,
        delta: &Delta,
        size: TableSize,
    ) -> (Self, Self) {
        let guards = delta.members.iter().filter_map(|change| match change.key {
            Member::Guarded(frontend) | Member::AllowedSource(frontend, _) => Some(frontend),
            _ => None,
        });
        let touched: BTreeSet<Frontend> = delta.frontends().chain(guards).collect();
        let entries = touched.iter();
        let entries = entries.filter_map(|f| Some((*f, held.entries.get(f)?.clone())));
        let of_node =
            held.members.iter().copied().filter(|member| {
                matches!(member, Member::NodePortAddress(_) | Member::PodNetwork(_))
            });
        let mut part = Held {
            entries: entries.collect(),
            members: Member::of_frontends(&held.members, &touched)
                .chain(of_node)
                .collect(),
        };
        let before = Self::of(family, &part, size);
        part.apply(delta);
        (before, Self::of(family, &part, size))
    }

    fn add(
        &mut self,
        frontend: Frontend,
        entry: &Entry,
        members: &BTreeSet<Member>,
        size: TableSize,
    ) {
        let Some(Verdict::Balance {
            policy,
            count,
            local,
            affinity,
        }) = entry.verdict
        else {
            return;
        };
        let Some(key) = frontend_key(frontend) else {
            return;
        };
        let guarded = if members.contains(&Member::Guarded(frontend)) {
            bpf::GUARDED
        } else {
            0
        };
        let value = bpf::Frontend {
            count: count.into(),
            local: local.into(),
            affinity_seconds: affinity.map_or(0, AffinityTimeout::seconds),
            flags: flags(policy) | guarded,
            table: self.add_table(policy, entry, size),
        };
        self.frontends.insert(key, value);
        let keeps_clients = affinity.is_some() || key.protocol == Protocol::Udp.number();
        for (first, list, bit) in [
            (0, &entry.slots, bpf::ANYWHERE),
            (bpf::FIRST_LOCAL, &entry.local, bpf::HERE),
        ] {
            for (index, backend) in (first..).zip(list) {
                let Some(backend) = backend.map(destination_of) else {
                    continue;
                };
                let frontend = key;
                let place = bpf::BackendKey { frontend, index };
                self.backends.insert(place, backend);
                if keeps_clients {
                    let member = bpf::MemberKey { frontend, backend };
                    *self.members.entry(member).or_default() |= bit;
                }
            }
        }
    }

    /// Adds the table of a front end that clients outside call, if it has a use for one.
    fn add_table(&mut self, policy: Policy, entry: &Entry, size: TableSize) -> bpf::Table {
        let list = match policy {
            Policy::Cluster => return bpf::Table::NONE,
            Policy::External => &entry.slots,
            Policy::ExternalLocal => &entry.local,
        };
        let backends = list.iter().copied().flatten().map(destination_of);
        let backends = Backends::new(backends);
        let Some(table) = backends.table(size) else {
            return bpf::Table::NONE;
        };
        self.tables.insert(table, backends);
        table
    }
}

fn flags(policy: Policy) -> u32 {
    match policy {
        Policy::Cluster => bpf::MASQUERADE_OUTSIDE,
        Policy::External => bpf::MASQUERADE_ALL,
        Policy::ExternalLocal => bpf::LOCAL_OUTSIDE,
    }
}

/// What rules beside the programs have to do for what is planned.
pub fn duty_for(tables: &Tables) -> Duty {
    let mut rules = tables.rules.iter();
    if rules.any(|(frontend, rule)| is_for_rules(*frontend, Verdict::of(rule))) {
        Duty::Balance
    } else {
        Duty::Refuse
    }
}

/// Whether only rules balance a front end.
pub(super) fn is_for_rules(frontend: Frontend, verdict: Verdict) -> bool {
    frontend.protocol() == Protocol::Sctp && matches!(verdict, Verdict::Balance { .. })
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
pub(super) fn family_of(address: &bpf::Address) -> Family {
    Family::of((*address).into())
}

/// The key of a network. IPv4 addresses are mapped, so their prefixes are longer.
fn network_key(network: IpNet) -> Prefix<bpf::NetworkKey> {
    Prefix {
        key: bpf::NetworkKey {
            address: network.network().into(),
        },
        bits: u32::from(network.prefix_len()) + 128 - u32::from(network.max_prefix_len()),
    }
}

/// The key of a source that may call a front end.
fn allowed_key(frontend: Frontend, network: IpNet) -> Option<Prefix<bpf::AllowedKey>> {
    let Prefix { key, bits } = network_key(network);
    Some(Prefix {
        key: bpf::AllowedKey {
            frontend: frontend_key(frontend)?,
            source: key.address,
        },
        bits: 8 * FRONTEND_BYTES + bits,
    })
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
        address: ip.map_or(bpf::Address::NONE, bpf::Address::from),
        port: port.get().to_be(),
        protocol: protocol.number(),
        kind,
    })
}

fn destination_of(backend: Backend) -> bpf::Destination {
    SocketAddr::new(backend.ip, backend.port.get()).into()
}
