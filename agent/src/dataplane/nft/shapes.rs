//! Chains that are made while the agent runs: one for each *shape* that some front end has, never one for a Service.
//!
//! Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::elements::Set;
use super::rule::{Rule, Statement, Target, Value};
use super::skeleton::{AFFINITY, MARK_CHAIN, REJECT_CHAIN};
use crate::diff::{Slot, Verdict};
use crate::model::{AffinityTimeout, Family, Frontend, Protocol};
use crate::plan::{Detector, Policy};

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
    pub(super) fn rules(self, detector: &Detector) -> Vec<Rule> {
        match self {
            Self::Balance {
                at,
                kind,
                count,
                sticky,
            } => balancing(at, kind, count, sticky, detector),
            Self::Remember(timeout) => Protocol::ALL
                .map(|protocol| remembering(protocol, timeout))
                .into(),
            // It is part of the skeleton.
            Self::Reject => Vec::new(),
        }
    }

    /// The chain and those that it leads to, in the order in which they have to be made.
    pub(super) fn with_needed(self, detector: &Detector) -> BTreeSet<Self> {
        let rules = self.rules(detector);
        let needed = rules.iter().flat_map(Rule::made_targets);
        // Kinds are ordered so that what is needed comes first.
        needed.chain([self]).collect()
    }

    /// Whether nft up to 1.0.6 cannot load it, nor an element that leads there.
    pub(super) fn is_beyond_nft(self, family: Family) -> bool {
        let rules = self.rules(&Detector::None);
        rules.iter().any(|rule| rule.is_beyond_nft(family))
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

/// The rules of a chain that balances.
fn balancing(at: At, kind: Kind, count: u16, sticky: bool, detector: &Detector) -> Vec<Rule> {
    let to = |kind| {
        Statement::Goto(Target::Made(Chain::Balance {
            at,
            kind,
            count,
            sticky,
        }))
    };
    let from_pod = |wanted| {
        let known = detector.knows_pods();
        known.then(|| Statement::from_pod(detector, wanted))
    };
    let mark = Statement::Jump(Target::Standing(MARK_CHAIN));
    let mut rules = match kind {
        Kind::Plain => vec![],
        Kind::Cluster => {
            let outside_pods = from_pod(false).map(|outside| Rule(vec![outside, mark]));
            outside_pods.into_iter().collect()
        }
        Kind::External => vec![Rule(vec![mark])],
        Kind::ExternalLocal { .. } => {
            let pods = from_pod(true).map(|pod| Rule(vec![pod, to(Kind::Plain)]));
            let node = Rule(vec![Statement::FromHere, to(Kind::External)]);
            pods.into_iter().chain([node]).collect()
        }
    };
    let (first, count) = match kind {
        Kind::ExternalLocal { local } => (Slot::FIRST_LOCAL, local),
        _ => (0, count),
    };
    if count > 0 {
        rules.extend(sticky.then(recalling));
        rules.push(translating(at, first, count));
    }
    // A packet that a commit overtook finds no back end; without an answer its client sends it again.
    rules.push(Rule(vec![Statement::Drop]));
    rules
}

/// Translates to what was remembered for the client.
fn recalling() -> Rule {
    let key = vec![
        Value::Source,
        Value::Destination,
        Value::Protocol,
        Value::Port,
    ];
    Rule(vec![Statement::Translate { key, map: AFFINITY }])
}

/// Translates to one of `count` back ends, the first of which has this index.
fn translating(at: At, first: u16, count: u16) -> Rule {
    let index = Value::Index {
        first: first.into(),
        count: count.into(),
    };
    let (address, map) = match at {
        At::Address => (Some(Value::Destination), Set::Endpoints),
        At::NodePort => (None, Set::NodePortEndpoints),
    };
    let called = [Value::Protocol, Value::Port, index];
    Rule(vec![Statement::Translate {
        key: address.into_iter().chain(called).collect(),
        map: map.name(),
    }])
}

/// Remembers whom a client of this protocol was translated to.
fn remembering(protocol: Protocol, timeout: AffinityTimeout) -> Rule {
    let update = Statement::Update {
        map: AFFINITY,
        key: vec![
            Value::Source,
            Value::CalledAddress,
            Value::Protocol,
            Value::CalledPort,
        ],
        data: vec![Value::Destination, Value::PortOf(protocol)],
        timeout,
    };
    Rule(vec![Statement::Is(protocol), update])
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
        let names = |detector| -> Vec<String> {
            let chains = chain.with_needed(&detector);
            chains.iter().map(ToString::to_string).collect()
        };
        let all = [
            "lb-3-sticky",
            "external-3-sticky",
            "external-local-3-1-sticky",
        ];
        assert_eq!(names(Detector::Source), all);
        assert_eq!(names(Detector::None), all[1..]);
    }
}
