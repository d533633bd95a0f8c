//! The calls of a row: from and to which address, in each family and protocol.

use std::net::{IpAddr, SocketAddr};

use super::cast::Cast;
use super::service::{PORT, addresses};
use super::table::Row;
use crate::traffic::{Answer, Failure, Protocol, ask, ask_from};
use std::time::Duration;

/// What a member of the cast asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Who calls.
    pub from: String,
    /// The address that it has to bind to, if it does not get the right one of its own accord.
    pub bound: Option<IpAddr>,
    /// How.
    pub protocol: Protocol,
    /// Whom.
    pub to: SocketAddr,
}

impl Call {
    /// What a row of Service `number` asks in family 0 (IPv4) or 1.
    pub fn of(cast: &Cast, row: &Row, number: u8, family: usize) -> impl Iterator<Item = Self> {
        let to = destination(cast, &row.to, number, family);
        let bound = match row.from.as_str() {
            _ if row.from_load_balancer => Some(addresses(number, family).load_balancer),
            // Only 127.0.0.1 calls 127.0.0.1.
            "node-1" if !to.ip().is_loopback() => Some(cast.source("node-1", family)),
            _ => None,
        };
        let protocols = row.protocols.iter();
        protocols.map(move |protocol| Self {
            from: row.from.clone(),
            bound,
            protocol: *protocol,
            to,
        })
    }

    /// The family: 0 is IPv4, 1 is IPv6.
    pub fn family(&self) -> usize {
        usize::from(self.to.is_ipv6())
    }

    /// The address that it comes from.
    pub fn source(&self, cast: &Cast) -> IpAddr {
        self.bound
            .unwrap_or_else(|| cast.address(&self.from, self.family()))
    }

    /// Makes the call for real.
    ///
    /// # Errors
    /// The reason why there was no answer.
    pub fn make(&self, cast: &Cast, timeout: Duration) -> Result<Answer, Failure> {
        let from = &cast.host(&self.from).netns;
        match self.bound {
            Some(source) => ask_from(from, source, self.protocol, self.to, timeout),
            None => ask(from, self.protocol, self.to, timeout),
        }
    }
}

/// The address that a row's kind means, with its port: `ClusterIP`, `NodePort`, `LB`, `external`, each perhaps with
/// another port (`ClusterIP:81`) or another node address (`NodePort@10.9.0.1 or fd00::9`); or addresses and a port.
fn destination(cast: &Cast, to: &str, number: u8, family: usize) -> SocketAddr {
    let addresses = addresses(number, family);
    let (to, node) = to
        .split_once('@')
        .map_or((to, None), |(to, node)| (to, Some(node)));
    let (kind, port) = match to.split_once(':') {
        Some((kind, port)) if !kind.is_empty() => (kind, port.parse().ok()),
        _ => (to, None),
    };
    let of_family = |list: &str| -> IpAddr {
        let parts: Vec<&str> = list.split(" or ").collect();
        parts[family]
            .parse()
            .unwrap_or_else(|_| panic!("{list}: two addresses"))
    };
    match kind {
        "ClusterIP" => SocketAddr::new(addresses.cluster, port.unwrap_or(PORT)),
        "LB" => SocketAddr::new(addresses.load_balancer, port.unwrap_or(PORT)),
        "external" => SocketAddr::new(addresses.external, port.unwrap_or(PORT)),
        "NodePort" => {
            let node = node.map_or_else(|| cast.address("node-1", family), of_family);
            SocketAddr::new(node, addresses.node_port)
        }
        _ => SocketAddr::new(of_family(node.expect("KIND or any@V4 or V6")), PORT),
    }
}
