//! Two contents of the maps → the writes that lead from one to the other.
//!
//! Pure. Writes to several maps are not atomic together, so their order is: first what front ends lead to, then how many back ends each
//! has, then what is not used any more. After each of them, whoever picks gets an old or a new back end.

use std::collections::{BTreeMap, BTreeSet};

use proxyd_ebpf_common as bpf;

use super::layout::{Entries, Prefix};

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// How a front end balances; `None`: it is gone.
    Frontend(bpf::FrontendKey, Option<bpf::Frontend>),
    /// A back end; `None`: it is gone.
    Backend(bpf::BackendKey, Option<bpf::Destination>),
    /// In which lists a front end has a back end; `None`: in none.
    Member(bpf::MemberKey, Option<u8>),
    /// Under which front end the choices of clients of another one are remembered; `None`: under its own.
    AffinityKey(bpf::FrontendKey, Option<bpf::FrontendKey>),
    /// Who may call an address for its NodePorts; `None`: nobody.
    NodeAddress(bpf::Address, Option<bpf::WhoMayCall>),
    /// What was counted for a back end that a front end does not have any more is forgotten.
    Uncount(bpf::MemberKey),
    /// A network is one of pods; `None`: it is none any more.
    PodNetwork(Prefix<bpf::NetworkKey>, Option<()>),
    /// A source may call a front end; `None`: it may not any more.
    Allowed(Prefix<bpf::AllowedKey>, Option<()>),
}

/// The writes that lead from one content to another.
pub(super) fn writes(before: &Entries, after: &Entries) -> Vec<Write> {
    use Write::{
        AffinityKey, Allowed, Backend, Frontend, Member, NodeAddress, PodNetwork, Uncount,
    };
    let mut writes = Vec::new();
    writes.extend(set(&before.backends, &after.backends, Backend));
    writes.extend(set(&before.members, &after.members, Member));
    writes.extend(set(
        &before.affinity_keys,
        &after.affinity_keys,
        AffinityKey,
    ));
    writes.extend(set(
        &before.node_addresses,
        &after.node_addresses,
        NodeAddress,
    ));
    writes.extend(set(&before.pod_networks, &after.pod_networks, PodNetwork));
    writes.extend(set(&before.allowed, &after.allowed, Allowed));

    writes.extend(set(&before.frontends, &after.frontends, Frontend));
    writes.extend(gone(&before.frontends, &after.frontends, Frontend));

    writes.extend(gone(&before.backends, &after.backends, Backend));
    writes.extend(gone(&before.members, &after.members, Member));
    writes.extend(gone(
        &before.affinity_keys,
        &after.affinity_keys,
        AffinityKey,
    ));
    writes.extend(gone(
        &before.node_addresses,
        &after.node_addresses,
        NodeAddress,
    ));
    writes.extend(gone(&before.pod_networks, &after.pod_networks, PodNetwork));
    writes.extend(gone(&before.allowed, &after.allowed, Allowed));
    writes.extend(left(before, after).into_iter().map(Uncount));
    writes
}

/// The back ends that front ends do not have any more.
fn left(before: &Entries, after: &Entries) -> BTreeSet<bpf::MemberKey> {
    let member = |place: &bpf::BackendKey, backend: &bpf::Destination| bpf::MemberKey {
        frontend: place.frontend,
        backend: *backend,
    };
    let moved = before.backends.iter();
    let moved = moved.filter(|(place, backend)| after.backends.get(*place) != Some(*backend));
    let mut left: BTreeSet<_> = moved
        .map(|(place, backend)| member(place, backend))
        .collect();
    let frontends: BTreeSet<_> = left.iter().map(|member| member.frontend).collect();
    for frontend in frontends {
        let place = |index| bpf::BackendKey { frontend, index };
        for (place, backend) in after.backends.range(place(0)..=place(u32::MAX)) {
            left.remove(&member(place, backend));
        }
    }
    left
}

/// Keys that are new or have another value.
fn set<K: Copy + Ord, V: Copy + PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    write: fn(K, Option<V>) -> Write,
) -> impl Iterator<Item = Write> {
    let new = after
        .iter()
        .filter(|(key, to)| before.get(key) != Some(*to));
    new.map(move |(key, to)| write(*key, Some(*to)))
}

/// Keys that are no more.
fn gone<K: Copy + Ord, V>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    write: fn(K, Option<V>) -> Write,
) -> impl Iterator<Item = Write> {
    let old = before.keys().filter(|key| !after.contains_key(key));
    old.map(move |key| write(*key, None))
}
