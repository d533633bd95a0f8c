//! Session affinity: whose remembered clients a change makes stale.
//!
//! Pure. The kernel forgets a client when its time is over; a back end that goes before has to be forgotten by us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::decode::Choice;
use crate::diff::{Delta, Held};
use crate::model::Frontend;
use crate::plan::{Backend, Member};

/// What is to be forgotten.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forgotten {
    /// For each front end the back ends that it has no longer; `None`: all of them.
    frontends: BTreeMap<Frontend, Option<BTreeSet<Backend>>>,
    /// The addresses that NodePorts are at.
    node_addresses: BTreeSet<IpAddr>,
}

impl Forgotten {
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
        let has_node_port = |frontend: &Frontend| frontend.address().is_none();
        let node_addresses = if frontends.keys().any(has_node_port) {
            let members = held.members.iter();
            let addresses = members.filter_map(|member| match member {
                Member::NodePortAddress(address) => Some(*address),
                _ => None,
            });
            addresses.collect()
        } else {
            BTreeSet::new()
        };
        Self {
            frontends,
            node_addresses,
        }
    }

    /// Whether there is nothing to forget.
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Whether a choice is to be forgotten.
    pub(super) fn contains(&self, choice: &Choice) -> bool {
        let at_node = self.node_addresses.contains(&choice.called);
        let mut gone =
            frontends(choice, at_node).filter_map(|frontend| self.frontends.get(&frontend));
        gone.any(|gone| {
            gone.as_ref()
                .is_none_or(|gone| gone.contains(&choice.backend))
        })
    }
}

/// Whether a choice is one that a front end with affinity may have made.
pub(super) fn is_known(held: &Held, choice: &Choice) -> bool {
    let at_node = held
        .members
        .contains(&Member::NodePortAddress(choice.called));
    let mut entries = frontends(choice, at_node).filter_map(|f| held.entries.get(&f));
    entries.any(|entry| {
        let has_affinity = entry.verdict.is_some_and(|v| v.affinity().is_some());
        let backend = Some(choice.backend);
        has_affinity && (entry.slots.contains(&backend) || entry.local.contains(&backend))
    })
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
