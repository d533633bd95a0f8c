//! Delta → elements of the skeleton's named maps and sets.
//!
//! Pure. An element knows its text and (in `encode`) its bytes; the two are made from the same fields.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::skeleton::REJECT_CHAIN;
use crate::diff::{Change, Delta, Slot, Verdict};
use crate::model::{Frontend, Port, Protocol};
use crate::plan::{Backend, Masquerade};

/// The named maps and sets of the skeleton that the agent keeps, by the names they have there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// address . protocol . port → chain that balances.
    Services,
    /// protocol . port → chain that balances.
    NodePorts,
    /// address . protocol . port . index → back end.
    Endpoints,
    /// protocol . port . index → back end.
    NodePortEndpoints,
    /// address . protocol . port → chain that refuses.
    NoEndpoints,
    /// protocol . port → chain that refuses.
    NoEndpointNodePorts,
    /// address . the same address.
    Hairpin,
    /// address.
    NodePortAddresses,
}

impl Set {
    /// Every set, in the order in which they are read back.
    pub(super) const ALL: [Self; 8] = [
        Self::Services,
        Self::NodePorts,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::NoEndpoints,
        Self::NoEndpointNodePorts,
        Self::Hairpin,
        Self::NodePortAddresses,
    ];

    /// Its name in the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "node-ports",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "node-port-endpoints",
            Self::NoEndpoints => "no-endpoints",
            Self::NoEndpointNodePorts => "no-endpoint-node-ports",
            Self::Hairpin => "hairpin",
            Self::NodePortAddresses => "node-port-addresses",
        }
    }
}

/// One field of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// An IP address.
    Ip(IpAddr),
    /// A transport protocol.
    Protocol(Protocol),
    /// A port.
    Port(Port),
    /// The index of a back end.
    Index(u16),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Index(index) => index.fmt(f),
        }
    }
}

/// What a map gives for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing: the element of a set.
    None,
    /// Continue in a chain.
    Goto(Chain),
    /// Translate the destination to this.
    Backend(Backend),
}

/// A chain that an element sends a connection to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    /// Picks one of `count` back ends; one such chain serves all front ends of its shape.
    Balance {
        /// The kind of key that the front ends have.
        at: At,
        /// Which connections it masquerades.
        masquerade: Masquerade,
        /// How many back ends it picks from.
        count: u16,
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

impl Chain {
    /// The shapes of chains that balance, with their names but for the count.
    pub(super) const SHAPES: [(&'static str, At, Masquerade); 4] = [
        ("cluster", At::Address, Masquerade::OutsidePods),
        ("external", At::Address, Masquerade::Always),
        ("node-port", At::NodePort, Masquerade::Always),
        ("node-port-cluster", At::NodePort, Masquerade::OutsidePods),
    ];

    /// The chain that carries out a verdict for a front end.
    pub(super) fn of(frontend: Frontend, verdict: Verdict) -> Self {
        let at = match frontend {
            Frontend::Address { .. } => At::Address,
            Frontend::NodePort { .. } => At::NodePort,
        };
        match verdict {
            Verdict::Reject => Self::Reject,
            Verdict::Balance { masquerade, count } => Self::Balance {
                at,
                masquerade,
                count,
            },
        }
    }

    /// The verdict that going to this chain means.
    pub(super) fn verdict(self) -> Verdict {
        match self {
            Self::Reject => Verdict::Reject,
            Self::Balance {
                masquerade, count, ..
            } => Verdict::Balance { masquerade, count },
        }
    }

    /// The chain of a name; `None` if no element of ours would go there.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if name == REJECT_CHAIN {
            return Some(Self::Reject);
        }
        let (prefix, count) = name.rsplit_once('-')?;
        let (_, at, masquerade) = Self::SHAPES
            .into_iter()
            .find(|(name, ..)| *name == prefix)?;
        let count = count.parse().ok().filter(|count| *count > 0)?;
        Some(Self::Balance {
            at,
            masquerade,
            count,
        })
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Reject => f.write_str(REJECT_CHAIN),
            Self::Balance {
                at,
                masquerade,
                count,
            } => {
                let named = Self::SHAPES
                    .into_iter()
                    .find(|(_, a, m)| (*a, *m) == (at, masquerade));
                let (name, ..) = named.expect("every combination has a name");
                write!(f, "{name}-{count}")
            }
        }
    }
}

