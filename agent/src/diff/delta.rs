//! A delta: changes to the two relations that the kernel holds, and to the sets beside them.
//!
//! Front end → verdict (how to balance, with how many back ends), and (front end, index) → back end.

use std::fmt;

use ipnet::IpNet;

use crate::model::Frontend;
use crate::plan::{Affinity, Backend, MAX_BACKENDS, Member, Policy, Rule};

use super::Held;

/// What changes in one family. A back end commits it as a whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Changes of front ends.
    pub rules: Vec<Change<Frontend, Verdict>>,
    /// Changes of back ends.
    pub backends: Vec<Change<Slot, Backend>>,
    /// Members of sets that came or went.
    pub members: Vec<Change<Member, ()>>,
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

impl Change<Frontend, Verdict> {
    /// Whether the front end begins to be balanced.
    pub fn opens(&self) -> bool {
        let is_balanced =
            |verdict: Option<Verdict>| verdict.is_some_and(|it| it.policy().is_some());
        is_balanced(self.to) && !is_balanced(self.from)
    }
}

/// What the kernel is told of a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Pick a back end.
    Balance {
        /// Who gets which back ends, and whose source is masqueraded.
        policy: Policy,
        /// How many back ends there are; at least one. Their indexes go from 0 up.
        count: u16,
        /// How many local back ends there are. Their indexes go from [`Slot::FIRST_LOCAL`] up.
        local: u16,
        /// How a client keeps its back end, if it does.
        affinity: Option<Affinity>,
    },
    /// Drop new connections.
    Drop,
    /// Refuse new connections.
    Reject,
}

impl Verdict {
    /// The verdict that a rule comes to.
    pub fn of(rule: &Rule) -> Self {
        let count = |list: &[Backend]| {
            u16::try_from(list.len()).expect("a rule has at most MAX_BACKENDS in each list")
        };
        match rule {
            Rule::Balance(balance) => Self::Balance {
                policy: balance.policy,
                count: count(&balance.backends),
                local: count(&balance.local),
                affinity: balance.affinity,
            },
            Rule::Drop => Self::Drop,
            Rule::Reject => Self::Reject,
        }
    }

    /// How a client keeps its back end, if it does.
    pub fn affinity(self) -> Option<Affinity> {
        match self {
            Self::Balance { affinity, .. } => affinity,
            Self::Drop | Self::Reject => None,
        }
    }

    /// Who gets which back ends; `None` if nobody gets any.
    pub fn policy(self) -> Option<Policy> {
        match self {
            Self::Balance { policy, .. } => Some(policy),
            Self::Drop | Self::Reject => None,
        }
    }
}

/// The place of one back end of a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The front end.
    pub frontend: Frontend,
    /// The index, from 0 up, or from [`Slot::FIRST_LOCAL`] up in the list of local back ends.
    pub index: u16,
}

impl Slot {
    /// The index of the first local back end.
    pub const FIRST_LOCAL: u16 = 32_768;
}

const _: () = assert!(Slot::FIRST_LOCAL as usize == MAX_BACKENDS);

impl Delta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops every change of what is held: only front ends that are not held at all, with who may call them, and new
    /// members of the other sets are left.
    pub fn keep_additions(&mut self, held: &Held) {
        let is_new = |frontend: &Frontend| !held.entries.contains_key(frontend);
        self.rules.retain(|change| is_new(&change.key));
        self.backends.retain(|change| is_new(&change.key.frontend));
        let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let none_held =
            |overlapping: &dyn Fn(&Member) -> bool| !held.members.iter().any(overlapping);
        self.members.retain(|change| {
            change.from.is_none()
                && match &change.key {
                    // Who may call a front end that is held does not change either.
                    Member::Guarded(frontend) | Member::AllowedSource(frontend, _) => {
                        is_new(frontend)
                    }
                    // The sets of networks take no overlap.
                    Member::PodNetwork(new) => none_held(&|member| {
                        matches!(member, Member::PodNetwork(held) if overlaps(held, new))
                    }),
                    Member::ServiceNetwork(new) => none_held(&|member| {
                        matches!(member, Member::ServiceNetwork(held) if overlaps(held, new))
                    }),
                    _ => true,
                }
        });
    }

    /// The front ends whose verdict or back ends change; some more than once.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        let rules = self.rules.iter().map(|change| change.key);
        rules.chain(self.backends.iter().map(|change| change.key.frontend))
    }

    /// How many keys change.
    pub fn len(&self) -> usize {
        self.rules.len() + self.backends.len() + self.members.len()
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} front ends, {} endpoints, {} members of sets",
            self.rules.len(),
            self.backends.len(),
            self.members.len(),
        )
    }
}
