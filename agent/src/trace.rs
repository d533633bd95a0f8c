//! Walks a packet through the planned tables: what would happen to a new connection, and why.
//!
//! Pure. It knows what every data plane has to do with the tables and nothing of how: the packet-flow table in `tests/` holds
//! it and real connections to the same expectations.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::model::{Frontend, Port, Protocol};
use crate::plan::{Affinity, Backend, Balance, Detector, Member, Policy, Rule, Tables};

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The interface that it comes in by; `None` if this node sends it.
    pub interface: Option<String>,
    /// Its source.
    pub source: IpAddr,
    /// The address that it is for.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that it is for.
    pub port: Port,
    /// Whether this node would send it on by the interface that it came in by, as it is.
    pub returns: bool,
}

/// What is known of the node.
#[derive(Debug, Clone, Copy)]
pub struct Tracer<'a> {
    /// The tables of the packet's family.
    pub tables: &'a Tables,
    /// What tells pods from others.
    pub detector: &'a Detector,
    /// The addresses of this machine, without loopback and link-local ones.
    pub local_addresses: &'a BTreeSet<IpAddr>,
    /// Whether ports that no Service has are refused at load-balancer and external addresses
    /// (`--reject-unused-service-ports`).
    pub rejects_unused_ports: bool,
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It goes to one of these, each as likely as the others.
    Balanced {
        /// The front end that took it.
        frontend: Frontend,
        /// Where it may go.
        targets: Vec<Target>,
        /// How its client keeps what was chosen; a client that is known goes where it went before, if that is one of the targets.
        affinity: Option<Affinity>,
    },
    /// It is refused: the client hears at once.
    Refused(Reason),
    /// It is dropped: the client hears nothing.
    Dropped(Reason),
    /// It is no Service's, and goes where it is for.
    Unchanged,
}

/// Where a packet may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The endpoint.
    pub backend: Backend,
    /// Whether the endpoint sees an address of this node instead of the client's.
    pub masqueraded: bool,
}

/// Why a packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its source is not in `loadBalancerSourceRanges`.
    SourceNotAllowed,
    /// No endpoint can serve it.
    NoEndpoint,
    /// Endpoints exist, but none on this node, and the policy allows no other.
    NoLocalEndpoint,
    /// The Service does not have this port.
    UnknownPort,
    /// The address is for Services, but no Service has it.
    UnknownAddress,
    /// The load-balancer or external address is a Service's, but no Service has this port there.
    UnusedPort,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceNotAllowed => "the source is not in loadBalancerSourceRanges",
            Self::NoEndpoint => "no endpoint can serve it",
            Self::NoLocalEndpoint => "no endpoint is on this node, and the policy is Local",
            Self::UnknownPort => "the Service does not have this port",
            Self::UnknownAddress => "no Service has this address",
            Self::UnusedPort => {
                "no Service has this port at this load-balancer or external address"
            }
        })
    }
}

impl Tracer<'_> {
    /// What happens to a packet.
    pub fn trace(&self, packet: &Packet) -> Outcome {
        if !self.is_allowed(packet) {
            return Outcome::Dropped(Reason::SourceNotAllowed);
        }
        let found = self.frontends(packet).find_map(|frontend| {
            let rule = self.tables.rules.get(&frontend)?;
            Some((frontend, rule))
        });
        match found {
            Some((frontend, Rule::Balance(balance))) => self.balance(packet, frontend, balance),
            Some((_, Rule::Drop)) => Outcome::Dropped(Reason::NoLocalEndpoint),
            Some((_, Rule::Reject)) => Outcome::Refused(Reason::NoEndpoint),
            None if self.has(Member::ClusterIp(packet.destination)) => {
                Outcome::Refused(Reason::UnknownPort)
            }
            None if self.is_in_service_network(packet.destination) => {
                Outcome::Dropped(Reason::UnknownAddress)
            }
            None if packet.returns
                && self.rejects_unused_ports
                && self.has(Member::OuterAddress(packet.destination)) =>
            {
                Outcome::Refused(Reason::UnusedPort)
            }
            None => Outcome::Unchanged,
        }
    }

    /// The front ends that a packet may be for, in the order in which they are looked for.
    fn frontends(&self, packet: &Packet) -> impl Iterator<Item = Frontend> {
        let Packet {
            destination: ip,
            protocol,
            port,
            ..
        } = *packet;
        let at_node = self.has(Member::NodePortAddress(ip)) && self.local_addresses.contains(&ip);
        Frontend::called(ip, protocol, port, at_node)
    }

    fn is_allowed(&self, packet: &Packet) -> bool {
        let frontend = Frontend::Address {
            ip: packet.destination,
            protocol: packet.protocol,
            port: packet.port,
        };
        if !self.has(Member::Guarded(frontend)) {
            return true;
        }
        let only = BTreeSet::from([frontend]);
        let mut sources = Member::of_frontends(&self.tables.members, &only);
        sources.any(|member| match member {
            Member::AllowedSource(_, range) => range.contains(&packet.source),
            _ => false,
        })
    }

    fn balance(&self, packet: &Packet, frontend: Frontend, balance: &Balance) -> Outcome {
        let from_pod = self.is_from_pod(packet);
        let from_node = self.local_addresses.contains(&packet.source);
        let (backends, marked) = match balance.policy {
            Policy::Cluster => {
                let marked = *self.detector != Detector::None && !from_pod;
                (&balance.backends, marked)
            }
            Policy::External => (&balance.backends, true),
            Policy::ExternalLocal if from_pod => (&balance.backends, false),
            Policy::ExternalLocal if from_node => (&balance.backends, true),
            Policy::ExternalLocal => (&balance.local, false),
        };
        if backends.is_empty() {
            return Outcome::Dropped(Reason::NoLocalEndpoint);
        }
        let targets = backends.iter().map(|backend| {
            let is_hairpin = backend.ip == packet.source && self.has(Member::Hairpin(backend.ip));
            // What comes in and stays here passes no hook where it could be masqueraded.
            let leaves = packet.interface.is_none() || !self.local_addresses.contains(&backend.ip);
            Target {
                backend: *backend,
                masqueraded: (marked || is_hairpin) && leaves,
            }
        });
        Outcome::Balanced {
            frontend,
            targets: targets.collect(),
            affinity: balance.affinity,
        }
    }

    /// Whether the detector takes a packet for a pod's. What this node sends itself comes in by no interface.
    fn is_from_pod(&self, packet: &Packet) -> bool {
        match (self.detector, &packet.interface) {
            (Detector::None, _) | (Detector::Interface { .. }, None) => false,
            (Detector::Source, _) => self.tables.members.iter().any(|member| match member {
                Member::PodNetwork(network) => network.contains(&packet.source),
                _ => false,
            }),
            (Detector::Interface { name, prefix: true }, Some(interface)) => {
                interface.starts_with(name)
            }
            (Detector::Interface { name, .. }, Some(interface)) => interface == name,
        }
    }

    fn is_in_service_network(&self, address: IpAddr) -> bool {
        self.tables.members.iter().any(|member| match member {
            Member::ServiceNetwork(network) => network.contains(&address),
            _ => false,
        })
    }

    fn has(&self, member: Member) -> bool {
        self.tables.members.contains(&member)
    }
}
