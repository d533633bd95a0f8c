//! This node, as its Node object describes it.

use std::net::IpAddr;

use ipnet::IpNet;

/// What proxyd keeps of its own Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// `status.addresses` that are IP addresses: InternalIPs first, then ExternalIPs, each in the object's order.
    pub addresses: Vec<IpAddr>,
    /// The networks of its pods (`spec.podCIDRs`).
    pub pod_networks: Vec<IpNet>,
    /// Its zone (label `topology.kubernetes.io/zone`).
    pub zone: Option<Box<str>>,
    /// It is being deleted or scaled down, so load balancers should turn to other nodes (KEP-3836).
    pub leaving: bool,
}
