//! Session affinity: whose remembered clients a change makes stale.
//!
//! Pure. The kernel forgets a client when its time is over; a back end that goes before has to be forgotten by us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::decode::Choice;
use crate::diff::{Delta, Held};
use crate::model::Frontend;
use crate::plan::{Backend, Member};

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forgotten {
    which: Which,
    /// The addresses that NodePorts are at.
    node_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    /// For each front end the back ends that it has no longer; `None`: all of them.
    Gone(BTreeMap<Frontend, Option<BTreeSet<Backend>>>),
    /// All but these back ends of these front ends.
    AllBut(BTreeMap<Frontend, BTreeSet<Backend>>),
}

impl Forgotten {
    /// Every choice that no front end which is held may have made.
    pub(super) fn unknown_to(held: &Held) -> Self {
        let affine = held.entries.iter().filter(|(_, entry)| {
            let verdict = entry.verdict;
            verdict.is_some_and(|verdict| verdict.affinity().is_some())
        });
        let known = affine.map(|(frontend, entry)| {
            let backends = entry.slots.iter().chain(&entry.local);
            (*frontend, backends.copied().flatten().collect())
        });
        Self {
            which: Which::AllBut(known.collect()),
            node_addresses: node_addresses(held),
        }
    }

    /// What a delta to what was held makes stale: back ends that left a front end with affinity, and everything where
    /// affinity ends or the policy changes.
    pub(super) fn by(held: &Held, delta: &Delta) -> Self {
        let mut frontends = BTreeMap::new();
        for change in &delta.rules {
            let Some(from) = change.from.filter(|from| from.affinity().is_some()) else {
                continue;
            };
            let goes_on = change
                .to
                .is_some_and(|to| to.affinity().is_some() && to.policy() == from.policy());
            if !goes_on {
                frontends.insert(change.key, None);
            }
        }
        for change in &delta.backends {
            let entry = held.entries.get(&change.key.frontend);
            let had_affinity = entry.and_then(|entry| entry.verdict?.affinity()).is_some();
            if !had_affinity {
                continue;
            }
            let gone = frontends
                .entry(change.key.frontend)
                .or_insert_with(|| Some(BTreeSet::new()));
            if let Some(gone) = gone {
                gone.extend(change.from);
            }
        }
        // One that only moved to another place is still there.
        for change in &delta.backends {
            if let Some(Some(gone)) = frontends.get_mut(&change.key.frontend)
                && let Some(to) = change.to
            {
                gone.remove(&to);
            }
        }
        frontends.retain(|_, gone| gone.as_ref().is_none_or(|gone| !gone.is_empty()));
        Self {
            which: Which::Gone(frontends),
            node_addresses: node_addresses(held),
        }
    }

    /// Whether there is nothing to forget.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.which, Which::Gone(frontends) if frontends.is_empty())
    }

    /// Whether a choice is to be forgotten.
    pub(super) fn contains(&self, choice: &Choice) -> bool {
        let at_node = self.node_addresses.contains(&choice.called);
        let mut called = frontends(choice, at_node);
        match &self.which {
            Which::Gone(gone) => called.filter_map(|f| gone.get(&f)).any(|gone| {
                gone.as_ref()
                    .is_none_or(|gone| gone.contains(&choice.backend))
            }),
            Which::AllBut(known) => {
                !called.any(|f| known.get(&f).is_some_and(|k| k.contains(&choice.backend)))
            }
        }
    }
}

fn node_addresses(held: &Held) -> BTreeSet<IpAddr> {
    let first = Member::NodePortAddress(Ipv4Addr::UNSPECIFIED.into());
    let last = Member::NodePortAddress(Ipv6Addr::from([0xff; 16]).into());
    let members = held.members.range(first..=last);
    let addresses = members.filter_map(|member| match member {
        Member::NodePortAddress(address) => Some(*address),
        _ => None,
    });
    addresses.collect()
}

/// The front ends that a client may have called.
fn frontends(choice: &Choice, at_node: bool) -> impl Iterator<Item = Frontend> {
    let Choice {
        called,
        protocol,
        port,
        ..
    } = *choice;
    let address = Frontend::Address {
        ip: called,
        protocol,
        port,
    };
    let family = address.family();
    let node_port = at_node.then_some(Frontend::NodePort {
        family,
        protocol,
        port,
    });
    [Some(address), node_port].into_iter().flatten()
}
