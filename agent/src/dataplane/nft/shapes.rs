//! Chains that are made while the agent runs: one for each *shape* that some front end has, never one for a Service.
//!
//! Pure. A chain is a list of steps; `skeleton` writes them as text and `chains` as netlink expressions.

use std::collections::BTreeSet;
use std::fmt;

use super::skeleton::REJECT_CHAIN;
use crate::diff::Verdict;
use crate::model::{AffinityTimeout, Family, Frontend, Protocol};
use crate::plan::Policy;

/// A chain that an element sends a connection to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    /// Translates to one of several back ends; one such chain serves all front ends of its shape.
    Balance {
        /// The kind of key that the front ends have.
        at: At,
        /// Who gets which back ends.
        kind: Kind,
        /// How many back ends there are.
        count: u16,
        /// Whether a client's earlier choice is looked up first.
        sticky: bool,
    },
    /// Remembers the choice that was made for a client, for so long.
    Remember(AffinityTimeout),
    /// Refuses the connection.
    Reject,
}

/// The kind of key that a front end has in the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// address . protocol . port
    Address,
    /// protocol . port, at the node's addresses.
    NodePort,
}

/// Who gets which back ends, and whose source is masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// All get all, as they are: where the short circuit of `ExternalLocal` leads pods to.
    Plain,
    /// [`Policy::Cluster`]
    Cluster,
    /// [`Policy::External`]
    External,
    /// [`Policy::ExternalLocal`]
    ExternalLocal {
        /// How many local back ends there are.
        local: u16,
    },
}

/// One rule of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Mark for masquerade.
    Mark,
    /// Mark for masquerade what does not come from a pod.
    MarkOutsidePods,
    /// Send what comes from a pod to another chain.
    PodsGoto(Chain),
    /// Send what this node itself sends to another chain.
    NodeGoto(Chain),
    /// Translate to what was remembered for the client.
    Recall,
    /// Translate to one of `count` back ends, the first of which has this index.
    Translate {
        /// The kind of key.
        at: At,
        /// The first index.
        first: u16,
        /// How many there are.
        count: u16,
    },
    /// Drop.
    Drop,
    /// Remember whom a client of this protocol was translated to.
    Remember(Protocol, AffinityTimeout),
}

impl Chain {
    /// The chain that carries out a verdict for a front end; `None` if no chain is needed for it.
    pub(super) fn of(frontend: Frontend, verdict: Verdict) -> Option<Self> {
        let at = match frontend {
            Frontend::Address { .. } => At::Address,
            Frontend::NodePort { .. } => At::NodePort,
        };
        match verdict {
            Verdict::Drop => None,
            Verdict::Reject => Some(Self::Reject),
            Verdict::Balance {
                policy,
                count,
                local,
                affinity,
            } => Some(Self::Balance {
                at,
                kind: match policy {
                    Policy::Cluster => Kind::Cluster,
                    Policy::External => Kind::External,
                    Policy::ExternalLocal => Kind::ExternalLocal { local },
                },
                count,
                sticky: affinity.is_some(),
            }),
        }
    }

    /// The policy, the number of back ends and that of local ones; `None` if elements of front ends do not go here.
    pub(super) fn balances(self) -> Option<(Policy, u16, u16)> {
        let Self::Balance { kind, count, .. } = self else {
            return None;
        };
        match kind {
            Kind::Plain => None,
            Kind::Cluster => Some((Policy::Cluster, count, 0)),
            Kind::External => Some((Policy::External, count, 0)),
            Kind::ExternalLocal { local } => Some((Policy::ExternalLocal, count, local)),
        }
    }

    /// One chain of every shape, for the version of the program.
    pub(super) fn samples(at: At) -> impl Iterator<Item = Self> {
        let kinds = [
            Kind::Plain,
            Kind::Cluster,
            Kind::External,
            Kind::ExternalLocal { local: 0 },
            Kind::ExternalLocal { local: 1 },
        ];
        kinds.into_iter().map(move |kind| Self::Balance {
            at,
            kind,
            count: 1,
            sticky: true,
        })
    }

    /// The rules of the chain.
    pub(super) fn steps(self, knows_pods: bool) -> Vec<Step> {
        let Self::Balance {
            at,
            kind,
            count,
            sticky,
        } = self
        else {
            return match self {
                Self::Remember(timeout) => {
                    Vec::from(Protocol::ALL.map(|protocol| Step::Remember(protocol, timeout)))
                }
                // It is part of the skeleton.
                _ => Vec::new(),
            };
        };
        let to = |kind| Self::Balance {
            at,
            kind,
            count,
            sticky,
        };
        let mut steps = match kind {
            Kind::Plain => vec![],
            Kind::Cluster if knows_pods => vec![Step::MarkOutsidePods],
            Kind::Cluster => vec![],
            Kind::External => vec![Step::Mark],
            Kind::ExternalLocal { .. } => {
                let pods = knows_pods.then_some(Step::PodsGoto(to(Kind::Plain)));
                let node = Step::NodeGoto(to(Kind::External));
                pods.into_iter().chain([node]).collect()
            }
        };
        let (first, count) = match kind {
            Kind::ExternalLocal { local } => (crate::diff::Slot::FIRST_LOCAL, local),
            _ => (0, count),
        };
        if count > 0 {
            steps.extend(sticky.then_some(Step::Recall));
            steps.push(Step::Translate { at, first, count });
        }
        // A packet that a commit overtook finds no back end; without an answer its client sends it again.
        steps.push(Step::Drop);
        steps
    }

