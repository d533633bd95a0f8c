//! What is said of this node: that it has no Node object, or an address that the machine does not have.
//!
//! Pure but for the log. The same is said once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::{info, warn};

use crate::model::{Family, Snapshot};
use crate::plan::PlanConfig;

/// What follows where there is no Node object.
const WITHOUT_NODE: &str = "if the name is wrong, no endpoint is on this node, and Services with a Local traffic policy \
                            drop their clients here; topology hints are not followed; NodePorts that are at primary \
                            addresses (--nodeport-addresses) are at every address of the machine";

/// What was said.
#[derive(Debug, Default)]
pub(super) struct NodeNotes {
    /// That there is no Node object.
    missing: bool,
    /// That these addresses of it are not on the machine.
    elsewhere: BTreeSet<IpAddr>,
}

impl NodeNotes {
    /// The Node object was heard of, or that there is none. `matters`: load balancers leave a node alone that has none.
    pub(super) fn node(&mut self, is_there: bool, matters: bool) {
        let was_missing = std::mem::replace(&mut self.missing, !is_there);
        match (is_there, was_missing) {
            (true, true) => info!("the Node object of this node is there"),
            (false, false) if matters => warn!(
                "there is no Node object of this node's name (--hostname-override): until there is, /healthz says 503, so that load \
                 balancers leave this node alone; {WITHOUT_NODE}"
            ),
            (false, false) => info!(
                "there is no Node object of this node's name (--hostname-override); {WITHOUT_NODE}"
            ),
            (true, false) | (false, true) => {}
        }
    }

    /// Says which addresses NodePorts should be at that the machine does not have. To be called when both are known.
    pub(super) fn addresses(&mut self, snapshot: &Snapshot, config: &PlanConfig) {
        let node = snapshot
            .node()
            .filter(|_| config.node_port_addresses.primary);
        let primary = Family::ALL.into_iter().filter_map(|family| {
            let mut addresses = node?.addresses.iter();
            addresses.find(|ip| Family::of(**ip) == family).copied()
        });
        let elsewhere: BTreeSet<IpAddr> = primary
            .filter(|ip| !snapshot.host_addresses().contains(ip))
            .collect();
        for ip in elsewhere.difference(&self.elsewhere) {
            warn!(
                "the Node object says that this node is at {ip}, which no device of this machine has: nobody reaches NodePorts of {} \
                 there; let the kubelet say the right address (--node-ip), or name networks with --nodeport-addresses",
                Family::of(*ip)
            );
        }
        for ip in self.elsewhere.difference(&elsewhere) {
            info!("the Node object's address {ip} is on this machine, or is no longer said");
        }
        self.elsewhere = elsewhere;
    }

    /// The addresses that were said not to be on the machine.
    #[cfg(test)]
    pub(super) fn elsewhere(&self) -> &BTreeSet<IpAddr> {
        &self.elsewhere
    }
}
