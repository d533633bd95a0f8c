//! Session affinity: whose remembered clients a change makes stale, and whose outlive the table.
//!
//! Pure. The kernel forgets a client when its time is over; a back end that goes before has to be forgotten by us. Clients are
//! remembered by the key that all front ends of a Service port share, which then have the same back ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::decode::Choice;
use super::skeleton::AFFINITY_SIZE;
use crate::diff::{Delta, Entry, Held, Verdict};
use crate::model::{AffinityTimeout, Frontend};
use crate::plan::{Affinity, Backend, Member};

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forgotten {
    which: Which,
    /// The addresses that NodePorts are at.
    node_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    /// For each key the back ends that no front end has any longer; `None`: all of them.
    Gone(BTreeMap<Frontend, Option<BTreeSet<Backend>>>),
    /// All but these back ends of these keys.
    AllBut(BTreeMap<Frontend, BTreeSet<Backend>>),
}

impl Forgotten {
    /// Every choice that no front end which is held may have made.
    pub(super) fn unknown_to(held: &Held) -> Self {
        Self {
            which: Which::AllBut(backends_of(held, |_| true)),
            node_addresses: node_addresses(held),
        }
    }

    /// What a delta to what was held makes stale: back ends that left a front end with affinity, and everything where no front end has
    /// affinity any longer, or clients are remembered by another key.
    pub(super) fn by(held: &Held, delta: &Delta) -> Self {
        let mut gone: BTreeMap<Frontend, Option<BTreeSet<Backend>>> = BTreeMap::new();
        let mut may_be_elsewhere = false;
        for change in &delta.rules {
            let key = |verdict: Option<Verdict>| Some(key(change.key, verdict?.affinity()?));
            let [had, has] = [key(change.from), key(change.to)];
            if let Some(had) = had.filter(|_| has != had) {
                gone.insert(had, None);
                may_be_elsewhere = true;
            }
        }
        let before = |frontend: Frontend| {
            let entry = held.entries.get(&frontend)?;
            Some(key(frontend, affinity(entry)?))
        };
        for change in &delta.backends {
            if let Some(key) = before(change.key.frontend)
                && let Some(gone) = gone.entry(key).or_insert_with(|| Some(BTreeSet::new()))
            {
                gone.extend(change.from);
            }
        }
        // One that only moved to another place is still there.
        for change in &delta.backends {
            if let Some(key) = before(change.key.frontend)
                && let Some(Some(gone)) = gone.get_mut(&key)
                && let Some(to) = change.to
            {
                gone.remove(&to);
            }
        }
        // All front ends of a key have the same back ends; so others are looked at only if one of them goes.
        if may_be_elsewhere {
            let left = left_after(held, delta, |key| gone.contains_key(&key));
            let mut had = backends_of(held, |key| left.contains_key(&key));
            for (key, left) in left {
                let mut stale = had.remove(&key).unwrap_or_default();
                stale.retain(|backend| !left.contains(backend));
                gone.insert(key, Some(stale));
            }
        }
        gone.retain(|_, gone| gone.as_ref().is_none_or(|gone| !gone.is_empty()));
        Self {
            which: Which::Gone(gone),
            node_addresses: node_addresses(held),
        }
    }

    /// Whether there is nothing to forget.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.which, Which::Gone(gone) if gone.is_empty())
    }

    /// Whether a choice is to be forgotten.
    pub(super) fn contains(&self, choice: &Choice) -> bool {
        let mut called = called(choice, &self.node_addresses);
        match &self.which {
            Which::Gone(gone) => called.filter_map(|key| gone.get(&key)).any(|gone| {
                gone.as_ref()
                    .is_none_or(|gone| gone.contains(&choice.backend))
            }),
            Which::AllBut(known) => !called.any(|key| {
                known
                    .get(&key)
                    .is_some_and(|known| known.contains(&choice.backend))
            }),
        }
    }
}

/// The most that can be kept; with more, the kernel would refuse the whole table.
const MOST_KEPT: usize = AFFINITY_SIZE as usize;

/// A choice as another table is to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The client's address.
    pub(super) client: IpAddr,
    /// The front end under whose key it is remembered.
    pub(super) key: Frontend,
    /// Whom it was sent to.
    pub(super) backend: Backend,
    /// How long each new connection has it remembered.
    pub(super) timeout: AffinityTimeout,
    /// How long it is still remembered.
    pub(super) left: Duration,
}