    /// The chain and those that it leads to, in the order in which they have to be made.
    pub(super) fn with_needed(self, knows_pods: bool) -> BTreeSet<Self> {
        let steps = self.steps(knows_pods).into_iter();
        let needed = steps.filter_map(|step| match step {
            Step::PodsGoto(chain) | Step::NodeGoto(chain) => Some(chain),
            _ => None,
        });
        // Kinds are ordered so that what is needed comes first.
        needed.chain([self]).collect()
    }

    /// Whether nft up to 1.0.6 cannot load it; see [`super::elements::Set::is_beyond_nft`].
    pub(super) fn is_beyond_nft(self, family: Family) -> bool {
        family == Family::V6 && matches!(self, Self::Remember(_))
    }

    /// The chain of a name; `None` if it is not of our making.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if name == REJECT_CHAIN {
            return Some(Self::Reject);
        }
        if let Some(seconds) = name.strip_prefix("remember-") {
            return AffinityTimeout::new(seconds.parse().ok()?).map(Self::Remember);
        }
        let (rest, sticky) = strip(name, str::strip_suffix, "-sticky");
        let (rest, is_node_port) = strip(rest, str::strip_prefix, "node-port-");
        let at = if is_node_port {
            At::NodePort
        } else {
            At::Address
        };
        let (rest, kind) = if let Some(rest) = rest.strip_prefix("external-local-") {
            let (count, local) = rest.split_once('-')?;
            let local = local.parse().ok()?;
            (count, Kind::ExternalLocal { local })
        } else {
            let (kind, count) = rest.rsplit_once('-')?;
            let kind = match kind {
                "lb" => Kind::Plain,
                "cluster" => Kind::Cluster,
                "external" => Kind::External,
                _ => return None,
            };
            (count, kind)
        };
        let count = rest.parse().ok().filter(|count| *count > 0)?;
        Some(Self::Balance {
            at,
            kind,
            count,
            sticky,
        })
    }
}

/// Takes a part off a name, and tells whether it was there.
fn strip<'a>(
    name: &'a str,
    off: fn(&'a str, &'static str) -> Option<&'a str>,
    part: &'static str,
) -> (&'a str, bool) {
    off(name, part).map_or((name, false), |rest| (rest, true))
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, kind, count, sticky) = match *self {
            Self::Reject => return f.write_str(REJECT_CHAIN),
            Self::Remember(timeout) => return write!(f, "remember-{}", timeout.seconds()),
            Self::Balance {
                at,
                kind,
                count,
                sticky,
            } => (at, kind, count, sticky),
        };
        if at == At::NodePort {
            f.write_str("node-port-")?;
        }
        match kind {
            Kind::Plain => write!(f, "lb-{count}")?,
            Kind::Cluster => write!(f, "cluster-{count}")?,
            Kind::External => write!(f, "external-{count}")?,
            Kind::ExternalLocal { local } => write!(f, "external-local-{count}-{local}")?,
        }
        f.write_str(if sticky { "-sticky" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_chain() {
        let kinds = [
            Kind::Plain,
            Kind::Cluster,
            Kind::External,
            Kind::ExternalLocal { local: 0 },
            Kind::ExternalLocal { local: 7 },
        ];
        for at in [At::Address, At::NodePort] {
            for kind in kinds {
                for (count, sticky) in [(1, false), (32_768, true)] {
                    let chain = Chain::Balance {
                        at,
                        kind,
                        count,
                        sticky,
                    };
                    assert_eq!(Chain::parse(&chain.to_string()), Some(chain));
                }
            }
        }
        let remember = Chain::Remember(AffinityTimeout::DEFAULT);
        assert_eq!(remember.to_string(), "remember-10800");
        assert_eq!(Chain::parse("remember-10800"), Some(remember));
        for other in [
            "balance",
            "cluster-0",
            "lb-x",
            "remember-0",
            "external-local-3",
        ] {
            assert_eq!(Chain::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_chain_leads_to_comes_before_it() {
        let chain = Chain::parse("external-local-3-1-sticky").unwrap();
        let names = |knows_pods| -> Vec<String> {
            let chains = chain.with_needed(knows_pods);
            chains.iter().map(ToString::to_string).collect()
        };
        let all = [
            "lb-3-sticky",
            "external-3-sticky",
            "external-local-3-1-sticky",
        ];
        assert_eq!(names(true), all);
        assert_eq!(names(false), all[1..]);
    }
}
