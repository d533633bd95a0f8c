//! Snapshot and configuration → the tables that the kernel should hold.
//!
//! Pure: the same snapshot gives the same tables, whatever order its objects came in. A back end (nftables,
//! later eBPF) turns [`Tables`] into its own maps. Each front end can be planned alone, so that a change costs
//! what it touches; [`tables()`] with [`Scope::All`] is the same over all of them.

mod select;
mod stale_flows;
mod tables;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

pub use stale_flows::{Flow, UdpFlows, udp_flows};
pub use tables::{Backend, MAX_BACKENDS, Masquerade, Rule, Tables};

use crate::model::{Family, Frontend, Scope, Snapshot};

/// Which of the node's addresses have NodePorts (`--nodeport-addresses`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The addresses of the Node object, the first of each family; where there is no Node object, every
    /// address of the machine.
    Primary,
    /// The addresses of the machine that lie in one of these networks.
    In(Vec<IpNet>),
}

/// The settings that planning depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanConfig {
    /// Which addresses have NodePorts.
    pub node_port_addresses: NodePortAddresses,
}

/// Plans a family, or the part of it that is in scope. What is in scope and absent from the result is to go.
pub fn tables(snapshot: &Snapshot, config: &PlanConfig, family: Family, scope: &Scope) -> Tables {
    let planned = |frontend| Some((frontend, rule(snapshot, frontend)?));
    let node_port_addresses = || node_port_addresses(snapshot, config, family);
    match scope {
        Scope::All => Tables {
            rules: snapshot.frontends(family).filter_map(planned).collect(),
            hairpin: snapshot.endpoints_here(family).collect(),
            node_port_addresses: node_port_addresses(),
        },
        Scope::Touched(touched) => {
            let here = touched.endpoints_here.iter().copied();
            let here = here.filter(|address| snapshot.is_endpoint_here(*address));
            Tables {
                rules: touched
                    .frontends
                    .iter()
                    .copied()
                    .filter_map(planned)
                    .collect(),
                hairpin: here.collect(),
                node_port_addresses: touched.node.then(node_port_addresses).unwrap_or_default(),
            }
        }
    }
}

/// Plans one front end; `None` if no Service claims it.
pub fn rule(snapshot: &Snapshot, frontend: Frontend) -> Option<Rule> {
    let (service, port) = snapshot.owner(frontend)?;
    let backends = select::backends(snapshot.slices_of(&service.name), port, frontend.family());
    if backends.is_empty() {
        return Some(Rule::Reject);
    }
    let masquerade = match frontend {
        Frontend::Address { .. } => Masquerade::OutsidePods,
        Frontend::NodePort { .. } => Masquerade::Always,
    };
    Some(Rule::Balance {
        masquerade,
        backends,
    })
}

/// The addresses of this node that have NodePorts. A Node's addresses that are not on the machine do no
/// harm: the rules also ask the routing table whether an address is local.
fn node_port_addresses(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
) -> BTreeSet<IpAddr> {
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    let host = snapshot.host_addresses().iter().filter(of_family).copied();
    match (&config.node_port_addresses, snapshot.node()) {
        (NodePortAddresses::In(networks), _) => host
            .filter(|address| networks.iter().any(|net| net.contains(address)))
            .collect(),
        (NodePortAddresses::Primary, Some(node)) => node
            .addresses
            .iter()
            .find(of_family)
            .copied()
            .into_iter()
            .collect(),
        (NodePortAddresses::Primary, None) => host.collect(),
    }
}

#[cfg(test)]
mod tests;
