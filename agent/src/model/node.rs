//! This node, as its Node object describes it.

use std::net::IpAddr;

/// What proxyd keeps of its own Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// `status.addresses` that are IP addresses: InternalIPs first, then ExternalIPs, each in the object's order.
    pub addresses: Vec<IpAddr>,
}
