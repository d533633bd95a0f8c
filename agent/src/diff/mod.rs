//! Held → desired: the smallest set of changes that makes what the kernel holds equal to what was planned.
//!
//! Pure. Comparing what a change touched gives the same result as comparing everything. The place (index) of
//! a back end has no meaning of its own, so one that stays keeps its place and a hole is filled from the end:
//! an endpoint that goes costs two changes, however many there are.

mod delta;
mod held;

use std::collections::BTreeSet;

pub use delta::{Change, Delta, Slot, Verdict};
pub use held::{Entry, Held, Slots};

use crate::model::{Frontend, Scope, Touched};
use crate::plan::{Backend, Member, Rule, Tables};

/// Compares what the kernel holds with what was planned, within the scope that was planned.
pub fn diff(held: &Held, desired: &Tables, scope: &Scope) -> Delta {
    let mut delta = Delta::default();
    let of_members = |gone: &mut dyn Iterator<Item = Member>| {
        let gone = gone.filter(|member| !desired.members.contains(member));
        let new = desired.members.difference(&held.members);
        let gone = gone.map(|key| Change {
            key,
            from: Some(()),
            to: None,
        });
        let new = new.map(|key| Change {
            key: *key,
            from: None,
            to: Some(()),
        });
        gone.chain(new).collect()
    };
    match scope {
        Scope::All => {
            let frontends: BTreeSet<&Frontend> =
                held.entries.keys().chain(desired.rules.keys()).collect();
            frontends
                .into_iter()
                .for_each(|frontend| diff_frontend(*frontend, held, desired, &mut delta));
            delta.members = of_members(&mut held.members.iter().copied());
        }
        Scope::Touched(touched) => {
            let frontends = touched.frontends.iter();
            frontends.for_each(|frontend| diff_frontend(*frontend, held, desired, &mut delta));
            delta.members = of_members(&mut members_in(held, touched).into_iter());
        }
    }
    delta
}

/// The held members that a change may have affected, each once.
fn members_in(held: &Held, touched: &Touched) -> BTreeSet<Member> {
    let here = touched.endpoints_here.iter().copied().map(Member::Hairpin);
    let here = here.filter(|member| held.members.contains(member));
    here.chain(Member::of_frontends(&held.members, &touched.frontends))
        .collect()
}

/// Compares what the kernel holds with what it held.
pub fn between(found: &Held, before: &Held) -> Delta {
    let nothing = Entry::default();
    let mut delta = Delta::default();
    let frontends: BTreeSet<&Frontend> =
        found.entries.keys().chain(before.entries.keys()).collect();
    for frontend in frontends {
        let [found, before] =
            [found, before].map(|held| held.entries.get(frontend).unwrap_or(&nothing));
        let lists = [before.slots.as_slice(), &before.local];
        compare(*frontend, found, (before.verdict, lists), &mut delta);
    }
    let gone = found.members.difference(&before.members);
    let gone = gone.map(|member| (*member, Some(()), None));
    let missing = before.members.difference(&found.members);
    let missing = missing.map(|member| (*member, None, Some(())));
    let members = gone.chain(missing);
    let members = members.filter_map(|(key, from, to)| Change::between(key, from, to));
    delta.members = members.collect();
    delta
}

fn diff_frontend(frontend: Frontend, held: &Held, desired: &Tables, delta: &mut Delta) {
    let nothing = Entry::default();
    let held = held.entries.get(&frontend).unwrap_or(&nothing);
    let rule = desired.rules.get(&frontend);
    let (wanted, wanted_local): (&[Backend], &[Backend]) = match rule {
        Some(Rule::Balance(balance)) => (&balance.backends, &balance.local),
        Some(Rule::Drop | Rule::Reject) | None => (&[], &[]),
    };
    let placed = [(&held.slots, wanted), (&held.local, wanted_local)]
        .map(|(held, wanted)| place(held, wanted));
    let lists = [placed[0].as_slice(), &placed[1]];
    compare(frontend, held, (rule.map(Verdict::of), lists), delta);
}

/// Compares what is held of a front end with its verdict and its two lists of back ends.
fn compare(
    frontend: Frontend,
    held: &Entry,
    (verdict, lists): (Option<Verdict>, [&[Option<Backend>]; 2]),
    delta: &mut Delta,
) {
    delta
        .rules
        .extend(Change::between(frontend, held.verdict, verdict));
    let [wanted, wanted_local] = lists;
    let lists = [
        (0, &held.slots, wanted),
        (Slot::FIRST_LOCAL, &held.local, wanted_local),
    ];
    for (first, held, wanted) in lists {
        let count = held.len().max(wanted.len());
        delta.backends.extend((0..count).filter_map(|place| {
            let [from, to] = [held, wanted].map(|list| list.get(place).copied().flatten());
            let index = u16::try_from(place).expect("a list has at most MAX_BACKENDS") + first;
            Change::between(Slot { frontend, index }, from, to)
        }));
    }
}

/// Gives each wanted back end a place from 0 up, without a hole: those held keep theirs where they can.
/// `wanted` is sorted and holds each back end once.
fn place(held: &[Option<Backend>], wanted: &[Backend]) -> Slots {
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
        .map(|place| place.or_else(|| others.next()))
        .collect()
}

#[cfg(test)]
mod tests;
