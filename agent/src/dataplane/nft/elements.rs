//! Delta → elements of the skeleton's named maps and sets.
//!
//! Pure. An element knows its text and (in `encode`) its bytes; the two are made from the same fields.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::keys::Subject;
use super::shapes::Chain;
use crate::diff::{Delta, Held, Slot, Verdict};
use crate::model::{Family, Frontend, Port, Protocol};
use crate::plan::{Backend, Detector, Member};

/// The named maps and sets of the skeleton that the agent keeps, by the names they have there, in the order in
/// which they are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// address . protocol . port → chain that balances.
    Services,
    /// protocol . port → chain that balances.
    NodePorts,
    /// address . protocol . port → chain that remembers the client.
    Affinities,
    /// protocol . port → chain that remembers the client.
    NodePortAffinities,
    /// address . protocol . port → the same of the front end under whose key clients are remembered.
    AffinityKeys,
    /// protocol . port → address . protocol . port, as above.
    NodePortAffinityKeys,
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
    /// address.
    ClusterIps,
    /// network.
    ServiceNetworks,
    /// network.
    PodNetworks,
    /// address . protocol . port.
    Guarded,
    /// address . protocol . port . network.
    AllowedSources,
    /// address.
    OuterAddresses,
}

impl Set {
    /// Every set, in the order in which they are read back: affinities before what they belong to.
    pub(super) const ALL: [Self; 18] = [
        Self::Affinities,
        Self::NodePortAffinities,
        Self::AffinityKeys,
        Self::NodePortAffinityKeys,
        Self::Services,
        Self::NodePorts,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::NoEndpoints,
        Self::NoEndpointNodePorts,
        Self::Hairpin,
        Self::NodePortAddresses,
        Self::ClusterIps,
        Self::ServiceNetworks,
        Self::PodNetworks,
        Self::Guarded,
        Self::AllowedSources,
        Self::OuterAddresses,
    ];

    /// Its name in the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Affinities => "affinities",
            Self::NodePortAffinities => "node-port-affinities",
            Self::Services => "services",
            Self::NodePorts => "node-ports",
            Self::AffinityKeys => "affinity-keys",
            Self::NodePortAffinityKeys => "node-port-affinity-keys",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "node-port-endpoints",
            Self::NoEndpoints => "no-endpoints",
            Self::NoEndpointNodePorts => "no-endpoint-node-ports",
            Self::Hairpin => "hairpin",
            Self::NodePortAddresses => "node-port-addresses",
            Self::ClusterIps => "cluster-ips",
            Self::ServiceNetworks => "service-networks",
            Self::PodNetworks => "pod-networks",
            Self::Guarded => "guarded",
            Self::AllowedSources => "allowed-sources",
            Self::OuterAddresses => "outer-addresses",
        }
    }

    /// Whether its elements are intervals of addresses.
    pub(super) const fn is_of_intervals(self) -> bool {
        matches!(
            self,
            Self::ServiceNetworks | Self::PodNetworks | Self::AllowedSources
        )
    }
}

/// One field of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// An IP address.
    Ip(IpAddr),
    /// The addresses of a network.
    Net(IpNet),
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
            Self::Net(network) => network.fmt(f),
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
    /// Drop the packet.
    Drop,
    /// Translate the destination to this.
    Backend(Backend),
    /// The front end under whose key clients are remembered.
    Key(Frontend),
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

impl Element {
    /// Whether nft up to 1.0.6 cannot load it, since it leads to a chain that it cannot load.
    pub(super) fn is_beyond_nft(&self, family: Family) -> bool {
        matches!(self.data, Data::Goto(chain) if chain.is_beyond_nft(family))
    }
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
            Data::Drop => f.write_str(" : drop"),
            Data::Backend(Backend { ip, port }) => write!(f, " : {ip} . {port}"),
            Data::Key(frontend) => {
                let fields = shared_key(frontend).into_iter();
                let fields: Vec<String> = fields.map(|field| field.to_string()).collect();
                write!(f, " : {}", fields.join(" . "))
            }
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
    for change in &delta.rules {
        let verdicts = [change.from, change.to];
        let mains = verdicts.map(|v| Some(verdict_element(change.key, v?)));
        let affinities = verdicts.map(|v| affinity_element(change.key, v?));
        let keys = verdicts.map(|v| affinity_key_element(change.key, v?));
        elements.change(mains);
        elements.change(affinities);
        elements.change(keys);
    }
    for change in &delta.backends {
        let backends = [change.from, change.to];
        elements.change(backends.map(|b| Some(backend_element(change.key, b?))));
    }
    for change in &delta.members {
        let members = [change.from, change.to];
        elements.change(members.map(|m| m.map(|()| member_element(change.key))));
    }
    elements
}

/// The chains that a delta's additions go to, with those that they lead to.
pub(super) fn chains(delta: &Delta, detector: &Detector) -> BTreeSet<Chain> {
    let verdicts = delta.rules.iter();
    let verdicts = verdicts.filter_map(|change| Some((change.key, change.to?)));
    let wanted = verdicts.flat_map(|(frontend, verdict)| {
        let affinity = verdict.affinity();
        let affinity = affinity.map(|affinity| Chain::remembering(frontend, affinity));
        Chain::of(frontend, verdict).into_iter().chain(affinity)
    });
    let wanted: BTreeSet<Chain> = wanted.filter(|chain| *chain != Chain::Reject).collect();
    wanted
        .into_iter()
        .flat_map(|chain| chain.with_needed(detector))
        .collect()
}