/// What of the choices that were made by another table counts for what is to be held. Tables of earlier versions remember clients
/// by the address that they called: then that which was made last for a key is taken, but one by the key's own address before
/// all others.
pub(super) fn kept(choices: &[Choice], held: &Held) -> Vec<Kept> {
    let known = backends_of(held, |_| true);
    let node_addresses = node_addresses(held);
    let mut kept: BTreeMap<(IpAddr, Frontend), (bool, Kept)> = BTreeMap::new();
    for choice in choices {
        let found = called(choice, &node_addresses).find_map(|frontend| {
            let affinity = affinity(held.entries.get(&frontend)?)?;
            Some((affinity.timeout, key(frontend, affinity)))
        });
        let is_there = |key: &Frontend| known.get(key).is_some_and(|k| k.contains(&choice.backend));
        let Some((timeout, key)) = found.filter(|(_, key)| is_there(key)) else {
            continue;
        };
        let own = Frontend::Address {
            ip: choice.called,
            protocol: choice.protocol,
            port: choice.port,
        };
        // A NodePort has its own key at each address.
        let key = key.address().map_or(own, |_| key);
        let new = Kept {
            client: choice.client,
            key,
            backend: choice.backend,
            timeout,
            left: choice
                .left
                .min(Duration::from_secs(timeout.seconds().into())),
        };
        let rank = |(is_own, kept): &(bool, Kept)| (*is_own, kept.left);
        let new = (own == key, new);
        let place = kept.entry((choice.client, key));
        place
            .and_modify(|old| {
                if rank(old) < rank(&new) {
                    *old = new.clone();
                }
            })
            .or_insert(new);
    }
    let kept = kept.into_values().map(|(_, kept)| kept);
    kept.take(MOST_KEPT).collect()
}

/// By which key the clients of a front end are remembered.
fn key(frontend: Frontend, affinity: Affinity) -> Frontend {
    if affinity.is_mixed {
        frontend
    } else {
        affinity.key
    }
}

/// The front ends that a client may have called, or by whose key it is remembered.
fn called(choice: &Choice, node_addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = Frontend> {
    let at_node = node_addresses.contains(&choice.called);
    Frontend::called(choice.called, choice.protocol, choice.port, at_node)
}

/// How the clients of a front end keep their back ends, if they do.
fn affinity(entry: &Entry) -> Option<Affinity> {
    entry.verdict?.affinity()
}

/// The back ends that front ends with affinity have together, for each key that is wanted.
fn backends_of(
    held: &Held,
    is_wanted: impl Fn(Frontend) -> bool,
) -> BTreeMap<Frontend, BTreeSet<Backend>> {
    let mut of_keys: BTreeMap<Frontend, BTreeSet<Backend>> = BTreeMap::new();
    for (frontend, entry) in &held.entries {
        let key = affinity(entry).map(|affinity| key(*frontend, affinity));
        if let Some(key) = key.filter(|key| is_wanted(*key)) {
            let backends = entry.slots.iter().chain(&entry.local);
            let of_key = of_keys.entry(key).or_default();
            of_key.extend(backends.copied().flatten());
        }
    }
    of_keys
}

/// The same after a delta.
fn left_after(
    held: &Held,
    delta: &Delta,
    is_wanted: impl Fn(Frontend) -> bool,
) -> BTreeMap<Frontend, BTreeSet<Backend>> {
    let changed: BTreeSet<Frontend> = delta.frontends().collect();
    let entries = held.entries.iter().filter(|(frontend, entry)| {
        let key = affinity(entry).map(|affinity| key(**frontend, affinity));
        key.is_some_and(&is_wanted) || changed.contains(frontend)
    });
    let entries = entries.map(|(frontend, entry)| (*frontend, entry.clone()));
    let mut after = Held {
        entries: entries.collect(),
        ..Held::default()
    };
    after.apply(delta);
    backends_of(&after, is_wanted)
}

/// The addresses that NodePorts are at.
fn node_addresses(held: &Held) -> BTreeSet<IpAddr> {
    let addresses = held.members.iter().filter_map(|member| match member {
        Member::NodePortAddress(address) => Some(*address),
        _ => None,
    });
    addresses.collect()
}
