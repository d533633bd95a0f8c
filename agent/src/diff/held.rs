//! What the kernel holds of one family: read back from it, or kept up with the deltas committed since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::Frontend;
use crate::plan::Backend;

use super::{Change, Delta, Verdict};

/// The tables of one family as they are in the kernel. Unlike [`crate::plan::Tables`] it can also hold what
/// was never planned, such as a hole that someone else tore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Each front end that has a verdict or back ends.
    pub entries: BTreeMap<Frontend, Entry>,
    /// Endpoints that may run on this node.
    pub hairpin: BTreeSet<IpAddr>,
    /// The addresses of this node that have NodePorts.
    pub node_port_addresses: BTreeSet<IpAddr>,
}

/// What the kernel holds of one front end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its verdict.
    pub verdict: Option<Verdict>,
    /// Its back ends by index. The last one is never `None`.
    pub slots: Vec<Option<Backend>>,
}

impl Held {
    /// Notes a delta that was committed.
    pub fn apply(&mut self, delta: &Delta) {
        for change in &delta.rules {
            self.set_verdict(change.key, change.to);
        }
        for change in &delta.backends {
            self.set_backend(change.key.frontend, change.key.index, change.to);
        }
        let ends = delta
            .rules
            .iter()
            .map(|c| c.key)
            .chain(delta.backends.iter().map(|c| c.key.frontend));
        for frontend in ends {
            if self.entries.get(&frontend).is_some_and(Entry::is_empty) {
                self.entries.remove(&frontend);
            }
        }
        apply_members(&mut self.hairpin, &delta.hairpin);
        apply_members(&mut self.node_port_addresses, &delta.node_port_addresses);
    }

    /// Sets the verdict of a front end.
    pub fn set_verdict(&mut self, frontend: Frontend, verdict: Option<Verdict>) {
        self.entries.entry(frontend).or_default().verdict = verdict;
    }

    /// Sets the back end at an index of a front end.
    pub fn set_backend(&mut self, frontend: Frontend, index: u16, backend: Option<Backend>) {
        let slots = &mut self.entries.entry(frontend).or_default().slots;
        let index = usize::from(index);
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index] = backend;
        let used = slots
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |last| last + 1);
        slots.truncate(used);
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.verdict.is_none() && self.slots.is_empty()
    }
}

fn apply_members(set: &mut BTreeSet<IpAddr>, changes: &[Change<IpAddr, ()>]) {
    for change in changes {
        match change.to {
            Some(()) => set.insert(change.key),
            None => set.remove(&change.key),
        };
    }
}