/// One element of a named map or set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// Where it is.
    pub(super) set: Set,
    /// Its key: the fields of a concatenation.
    pub(super) key: Vec<Field>,
    /// What it maps to.
    pub(super) data: Data,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, field) in self.key.iter().enumerate() {
            let separator = if i == 0 { "" } else { " . " };
            write!(f, "{separator}{field}")?;
        }
        match self.data {
            Data::None => Ok(()),
            Data::Goto(chain) => write!(f, " : goto {chain}"),
            Data::Backend(Backend { ip, port }) => write!(f, " : {ip} . {port}"),
        }
    }
}

/// What a delta removes from the maps and what it adds. A changed element is in both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elements {
    /// Elements to remove.
    pub(super) removed: Vec<Element>,
    /// Elements to add, after the removals.
    pub(super) added: Vec<Element>,
}

/// Turns a delta into elements.
pub(super) fn elements(delta: &Delta) -> Elements {
    let mut elements = Elements::default();
    elements.collect(&delta.rules, verdict_element);
    elements.collect(&delta.backends, backend_element);
    elements.collect(&delta.hairpin, |address, ()| Element {
        set: Set::Hairpin,
        key: vec![Field::Ip(address), Field::Ip(address)],
        data: Data::None,
    });
    elements.collect(&delta.node_port_addresses, |address, ()| Element {
        set: Set::NodePortAddresses,
        key: vec![Field::Ip(address)],
        data: Data::None,
    });
    elements
}

/// The chains that balance which a delta's additions go to.
pub(super) fn chains(delta: &Delta) -> BTreeSet<Chain> {
    let wanted = delta
        .rules
        .iter()
        .filter_map(|change| Some(Chain::of(change.key, change.to?)));
    wanted.filter(|chain| *chain != Chain::Reject).collect()
}

impl Elements {
    fn collect<K: Copy, V: Copy>(
        &mut self,
        changes: &[Change<K, V>],
        element: fn(K, V) -> Element,
    ) {
        for change in changes {
            self.removed
                .extend(change.from.map(|from| element(change.key, from)));
            self.added
                .extend(change.to.map(|to| element(change.key, to)));
        }
    }
}

fn verdict_element(frontend: Frontend, verdict: Verdict) -> Element {
    let set = match (frontend, verdict) {
        (Frontend::Address { .. }, Verdict::Balance { .. }) => Set::Services,
        (Frontend::Address { .. }, Verdict::Reject) => Set::NoEndpoints,
        (Frontend::NodePort { .. }, Verdict::Balance { .. }) => Set::NodePorts,
        (Frontend::NodePort { .. }, Verdict::Reject) => Set::NoEndpointNodePorts,
    };
    Element {
        set,
        key: frontend_key(frontend, 0),
        data: Data::Goto(Chain::of(frontend, verdict)),
    }
}

fn backend_element(slot: Slot, backend: Backend) -> Element {
    let set = match slot.frontend {
        Frontend::Address { .. } => Set::Endpoints,
        Frontend::NodePort { .. } => Set::NodePortEndpoints,
    };
    let mut key = frontend_key(slot.frontend, 1);
    key.push(Field::Index(slot.index));
    Element {
        set,
        key,
        data: Data::Backend(backend),
    }
}

/// The fields of a front end, with room for `more` that follow.
fn frontend_key(frontend: Frontend, more: usize) -> Vec<Field> {
    let mut key = Vec::with_capacity(3 + more);
    match frontend {
        Frontend::Address { ip, protocol, port } => {
            key.extend([Field::Ip(ip), Field::Protocol(protocol), Field::Port(port)]);
        }
        Frontend::NodePort { protocol, port, .. } => {
            key.extend([Field::Protocol(protocol), Field::Port(port)]);
        }
    }
    key
}
