//! Which tracked UDP flows are to be forgotten.
//!
//! The kernel remembers where a flow goes for as long as its client sends. TCP ends by itself; a UDP client that keeps
//! its source port would send to a back end that is gone for ever. So after a change the flows of the changed
//! front ends that no serving endpoint answers are deleted, and the next datagram is balanced anew. A Service that is
//! gone, or has no endpoint left, keeps none (kube-proxy forgets these: its clients see a black hole).
//!
//! Pure: `host/` reads the flows and deletes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::members::node_port_addresses;
use super::select::Candidates;
use super::{Backend, PlanConfig};
use crate::model::{Family, Frontend, Port, Protocol, Snapshot};

/// Which UDP flows are to be kept, for front ends that changed. Flows to anything else are none of our business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpFlows {
    /// The back ends whose flows go on, by front end. Without any, the Service is gone or has no endpoints.
    pub frontends: BTreeMap<Frontend, BTreeSet<Backend>>,
    /// The addresses that NodePorts are at.
    pub node_port_addresses: BTreeSet<IpAddr>,
}

/// One tracked UDP flow: whom the client called, and who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Where the client sends its datagrams.
    pub destination: SocketAddr,
    /// Where the answers come from; the destination itself if the flow was never translated.
    pub reply_source: SocketAddr,
}

impl UdpFlows {
    /// Whether a flow goes to one of the front ends, and is answered by none of its back ends. So is one that was
    /// never translated: it began before the Service did.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        self.kept(flow.destination)
            .is_some_and(|kept| !backend(flow.reply_source).is_some_and(|by| kept.contains(&by)))
    }

    /// Takes a newer job into this one. The newer one knows better about its front ends.
    pub fn merge(&mut self, newer: Self) {
        self.frontends.extend(newer.frontends);
        self.node_port_addresses.extend(newer.node_port_addresses);
    }

    /// Whether no front end changed, so that no flow is stale.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// The back ends whose flows to an address go on; `None` if it is not one of the front ends. A NodePort does not
    /// have what an address has.
    fn kept(&self, destination: SocketAddr) -> Option<&BTreeSet<Backend>> {
        let Backend { ip, port } = backend(destination)?;
        self.frontends.get(&address(ip, port)).or_else(|| {
            let node_port = Frontend::NodePort {
                family: Family::of(ip),
                protocol: Protocol::Udp,
                port,
            };
            let kept = self.frontends.get(&node_port)?;
            self.node_port_addresses.contains(&ip).then_some(kept)
        })
    }
}

/// Which flows of these front ends of a family go on; those of other protocols are left out. Every endpoint that
/// is ready or serves keeps its flows, also while it terminates, and whatever the Service's traffic policies.
pub fn udp_flows(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
    frontends: impl IntoIterator<Item = Frontend>,
) -> UdpFlows {
    let mut flows = UdpFlows::default();
    for frontend in frontends {
        let node_port = match frontend {
            Frontend::Address {
                protocol: Protocol::Udp,
                ..
            } => None,
            Frontend::NodePort {
                protocol: Protocol::Udp,
                port,
                ..
            } => Some(port),
            _ => continue,
        };
        flows
            .frontends
            .insert(frontend, serving(snapshot, frontend));
        let Some(port) = node_port else {
            continue;
        };
        if flows.node_port_addresses.is_empty() {
            let addresses = node_port_addresses(snapshot, config, family);
            flows.node_port_addresses = addresses.into_iter().collect();
        }
        // Where an address of the node is a Service's own, this port there is not the NodePort.
        for ip in &flows.node_port_addresses {
            let own = address(*ip, port);
            if snapshot.claimants(own).next().is_some() {
                flows.frontends.insert(own, serving(snapshot, own));
            }
        }
    }
    flows
}

/// The endpoints of a front end that may answer; none if no Service has it.
fn serving(snapshot: &Snapshot, frontend: Frontend) -> BTreeSet<Backend> {
    let Some((service, claimed)) = snapshot.owner(frontend) else {
        return BTreeSet::new();
    };
    let slices = snapshot.slices_of(&service.name);
    let candidates = Candidates::of(slices, claimed.port, frontend.family());
    candidates.answering().collect()
}

fn address(ip: IpAddr, port: Port) -> Frontend {
    Frontend::Address {
        ip,
        protocol: Protocol::Udp,
        port,
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
