//! Network devices of the machine, as far as packets of Services pass there.

use std::net::IpAddr;

use super::PerFamily;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its packets begin with an Ethernet header. If not, they begin with that of IP.
    pub is_ethernet: bool,
    /// Whether a route leads there, other than to link-local addresses.
    pub has_routes: bool,
    /// Whether a default route leads there.
    pub has_default_route: bool,
    /// Whether only routes to single addresses lead there.
    pub has_single_routes: bool,
    /// Whether it is one end of a veth pair whose other end is in another network namespace.
    pub leads_elsewhere: bool,
    /// How long packets may be there, in bytes.
    pub mtu: u32,
    /// The index of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The node's address there, the first one that other machines may reach.
    pub addresses: PerFamily<Option<IpAddr>>,
}
