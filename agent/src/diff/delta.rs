//! A delta: changes to the two relations that the kernel holds, and to the sets beside them.
//!
//! Front end → verdict (how to balance, with how many back ends), and (front end, index) → back end.

use std::fmt;
use std::net::IpAddr;

use crate::model::Frontend;
use crate::plan::{Backend, Masquerade, Rule};

use super::Held;

/// What changes in one family. A back end commits it as a whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Changes of front ends.
    pub rules: Vec<Change<Frontend, Verdict>>,
    /// Changes of back ends.
    pub backends: Vec<Change<Slot, Backend>>,
    /// Endpoints that came to this node or left it.
    pub hairpin: Vec<Change<IpAddr, ()>>,
    /// Addresses with NodePorts that came or went.
    pub node_port_addresses: Vec<Change<IpAddr, ()>>,
}

/// One key's value before and after; the two always differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<K, V> {
    /// The key.
    pub key: K,
    /// Its value before; `None` if it had none.
    pub from: Option<V>,
    /// Its value after; `None` if it is to have none.
    pub to: Option<V>,
}

impl<K, V: PartialEq> Change<K, V> {
    /// The change from one value to another, if they differ.
    pub fn between(key: K, from: Option<V>, to: Option<V>) -> Option<Self> {
        (from != to).then_some(Self { key, from, to })
    }
}

/// What the kernel is told of a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Pick one of `count` back ends, with indexes from 0 up.
    Balance {
        /// Which connections are masqueraded.
        masquerade: Masquerade,
        /// How many back ends there are; at least one.
        count: u16,
    },
    /// Refuse new connections.
    Reject,
}

impl Verdict {
    /// The verdict that a rule comes to.
    pub fn of(rule: &Rule) -> Self {
        match rule {
            Rule::Balance {
                masquerade,
                backends,
            } => Self::Balance {
                masquerade: *masquerade,
                count: u16::try_from(backends.len()).expect("a rule has at most MAX_BACKENDS"),
            },
            Rule::Reject => Self::Reject,
        }
    }
}

/// The place of one back end of a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The front end.
    pub frontend: Frontend,
    /// The index, from 0 up.
    pub index: u16,
}

impl Slot {
    pub(crate) fn new(frontend: Frontend, index: usize) -> Self {
        let index = u16::try_from(index).expect("a rule has at most MAX_BACKENDS");
        Self { frontend, index }
    }
}

impl Delta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops every change of what is held: only front ends that are not held at all, and new members of the
    /// sets, are left.
    pub fn keep_additions(&mut self, held: &Held) {
        let is_new = |frontend: &Frontend| !held.entries.contains_key(frontend);
        self.rules.retain(|change| is_new(&change.key));
        self.backends.retain(|change| is_new(&change.key.frontend));
        self.hairpin.retain(|change| change.from.is_none());
        self.node_port_addresses
            .retain(|change| change.from.is_none());
    }

    /// How many keys change.
    pub fn len(&self) -> usize {
        self.rules.len() + self.backends.len() + self.hairpin.len() + self.node_port_addresses.len()
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} front ends, {} endpoints, {} local endpoints, {} node addresses",
            self.rules.len(),
            self.backends.len(),
            self.hairpin.len(),
            self.node_port_addresses.len()
        )
    }
}
