//! What the maps hold, for people: as text, and as JSON for their tools.
//!
//! Pure. Both are printed from one description, [`Maps`], so they say the same.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxyd_ebpf_common as bpf;
use serde::Serialize;

use super::layout::Entries;
use crate::diff::Held;
use crate::model::{Family, Protocol};

/// What the maps hold of a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Maps {
    family: String,
    /// The addresses that have NodePorts.
    node_addresses: Vec<NodeAddress>,
    frontends: Vec<Frontend>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeAddress {
    address: IpAddr,
    /// Whether sockets of pods are balanced too, or those of the node itself only.
    for_pods: bool,
}

/// A front end, and its back ends in the order of their indexes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Frontend {
    #[serde(flatten)]
    at: At,
    protocol: String,
    /// As for an address of the node.
    for_pods: bool,
    /// How long a client keeps its back end; none: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
    /// How many back ends clients choose from.
    count: u32,
    backends: Vec<Backend>,
}

/// What a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum At {
    Address {
        address: IpAddr,
        port: u16,
    },
    NodePort {
        #[serde(rename = "nodePort")]
        port: u16,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Backend {
    index: u32,
    address: IpAddr,
    port: u16,
}

impl Maps {
    /// Describes what is held.
    pub fn of(family: Family, held: &Held) -> Self {
        let entries = Entries::of(family, held);
        let addresses = entries.node_addresses.iter();
        let addresses = addresses.map(|(address, who)| NodeAddress {
            address: ip(*address),
            for_pods: *who != bpf::THE_NODE,
        });
        let frontends = entries.frontends.iter();
        let frontends = frontends.map(|(key, frontend)| Frontend::of(&entries, key, frontend));
        Self {
            family: family.to_string(),
            node_addresses: addresses.collect(),
            frontends: frontends.collect(),
        }
    }

    /// As text, line by line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "BPF maps, {}: sockets of this node and its pods",
            self.family
        )];
        for NodeAddress { address, for_pods } in &self.node_addresses {
            let whose = if *for_pods {
                ""
            } else {
                " for the node itself"
            };
            lines.push(format!("  {address}: NodePorts{whose}"));
        }
        for frontend in &self.frontends {
            lines.push(format!("  {frontend}"));
            let backends = frontend.backends.iter();
            lines.extend(backends.map(|backend| {
                let to = SocketAddr::new(backend.address, backend.port);
                format!("    {} → {to}", backend.index)
            }));
        }
        lines
    }
}

impl Frontend {
    fn of(entries: &Entries, key: &bpf::FrontendKey, frontend: &bpf::Frontend) -> Self {
        let place = |index| bpf::BackendKey {
            frontend: *key,
            index,
        };
        let backends = entries.backends.range(place(0)..=place(u32::MAX));
        let backends = backends.map(|(place, to)| Backend {
            index: place.index,
            address: ip(to.address),
            port: u16::from_be(to.port),
        });
        let mut protocols = Protocol::ALL.into_iter();
        let protocol = protocols.find(|protocol| protocol.number() == key.protocol);
        let port = u16::from_be(key.port);
        Self {
            at: match key.kind {
                bpf::AT_ADDRESS => At::Address {
                    address: ip(key.address),
                    port,
                },
                _ => At::NodePort { port },
            },
            protocol: protocol.map_or_else(|| key.protocol.to_string(), |p| p.to_string()),
            for_pods: frontend.flags & bpf::FOR_NODE_ONLY == 0,
            affinity_seconds: (frontend.affinity_seconds != 0).then_some(frontend.affinity_seconds),
            count: frontend.count,
            backends: backends.collect(),
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Address { address, port } => SocketAddr::new(address, port).fmt(f)?,
            At::NodePort { port } => write!(f, "NodePort {port}")?,
        }
        write!(f, " {}: back ends: {}", self.protocol, self.count)?;
        if let Some(seconds) = self.affinity_seconds {
            write!(f, ", each client keeps its own for {seconds} s")?;
        }
        if !self.for_pods {
            f.write_str(", for the node itself; pods go by the rules")?;
        }
        Ok(())
    }
}

fn ip(address: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}
