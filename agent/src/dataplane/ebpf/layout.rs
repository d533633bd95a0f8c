//! What is held → what the maps of the programs hold, and back.
//!
//! Pure. What is not here (front ends that drop or refuse, and SCTP) is left to the rules of the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use proxyd_ebpf_common as bpf;

use super::maglev::{Backends, TableSize};
use crate::diff::{Delta, Entry, Held, Slots, Verdict};
use crate::model::{AffinityTimeout, Family, Frontend, Port, Protocol};
use crate::plan::{Affinity, Backend, Member, Policy};

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
    /// Under which front end the choices of clients of another one are remembered.
    pub(super) affinity_keys: BTreeMap<bpf::FrontendKey, bpf::FrontendKey>,
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
                | Member::OuterAddress(_)
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
        // Whether there is any of these counts for all, see `of`.
        let is_node_address = |member: &Member| matches!(member, Member::NodePortAddress(_));
        let mut changed = delta.members.iter();
        let addresses = changed
            .any(|change| is_node_address(&change.key))
            .then(|| held.members.iter().copied().filter(is_node_address));
        let mut part = Held {
            entries: entries.collect(),
            members: Member::of_frontends(&held.members, &touched)
                .chain(addresses.into_iter().flatten())
                .collect(),
        };
        let before = Self::of(family, &part, size);
        part.apply(delta);
        (before, Self::of(family, &part, size))
    }

    /// What is held of front ends for the maps to hold this. What cannot come of that is left out.
    pub(super) fn held(&self) -> BTreeMap<Frontend, Entry> {
        let entry = |(key, value): (&bpf::FrontendKey, &bpf::Frontend)| {
            let frontend = frontend_of(key)?;
            let of_list = |first, count| {
                let places = (first..first + count).map(|index| bpf::BackendKey {
                    frontend: *key,
                    index,
                });
                let mut list: Slots = places
                    .map(|place| backend_of(self.backends.get(&place)?))
                    .collect();
                while list.last().is_some_and(Option::is_none) {
                    list.pop();
                }
                list
            };
            let entry = Entry {
                verdict: Some(self.verdict_of(key, value)?),
                slots: of_list(0, value.count),
                local: of_list(bpf::FIRST_LOCAL, value.local),
            };
            Some((frontend, entry))
        };
        self.frontends.iter().filter_map(entry).collect()
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
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let guarded = flag(members.contains(&Member::Guarded(frontend)), bpf::GUARDED);
        let is_mixed = affinity.is_some_and(|affinity| affinity.is_mixed);
        let shared = affinity.and_then(|affinity| frontend_key(affinity.key));
        if let Some(shared) = shared.filter(|shared| *shared != key) {
            self.affinity_keys.insert(key, shared);
        }
        let value = bpf::Frontend {
            count: count.into(),
            local: local.into(),
            affinity_seconds: affinity.map_or(0, |affinity| affinity.timeout.seconds()),
            flags: flags(policy) | guarded | flag(is_mixed, bpf::AFFINITY_MIXED),
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

    /// The verdict on a front end that balances like this.
    fn verdict_of(&self, key: &bpf::FrontendKey, frontend: &bpf::Frontend) -> Option<Verdict> {
        let affinity = match frontend.affinity_seconds {
            0 => None,
            seconds => Some(Affinity {
                timeout: AffinityTimeout::new(seconds)?,
                key: frontend_of(self.affinity_keys.get(key).unwrap_or(key))?,
                is_mixed: frontend.flags & bpf::AFFINITY_MIXED != 0,
            }),
        };
        Some(Verdict::Balance {
            policy: policy_of(frontend.flags)?,
            count: frontend.count.try_into().ok()?,
            local: frontend.local.try_into().ok()?,
            affinity,
        })
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

/// The policy that has these flags.
fn policy_of(flags: u32) -> Option<Policy> {
    let policies = [Policy::Cluster, Policy::External, Policy::ExternalLocal];
    let mut policies = policies.into_iter();
    policies.find(|policy| self::flags(*policy) == flags & !(bpf::GUARDED | bpf::AFFINITY_MIXED))
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

/// The front end that has a key.
fn frontend_of(key: &bpf::FrontendKey) -> Option<Frontend> {
    let mut protocols = Protocol::ALL.into_iter();
    let protocol = protocols.find(|protocol| protocol.number() == key.protocol)?;
    let port = Port::new(u16::from_be(key.port))?;
    let family = match key.kind {
        bpf::AT_ADDRESS => {
            let ip = key.address.into();
            return Some(Frontend::Address { ip, protocol, port });
        }
        bpf::NODE_PORT_V4 => Family::V4,
        bpf::NODE_PORT_V6 => Family::V6,
        _ => return None,
    };
    Some(Frontend::NodePort {
        family,
        protocol,
        port,
    })
}

fn backend_of(destination: &bpf::Destination) -> Option<Backend> {
    let address = SocketAddr::from(*destination);
    Some(Backend {
        ip: address.ip(),
        port: Port::new(address.port())?,
    })
}
