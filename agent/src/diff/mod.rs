//! Held → desired: the smallest set of changes that makes what the kernel holds equal to what was planned.
//!
//! Pure. Comparing what a change touched gives the same result as comparing everything. The place (index) of
//! a back end has no meaning of its own, so one that stays keeps its place and a hole is filled from the end:
//! an endpoint that goes costs two changes, however many there are.

mod delta;
mod held;

use std::collections::BTreeSet;

pub use delta::{Change, Delta, Slot, Verdict};
pub use held::{Entry, Held};

use crate::model::{Frontend, Scope};
use crate::plan::{Backend, Rule, Tables};

/// Compares what the kernel holds with what was planned, within the scope that was planned.
pub fn diff(held: &Held, desired: &Tables, scope: &Scope) -> Delta {
    let mut delta = Delta::default();
    match scope {
        Scope::All => {
            let frontends: BTreeSet<&Frontend> =
                held.entries.keys().chain(desired.rules.keys()).collect();
            frontends
                .into_iter()
                .for_each(|frontend| diff_frontend(*frontend, held, desired, &mut delta));
            let hairpin = held.hairpin.union(&desired.hairpin).copied();
            delta.hairpin = members(hairpin, &held.hairpin, &desired.hairpin);
        }
        Scope::Touched(touched) => {
            let frontends = touched.frontends.iter();
            frontends.for_each(|frontend| diff_frontend(*frontend, held, desired, &mut delta));
            let hairpin = touched.endpoints_here.iter().copied();
            delta.hairpin = members(hairpin, &held.hairpin, &desired.hairpin);
        }
    }
    if matches!(scope, Scope::All) || matches!(scope, Scope::Touched(touched) if touched.node) {
        let (from, to) = (&held.node_port_addresses, &desired.node_port_addresses);
        delta.node_port_addresses = members(from.union(to).copied(), from, to);
    }
    delta
}

/// The changes of membership among some keys of a set.
fn members<K: Copy + Ord>(
    keys: impl Iterator<Item = K>,
    held: &BTreeSet<K>,
    desired: &BTreeSet<K>,
) -> Vec<Change<K, ()>> {
    let is_in = |set: &BTreeSet<K>, key: &K| set.contains(key).then_some(());
    keys.filter_map(|key| Change::between(key, is_in(held, &key), is_in(desired, &key)))
        .collect()
}

fn diff_frontend(frontend: Frontend, held: &Held, desired: &Tables, delta: &mut Delta) {
    let nothing = Entry::default();
    let held = held.entries.get(&frontend).unwrap_or(&nothing);
    let rule = desired.rules.get(&frontend);
    let wanted: &[Backend] = match rule {
        Some(Rule::Balance { backends, .. }) => backends,
        Some(Rule::Reject) | None => &[],
    };
    delta.rules.extend(Change::between(
        frontend,
        held.verdict,
        rule.map(Verdict::of),
    ));
    let placed = place(&held.slots, wanted);
    let slots = held.slots.len().max(placed.len());
    delta.backends.extend((0..slots).filter_map(|index| {
        let from = held.slots.get(index).copied().flatten();
        let to = placed.get(index).copied();
        Change::between(Slot::new(frontend, index), from, to)
    }));
}

/// Gives each wanted back end a place from 0 up, without a hole: those held keep theirs where they can.
/// `wanted` is sorted and holds each back end once.
fn place(held: &[Option<Backend>], wanted: &[Backend]) -> Vec<Backend> {
    let mut kept = vec![false; wanted.len()];
    let mut placed: Vec<Option<Backend>> = vec![None; wanted.len()];
    for (place, backend) in placed.iter_mut().zip(held) {
        let found = backend.and_then(|backend| wanted.binary_search(&backend).ok());
        if let Some(index) = found.filter(|index| !kept[*index]) {
            kept[index] = true;
            *place = *backend;
        }
    }
    let mut others = wanted
        .iter()
        .zip(kept)
        .filter(|(_, kept)| !kept)
        .map(|(backend, _)| *backend);
    placed
        .into_iter()
        .map_while(|place| place.or_else(|| others.next()))
        .collect()
}

#[cfg(test)]
mod tests;
