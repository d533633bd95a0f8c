//! Which flows go on after a change, and which are to be ended.
//!
//! The kernel remembers where a flow goes for as long as its client sends. TCP ends by itself; a UDP client that keeps
//! its source port would send to a back end that is gone for ever. So after a change the flows of the changed
//! front ends that no serving endpoint answers are deleted, and the next datagram is balanced anew. A Service that is
//! gone, or has no endpoint left, keeps none (kube-proxy forgets these: its clients see a black hole).
//!
//! A connection that was begun just before a front end was there is tracked as one that goes to the address itself, and the kernel
//! sends its retries there too. While nobody has answered it, it is ended, and the retry is balanced.
//!
//! Flows are those that are tracked, and sockets that were balanced. Where TCP connections are ended too, which is by
//! option, an endpoint keeps its own for as long as it is in a slice, in whatever state: it has them to finish.
//!
//! Pure: `host/` reads the flows and ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::members::node_port_addresses;
use super::select::Candidates;
use super::{Backend, PlanConfig};
use crate::model::{Family, Frontend, Port, Protocol, Snapshot};

/// Which flows are to be kept, for front ends that changed. Flows to anything else are none of our business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// The back ends whose flows go on, by front end. Without any, the Service is gone or has no endpoints.
    pub frontends: BTreeMap<Frontend, BTreeSet<Backend>>,
    /// The front ends of TCP and SCTP that began to be balanced. A connection to one that began before is ended, unless
    /// somebody has answered it.
    pub opened: BTreeSet<Frontend>,
    /// The addresses that NodePorts are at.
    pub node_port_addresses: BTreeSet<IpAddr>,
}

/// One flow: whom the client called, and who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Where the client sends its datagrams.
    pub destination: SocketAddr,
    /// Where the answers come from; the destination itself if the flow was never translated.
    pub reply_source: SocketAddr,
    /// Whether anybody has answered, or the protocol does not tell.
    pub answered: bool,
}

impl Flows {
    /// Whether a flow goes to one of the front ends, and is answered by none of its back ends. So is one that was
    /// never translated: it began before the Service did.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        self.is_early(flow)
            || self
                .kept(flow.protocol, flow.destination)
                .is_some_and(|kept| {
                    !backend(flow.reply_source).is_some_and(|by| kept.contains(&by))
                })
    }

    /// Whether a flow began before the front end that it goes to was balanced, and nobody has answered it.
    fn is_early(&self, flow: &Flow) -> bool {
        !flow.answered
            && flow.reply_source == flow.destination
            && self
                .called(flow.protocol, flow.destination)
                .is_some_and(|mut called| called.any(|frontend| self.opened.contains(&frontend)))
    }

    /// Takes a newer job into this one. The newer one knows better about its front ends.
    pub fn merge(&mut self, newer: Self) {
        self.frontends.extend(newer.frontends);
        self.opened.extend(newer.opened);
        self.node_port_addresses.extend(newer.node_port_addresses);
    }

    /// Whether no front end changed, so that no flow is stale.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.opened.is_empty()
    }

    /// How many front ends changed.
    pub fn count(&self) -> usize {
        self.frontends.len() + self.opened.len()
    }

    /// Whether a front end of a family changed.
    pub fn has_family(&self, family: Family) -> bool {
        let mut changed = self.frontends.keys().chain(&self.opened);
        changed.any(|frontend| frontend.family() == family)
    }

    /// Keeps the front ends of some families.
    pub fn retain(&mut self, keep: impl Fn(Family) -> bool) {
        self.frontends.retain(|frontend, _| keep(frontend.family()));
        self.opened.retain(|frontend| keep(frontend.family()));
    }

    /// Whether a front end of a protocol changed.
    pub fn has(&self, protocol: Protocol) -> bool {
        let mut protocols = self.frontends.keys().map(Frontend::protocol);
        protocols.any(|of| of == protocol)
    }

    /// The back ends whose flows to an address go on; `None` if it is not one of the front ends. A NodePort does not
    /// have what an address has.
    fn kept(&self, protocol: Protocol, destination: SocketAddr) -> Option<&BTreeSet<Backend>> {
        let mut called = self.called(protocol, destination)?;
        called.find_map(|frontend| self.frontends.get(&frontend))
    }

    /// The front ends that an address may be one of.
    fn called(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
    ) -> Option<impl Iterator<Item = Frontend>> {
        let Backend { ip, port } = backend(destination)?;
        let at_node = self.node_port_addresses.contains(&ip);
        Some(Frontend::called(ip, protocol, port, at_node))
    }
}

/// The front ends among these of which unanswered connections may have begun too early: those of protocols whose clients try again
/// from the same port.
pub fn opened(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
    frontends: impl IntoIterator<Item = Frontend>,
) -> Flows {
    let frontends = frontends.into_iter();
    let opened = frontends.filter(|frontend| frontend.protocol() != Protocol::Udp);
    let mut flows = Flows {
        opened: opened.collect(),
        ..Flows::default()
    };
    let is_node_port = |frontend: &Frontend| frontend.address().is_none();
    if flows.opened.iter().any(is_node_port) {
        let addresses = node_port_addresses(snapshot, config, family);
        flows.node_port_addresses = addresses.into_iter().collect();
    }
    flows
}

/// Which flows of a protocol, to these front ends of a family, go on; front ends of other protocols are left out. Every
/// endpoint that is ready or serves keeps its flows, also while it terminates, and whatever the Service's traffic
/// policies; one that does neither keeps those of TCP alone.
pub fn flows(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
    protocol: Protocol,
    frontends: impl IntoIterator<Item = Frontend>,
) -> Flows {
    let mut flows = Flows::default();
    for frontend in frontends {
        if frontend.protocol() != protocol {
            continue;
        }
        flows
            .frontends
            .insert(frontend, keeping(snapshot, frontend));
        let Frontend::NodePort { port, .. } = frontend else {
            continue;
        };
        if flows.node_port_addresses.is_empty() {
            let addresses = node_port_addresses(snapshot, config, family);
            flows.node_port_addresses = addresses.into_iter().collect();
        }
        // Where an address of the node is a Service's own, this port there is not the NodePort.
        for ip in flows.node_port_addresses.iter().copied() {
            let own = Frontend::Address { ip, protocol, port };
            if snapshot.claimants(own).next().is_some() {
                flows.frontends.insert(own, keeping(snapshot, own));
            }
        }
    }
    flows
}

/// The endpoints of a front end that keep their flows; none if no Service has it.
fn keeping(snapshot: &Snapshot, frontend: Frontend) -> BTreeSet<Backend> {
    let Some((service, claimed)) = snapshot.owner(frontend) else {
        return BTreeSet::new();
    };
    let slices = snapshot.slices_of(&service.name);
    let candidates = Candidates::of(slices, claimed.port, frontend.family());
    match frontend.protocol() {
        Protocol::Tcp => candidates.all().collect(),
        Protocol::Udp | Protocol::Sctp => candidates.answering().collect(),
    }
}

fn backend(address: SocketAddr) -> Option<Backend> {
    Some(Backend {
        ip: address.ip(),
        port: Port::new(address.port())?,
    })
}

#[cfg(test)]
mod tests;
