//! Two contents of the maps → the writes that lead from one to the other.
//!
//! Pure. Writes to several maps are not atomic together, so their order is: back ends first, then how many of them a front
//! end has, then what is not used any more. After each of them, whoever picks gets an old or a new back end.

use proxyd_ebpf_common as bpf;

use super::layout::Entries;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// How a front end balances; `None`: it is gone.
    Frontend(bpf::FrontendKey, Option<bpf::Frontend>),
    /// A back end; `None`: it is gone.
    Backend(bpf::BackendKey, Option<bpf::Destination>),
    /// Whether a front end has a back end.
    Member(bpf::MemberKey, bool),
    /// Who may call an address for its NodePorts; `None`: nobody.
    NodeAddress([u8; 16], Option<bpf::WhoMayCall>),
}

/// The writes that lead from one content to another.
pub(super) fn writes(before: &Entries, after: &Entries) -> Vec<Write> {
    let new_backends = after.backends.iter();
    let new_backends = new_backends.filter(|(key, to)| before.backends.get(key) != Some(*to));
    let new_backends = new_backends.map(|(key, to)| Write::Backend(*key, Some(*to)));
    let new_members = after.members.difference(&before.members);
    let new_members = new_members.map(|key| Write::Member(*key, true));
    let new_addresses = after.node_addresses.iter();
    let new_addresses =
        new_addresses.filter(|(key, who)| before.node_addresses.get(*key) != Some(*who));
    let new_addresses = new_addresses.map(|(key, who)| Write::NodeAddress(*key, Some(*who)));

    let frontends = after.frontends.iter();
    let frontends = frontends.filter(|(key, to)| before.frontends.get(key) != Some(*to));
    let frontends = frontends.map(|(key, to)| Write::Frontend(*key, Some(*to)));
    let gone = before.frontends.keys();
    let gone = gone.filter(|key| !after.frontends.contains_key(key));
    let gone = gone.map(|key| Write::Frontend(*key, None));

    let old_backends = before.backends.keys();
    let old_backends = old_backends.filter(|key| !after.backends.contains_key(key));
    let old_backends = old_backends.map(|key| Write::Backend(*key, None));
    let old_members = before.members.difference(&after.members);
    let old_members = old_members.map(|key| Write::Member(*key, false));
    let old_addresses = before.node_addresses.keys();
    let old_addresses = old_addresses.filter(|key| !after.node_addresses.contains_key(*key));
    let old_addresses = old_addresses.map(|key| Write::NodeAddress(*key, None));

    new_backends
        .chain(new_members)
        .chain(new_addresses)
        .chain(frontends)
        .chain(gone)
        .chain(old_backends)
        .chain(old_members)
        .chain(old_addresses)
        .collect()
}
