//! What the kernel holds of one family: read back from it, or kept up with the deltas committed since.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Frontend;
use crate::plan::{Backend, Member};

use super::{Change, Delta, Slot, Verdict};

/// The tables of one family as they are in the kernel. Unlike [`crate::plan::Tables`] it can also hold what
/// was never planned, such as a hole that someone else tore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Each front end that has a verdict or back ends.
    pub entries: BTreeMap<Frontend, Entry>,
    /// What the rules look up beside the front ends.
    pub members: BTreeSet<Member>,
}

/// What the kernel holds of one front end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its verdict.
    pub verdict: Option<Verdict>,
    /// Its back ends.
    pub slots: Slots,
    /// Its local back ends.
    pub local: Slots,
}

/// Back ends by index, counted from the first of their list. The last one is never `None`.
pub type Slots = Vec<Option<Backend>>;

impl Held {
    /// Notes a delta that was committed.
    pub fn apply(&mut self, delta: &Delta) {
        for change in &delta.rules {
            self.set_verdict(change.key, change.to);
        }
        for change in &delta.backends {
            self.set_backend(change.key, change.to);
        }
        for frontend in delta.frontends() {
            if self.entries.get(&frontend).is_some_and(Entry::is_empty) {
                self.entries.remove(&frontend);
            }
        }
        for Change { key, to, .. } in &delta.members {
            match to {
                Some(()) => self.members.insert(*key),
                None => self.members.remove(key),
            };
        }
    }

    /// Sets the verdict of a front end.
    pub fn set_verdict(&mut self, frontend: Frontend, verdict: Option<Verdict>) {
        self.entries.entry(frontend).or_default().verdict = verdict;
    }

    /// Sets the back end at a place.
    pub fn set_backend(&mut self, slot: Slot, backend: Option<Backend>) {
        let entry = self.entries.entry(slot.frontend).or_default();
        let (slots, index) = match slot.index.checked_sub(Slot::FIRST_LOCAL) {
            Some(index) => (&mut entry.local, index),
            None => (&mut entry.slots, slot.index),
        };
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

    /// The back end at a place.
    pub fn backend(&self, slot: Slot) -> Option<Backend> {
        let entry = self.entries.get(&slot.frontend)?;
        let (slots, index) = match slot.index.checked_sub(Slot::FIRST_LOCAL) {
            Some(index) => (&entry.local, index),
            None => (&entry.slots, slot.index),
        };
        slots.get(usize::from(index)).copied().flatten()
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.verdict.is_none() && self.slots.is_empty() && self.local.is_empty()
    }
}
