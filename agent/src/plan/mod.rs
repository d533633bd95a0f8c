//! Snapshot and configuration → the tables that the kernel should hold.
//!
//! Pure: the same snapshot gives the same tables, whatever order its objects came in. A back end (nftables,
//! later eBPF) turns [`Tables`] into its own maps. Each front end can be planned alone, so that a change costs
//! what it touches; [`tables()`] with [`Scope::All`] is the same over all of them.

mod admission;
mod detector;
mod health;
mod lack;
mod members;
mod node_ports;
mod select;
mod stale_flows;
mod tables;

use ipnet::IpNet;

pub use detector::Detector;
pub use health::health_checks;
pub use lack::{Lack, lack};
pub use node_ports::NodePortAddresses;
pub use stale_flows::{Flow, Flows, flows, opened};
pub use tables::{Affinity, Backend, Balance, MAX_BACKENDS, Member, Policy, Rule, Tables};

use crate::model::{Claimed, Exposure, Family, Frontend, Scope, Service, Snapshot, TrafficPolicy};
use select::Candidates;

/// Which sources are pods, where that is told by address. The data plane knows which detector is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodNetworks {
    /// These (`--cluster-cidr`).
    Fixed(Vec<IpNet>),
    /// The Node object's `podCIDRs`.
    OfNode,
}

/// The settings that planning depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanConfig {
    /// Which addresses have NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// Which sources are pods.
    pub pod_networks: PodNetworks,
    /// Whether everything that goes to a ClusterIP is masqueraded (`--masquerade-all`).
    pub masquerade_all: bool,
    /// Whether `externalIPs` of Services are served (the feature gate `AllowServiceExternalIPs`).
    pub external_ips: bool,
}

/// Plans a family, or the part of it that is in scope. What is in scope and absent from the result is to go.
pub fn tables(snapshot: &Snapshot, config: &PlanConfig, family: Family, scope: &Scope) -> Tables {
    let planned = |frontend| Some((frontend, rule(snapshot, config, frontend)?));
    match scope {
        Scope::All => Tables {
            rules: snapshot.frontends(family).filter_map(planned).collect(),
            members: members::all(snapshot, config, family).collect(),
        },
        Scope::Touched(touched) => Tables {
            rules: touched
                .frontends
                .iter()
                .copied()
                .filter_map(planned)
                .collect(),
            members: members::touched(snapshot, touched).collect(),
        },
    }
}

/// Plans one front end; `None` if no Service claims it.
pub fn rule(snapshot: &Snapshot, config: &PlanConfig, frontend: Frontend) -> Option<Rule> {
    let (service, claimed) = snapshot.owner(frontend)?;
    let slices = snapshot.slices_of(&service.name);
    let candidates = Candidates::of(slices, claimed.port, frontend.family());
    let zone = snapshot.node().and_then(|node| node.zone.as_deref());
    let everywhere = candidates.everywhere(zone);
    if everywhere.is_empty() {
        return Some(Rule::Reject);
    }
    let (policy, backends, local) = if claimed.exposure == Exposure::ClusterIp {
        let policy = if config.masquerade_all {
            Policy::External
        } else {
            Policy::Cluster
        };
        let backends = match service.internal_policy {
            TrafficPolicy::Cluster => everywhere,
            TrafficPolicy::Local => candidates.here(),
        };
        (policy, backends, Vec::new())
    } else {
        match service.external_policy {
            TrafficPolicy::Cluster => (Policy::External, everywhere, Vec::new()),
            TrafficPolicy::Local => (Policy::ExternalLocal, everywhere, candidates.here()),
        }
    };
    if backends.is_empty() {
        return Some(Rule::Drop);
    }
    Some(Rule::Balance(Balance {
        policy,
        backends,
        local,
        affinity: affinity(snapshot, service, &claimed),
    }))
}

/// How clients of a front end keep their back ends. They have one at all front ends of a Service port in a family, which therefore
/// share a key: the front end at the ClusterIP, since no other Service can have that. Where another one has it all the same, an address
/// has its own key, and NodePorts have no affinity. Where front ends choose among different endpoints, each has its own key.
fn affinity(snapshot: &Snapshot, service: &Service, claimed: &Claimed<'_>) -> Option<Affinity> {
    let timeout = service.affinity?;
    let key = claimed.at_cluster_ip(service).filter(|key| {
        let owner = snapshot.owner(*key);
        owner.is_some_and(|(owner, _)| owner.name == service.name)
    });
    let own = claimed.frontend.address().map(|_| claimed.frontend);
    let has_outer = || {
        let mut frontends = service.frontends();
        frontends.any(|other| other.exposure != Exposure::ClusterIp)
    };
    let policies = [service.internal_policy, service.external_policy];
    let is_mixed = policies.contains(&TrafficPolicy::Local) && has_outer();
    let key = if is_mixed {
        claimed.frontend
    } else {
        key.or(own)?
    };
    Some(Affinity {
        timeout,
        key,
        is_mixed,
    })
}

#[cfg(test)]
mod tests;