impl Elements {
    /// How many are removed and added.
    pub(super) fn len(&self) -> usize {
        self.removed.len() + self.added.len()
    }

    /// An element becomes another, appears or goes.
    fn change(&mut self, [from, to]: [Option<Element>; 2]) {
        if from != to {
            self.removed.extend(from);
            self.added.extend(to);
        }
    }
}

/// The element that a key of a set has, by what is held.
pub(super) fn held_element(set: Set, subject: Subject, held: &Held) -> Option<Element> {
    match subject {
        Subject::Frontend(frontend) => {
            let verdict = held.entries.get(&frontend)?.verdict?;
            let affinity = [affinity_element, affinity_key_element];
            let affinity = affinity.map(|element| element(frontend, verdict));
            let mut elements = affinity
                .into_iter()
                .flatten()
                .chain([verdict_element(frontend, verdict)]);
            elements.find(|element| element.set == set)
        }
        Subject::Slot(slot) => Some(backend_element(slot, held.backend(slot)?)),
        Subject::Member(member) => held
            .members
            .contains(&member)
            .then(|| member_element(member)),
    }
}

/// The members of a set, by what is held.
pub(super) fn held_members(set: Set, held: &Held) -> impl Iterator<Item = Member> {
    let members = held.members.iter().copied();
    members.filter(move |member| member_element(*member).set == set)
}

fn verdict_element(frontend: Frontend, verdict: Verdict) -> Element {
    let [addresses, node_ports] = match verdict {
        Verdict::Balance { .. } | Verdict::Drop => [Set::Services, Set::NodePorts],
        Verdict::Reject => [Set::NoEndpoints, Set::NoEndpointNodePorts],
    };
    Element {
        set: either(frontend, addresses, node_ports),
        key: frontend_key(frontend, 0),
        data: Chain::of(frontend, verdict).map_or(Data::Drop, Data::Goto),
    }
}

fn affinity_element(frontend: Frontend, verdict: Verdict) -> Option<Element> {
    Some(Element {
        set: either(frontend, Set::Affinities, Set::NodePortAffinities),
        key: frontend_key(frontend, 0),
        data: Data::Goto(Chain::remembering(frontend, verdict.affinity()?)),
    })
}

/// `None` if the front end has its own key.
fn affinity_key_element(frontend: Frontend, verdict: Verdict) -> Option<Element> {
    let key = verdict.affinity()?.key;
    (key != frontend).then(|| Element {
        set: either(frontend, Set::AffinityKeys, Set::NodePortAffinityKeys),
        key: frontend_key(frontend, 0),
        data: Data::Key(key),
    })
}

fn backend_element(slot: Slot, backend: Backend) -> Element {
    let mut key = frontend_key(slot.frontend, 1);
    key.push(Field::Index(slot.index));
    Element {
        set: either(slot.frontend, Set::Endpoints, Set::NodePortEndpoints),
        key,
        data: Data::Backend(backend),
    }
}

fn member_element(member: Member) -> Element {
    let (set, key) = match member {
        Member::Hairpin(ip) => (Set::Hairpin, vec![Field::Ip(ip), Field::Ip(ip)]),
        Member::NodePortAddress(ip) => (Set::NodePortAddresses, vec![Field::Ip(ip)]),
        Member::ClusterIp(ip) => (Set::ClusterIps, vec![Field::Ip(ip)]),
        Member::ServiceNetwork(network) => (Set::ServiceNetworks, vec![Field::Net(network)]),
        Member::PodNetwork(network) => (Set::PodNetworks, vec![Field::Net(network)]),
        Member::Guarded(frontend) => (Set::Guarded, frontend_key(frontend, 0)),
        Member::AllowedSource(frontend, network) => {
            let mut key = frontend_key(frontend, 1);
            key.push(Field::Net(network));
            (Set::AllowedSources, key)
        }
        Member::OuterAddress(ip) => (Set::OuterAddresses, vec![Field::Ip(ip)]),
    };
    let data = Data::None;
    Element { set, key, data }
}

/// What a map has of the front end under whose key clients are remembered. Its first field is of no use: see `bytecode`.
pub(super) fn shared_key(frontend: Frontend) -> Vec<Field> {
    let mut fields = vec![Field::Protocol(frontend.protocol())];
    fields.extend(frontend_key(frontend, 0));
    fields
}

/// The set for front ends at addresses, or the one for NodePorts.
fn either(frontend: Frontend, at_addresses: Set, at_nodes: Set) -> Set {
    match frontend {
        Frontend::Address { .. } => at_addresses,
        Frontend::NodePort { .. } => at_nodes,
    }
}

/// The fields of a front end, with room for `more` that follow.
pub(super) fn frontend_key(frontend: Frontend, more: usize) -> Vec<Field> {
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
