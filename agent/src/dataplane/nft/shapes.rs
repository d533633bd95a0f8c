//! Chains that are made while the agent runs: one for each *shape* that some front end has, never one for a Service.
//!
//! Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::elements::Set;
use super::rule::{Called, Rule, Statement, Target, Value};
use super::skeleton::{AFFINITY, MARK_CHAIN, REJECT_CHAIN};
use crate::diff::{Slot, Verdict};
use crate::model::{AffinityTimeout, Family, Frontend, Protocol};
use crate::plan::{Affinity, Detector, Policy};

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
        /// How a client's earlier choice is looked up first, if it is.
        recall: Option<Recall>,
    },
    /// Remembers the choice that was made for a client.
    Remember {
        /// Under whose key.
        key: KeyOf,
        /// For how long.
        timeout: AffinityTimeout,
    },
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

/// How a client's earlier choice is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Recall {
    /// By what it calls, whose key all front ends of the Service port share.
    Own,
    /// By the key that a map has for what it calls, see [`Affinity::key`].
    Shared,
    /// By what it calls, and for that alone: other front ends have other endpoints, see [`Affinity::is_mixed`].
    ByAddress,
}

/// Under which key a client's choice is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyOf {
    /// That of the front end that was called.
    Called,
    /// That of another front end, which a map has for this one.
    Shared(At),
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

impl At {
    /// That of a front end.
    const fn of(frontend: Frontend) -> Self {
        match frontend {
            Frontend::Address { .. } => Self::Address,
            Frontend::NodePort { .. } => Self::NodePort,
        }
    }
}

impl Chain {
    /// The chain that remembers the clients of a front end.
    pub(super) fn remembering(frontend: Frontend, affinity: Affinity) -> Self {
        let key = match Recall::of(frontend, affinity) {
            Recall::Shared => KeyOf::Shared(At::of(frontend)),
            Recall::Own | Recall::ByAddress => KeyOf::Called,
        };
        let timeout = affinity.timeout;
        Self::Remember { key, timeout }
    }

    /// The chain that carries out a verdict for a front end; `None` if no chain is needed for it.
    pub(super) fn of(frontend: Frontend, verdict: Verdict) -> Option<Self> {
        let at = At::of(frontend);
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
                recall: affinity.map(|affinity| Recall::of(frontend, affinity)),
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

    /// Whether clients of front ends whose elements go here are remembered for these alone.
    pub(super) fn is_by_address(self) -> bool {
        matches!(
            self,
            Self::Balance {
                recall: Some(Recall::ByAddress),
                ..
            }
        )
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
        let timeout = AffinityTimeout::DEFAULT;
        let remember = KeyOf::ALL.map(|key| Self::Remember { key, timeout });
        let balance = kinds.into_iter().flat_map(move |kind| {
            Recall::ALL.map(|recall| Self::Balance {
                at,
                kind,
                count: 1,
                recall: Some(recall),
            })
        });
        balance.chain(remember)
    }

    /// The rules of the chain.
    pub(super) fn rules(self, detector: &Detector) -> Vec<Rule> {
        match self {
            Self::Balance {
                at,
                kind,
                count,
                recall,
            } => balancing((at, kind, count, recall), detector),
            Self::Remember {
                key: KeyOf::Called,
                timeout,
            } => Protocol::ALL
                .map(|protocol| remembering(protocol, timeout))
                .into(),
            Self::Remember {
                key: KeyOf::Shared(at),
                timeout,
            } => vec![remembering_under_shared(at, timeout)],
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

    /// Whether nft up to 1.0.6 cannot load it, nor an element that leads there. One that balances does so without the rule that nft
    /// cannot load too.
    pub(super) fn is_beyond_nft(self, family: Family) -> bool {
        if matches!(self, Self::Balance { .. }) {
            return false;
        }
        let rules = self.rules(&Detector::None);
        rules.iter().any(|rule| rule.is_beyond_nft(family))
    }

    /// The chain of a name; `None` if it is not of our making.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if name == REJECT_CHAIN {
            return Some(Self::Reject);
        }
        if let Some(rest) = name.strip_prefix("remember-") {
            let keys = KeyOf::ALL.into_iter();
            let mut parsed = keys.filter_map(|key| Some((key, rest.strip_prefix(key.name())?)));
            let (key, seconds) = parsed.next()?;
            let timeout = AffinityTimeout::new(seconds.parse().ok()?)?;
            return Some(Self::Remember { key, timeout });
        }
        let recalls = Recall::ALL.into_iter();
        let mut recalls =
            recalls.filter_map(|recall| Some((name.strip_suffix(recall.name())?, Some(recall))));
        let (rest, recall) = recalls.next().unwrap_or((name, None));
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
            recall,
        })
    }
}

impl Recall {
    const ALL: [Self; 3] = [Self::Own, Self::Shared, Self::ByAddress];

    fn of(frontend: Frontend, affinity: Affinity) -> Self {
        if affinity.is_mixed {
            Self::ByAddress
        } else if affinity.key == frontend {
            Self::Own
        } else {
            Self::Shared
        }
    }

    /// What the names of chains end in.
    const fn name(self) -> &'static str {
        match self {
            Self::Own => "-sticky",
            Self::Shared => "-shared",
            Self::ByAddress => "-by-address",
        }
    }
}

impl KeyOf {
    /// That which is tried last begins all.
    const ALL: [Self; 3] = [
        Self::Shared(At::Address),
        Self::Shared(At::NodePort),
        Self::Called,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Called => "",
            Self::Shared(At::Address) => "address-",
            Self::Shared(At::NodePort) => "node-port-",
        }
    }
}

/// The rules of a chain that balances.
fn balancing(
    (at, kind, count, recall): (At, Kind, u16, Option<Recall>),
    detector: &Detector,
) -> Vec<Rule> {
    let to = |kind| {
        Statement::Goto(Target::Made(Chain::Balance {
            at,
            kind,
            count,
            recall,
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
        rules.extend(recall.map(|recall| recalling(at, recall)));
        rules.push(translating(at, first, count));
    }
    // A packet that a commit overtook finds no back end; without an answer its client sends it again.
    rules.push(Rule(vec![Statement::Drop]));
    rules
}

/// Translates to what was remembered for the client.
fn recalling(at: At, recall: Recall) -> Rule {
    let called = match recall {
        Recall::Shared => vec![Value::SharedKey(Called::Now(at))],
        Recall::Own | Recall::ByAddress => {
            vec![Value::Destination, Value::Protocol, Value::Port]
        }
    };
    Rule(vec![Statement::Translate {
        key: [vec![Value::Source], called].concat(),
        map: AFFINITY,
    }])
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
        seconds: timeout.seconds(),
    };
    Rule(vec![Statement::Is(protocol), update])
}

/// Remembers whom a client was translated to, under the key that a map has for the front end that it called.
fn remembering_under_shared(at: At, timeout: AffinityTimeout) -> Rule {
    Rule(vec![Statement::Update {
        map: AFFINITY,
        key: vec![Value::Source, Value::SharedKey(Called::Originally(at))],
        data: vec![Value::Destination, Value::Port],
        seconds: timeout.seconds(),
    }])
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
        let (at, kind, count, recall) = match *self {
            Self::Reject => return f.write_str(REJECT_CHAIN),
            Self::Remember { key, timeout } => {
                return write!(f, "remember-{}{}", key.name(), timeout.seconds());
            }
            Self::Balance {
                at,
                kind,
                count,
                recall,
            } => (at, kind, count, recall),
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
        f.write_str(recall.map_or("", Recall::name))
    }
}

#[cfg(test)]
mod tests;
