//! Which of the node's addresses have NodePorts: by `--nodeport-addresses`, or as they were in the mode of kube-proxy
//! that a configuration was written for.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::given::{ConfigError, Given, Place};
use super::raw::Raw;
use super::{Note, check};
use crate::model::{Family, PerFamily};
use crate::plan::NodePortAddresses;

/// The mode of kube-proxy that a configuration was written for. proxyd has one alone; this says which defaults were meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProxyMode {
    /// What proxyd does, whether it was said or not.
    Nftables,
    /// Said so.
    Iptables,
    /// A file that names no mode, as kubeadm writes it: kube-proxy takes it for `iptables`.
    Unnamed,
    /// Said so.
    Ipvs,
}

impl ProxyMode {
    /// The mode that flags or the file name.
    ///
    /// # Errors
    /// That there is no such mode.
    pub(super) fn of(raw: &Raw, has_file: bool) -> Result<Self, ConfigError> {
        let Some(Given { value, place }) = &raw.proxy_mode else {
            return Ok(if has_file {
                Self::Unnamed
            } else {
                Self::Nftables
            });
        };
        match value.as_str() {
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            "ipvs" => Ok(Self::Ipvs),
            _ => Err(place.refuse(value, "write nftables (iptables and ipvs are taken for it)")),
        }
    }

    /// Whether it is kube-proxy's `iptables`.
    fn is_iptables(self) -> bool {
        matches!(self, Self::Iptables | Self::Unnamed)
    }
}

/// Which addresses have NodePorts, and what to tell of it and of the mode.
///
/// # Errors
/// An entry that is neither a network nor a keyword.
pub(super) fn addresses(
    raw: &Raw,
    mode: ProxyMode,
    gate: bool,
) -> Result<(NodePortAddresses, Vec<Note>), ConfigError> {
    let given = raw.node_port_addresses.as_ref();
    let mut addresses = match given {
        Some(given) => parsed(given)?,
        None if mode == ProxyMode::Nftables => NodePortAddresses::primary(),
        None => NodePortAddresses::within(everywhere().to_vec()),
    };
    if mode.is_iptables() {
        let is_wanted = raw
            .localhost_node_ports
            .as_ref()
            .is_none_or(|given| given.value);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut networks = addresses.networks.iter();
        let has_loopback = networks.any(|network| network.contains(&loopback));
        addresses.localhost.v4 = is_wanted && (addresses.localhost.v4 || has_loopback);
    }
    let mut notes: Vec<_> = about_mode(raw, mode, &addresses).into_iter().collect();
    if !gate && addresses.localhost != PerFamily::default() {
        addresses.localhost = PerFamily::default();
        notes.push(Note::warn(
            "NodePorts are not at localhost: the feature gate KubeProxyNFTablesLocalhostNodePorts is false"
                .to_owned(),
        ));
    }
    Ok((addresses, notes))
}

/// The entries of a list.
fn parsed(given: &Given<Vec<String>>) -> Result<NodePortAddresses, ConfigError> {
    let mut addresses = NodePortAddresses::default();
    for value in &given.value {
        match value.trim() {
            "primary" => addresses.primary = true,
            "localhost" => addresses.localhost = PerFamily::from_fn(|_| true),
            "all" => addresses.networks.extend(everywhere()),
            other => {
                let network = check::network(other).map_err(|reason| {
                    let keywords = "or primary, localhost or all";
                    given.place.refuse(other, format!("{reason}; {keywords}"))
                })?;
                // A network that has loopback addresses beside others does not ask for them (KEP-6032).
                if network.network().is_loopback() {
                    *addresses.localhost.get_mut(Family::of(network.addr())) = true;
                } else {
                    addresses.networks.push(network);
                }
            }
        }
    }
    Ok(addresses)
}

/// The networks of all addresses.
fn everywhere() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// What to tell those whose configuration was written for another mode.
fn about_mode(raw: &Raw, mode: ProxyMode, addresses: &NodePortAddresses) -> Option<Note> {
    let setting = match raw.proxy_mode.as_ref().map(|given| &given.place) {
        Some(Place::Flag(_)) => "--nodeport-addresses",
        Some(Place::Field { .. }) | None => "nodePortAddresses",
    };
    let localhost = if addresses.localhost.v4 {
        " and, for TCP, at 127.0.0.1"
    } else {
        ""
    };
    let node_ports = match &raw.node_port_addresses {
        Some(_) => String::new(),
        None => format!(
            "NodePorts are at all addresses of the node{localhost}, as in that mode; for those of the Node object \
             alone, set {setting} to primary"
        ),
    };
    match (mode, &raw.proxy_mode) {
        (ProxyMode::Nftables, _) => None,
        (_, Some(Given { value, place })) => {
            let separator = if node_ports.is_empty() { "" } else { "; " };
            Some(Note::info(format!(
                "{place}: {value} is taken for nftables, which proxyd always uses{separator}{node_ports}"
            )))
        }
        (_, None) if node_ports.is_empty() => None,
        (_, None) => Some(Note::info(format!(
            "the file of --config names no mode, which to kube-proxy is iptables: {node_ports}"
        ))),
    }
}
