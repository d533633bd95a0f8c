//! What the maps hold, for people: as text, and as JSON for their tools.
//!
//! Pure. Both are printed from one description, [`Maps`], so they say the same.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxyd_ebpf_common as bpf;
use serde::Serialize;

use super::layout::{Entries, FRONTEND_BYTES};
use super::maglev::TableSize;
use crate::diff::Held;
use crate::model::{Family, Protocol};

/// What the maps hold of a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Maps {
    family: String,
    /// The addresses that have NodePorts.
    node_addresses: Vec<NodeAddress>,
    /// Where pods are, if they are known by their addresses.
    pod_networks: Vec<String>,
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
    /// Whose source is masqueraded.
    masquerade: Masquerade,
    /// Who may call it; none: everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Vec<String>>,
    /// How long a client keeps its back end; none: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
    /// How many back ends clients choose from.
    count: u32,
    /// How many of them, those on this node, clients outside choose from; none: from all.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<u32>,
    /// Whether clients outside are given theirs by consistent hashing, and not by chance.
    consistent_hashing: bool,
    backends: Vec<Backend>,
}

/// Whose source is masqueraded, where packets are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Masquerade {
    Everybody,
    /// Who is not known to be a pod.
    Outside,
    Nobody,
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
    pub fn of(family: Family, held: &Held, size: TableSize) -> Self {
        let entries = Entries::of(family, held, size);
        let addresses = entries.node_addresses.iter();
        let addresses = addresses.map(|(address, who)| NodeAddress {
            address: (*address).into(),
            for_pods: *who != bpf::THE_NODE,
        });
        let frontends = entries.frontends.iter();
        let frontends = frontends.map(|(key, frontend)| Frontend::of(&entries, key, frontend));
        let pods = entries.pod_networks.keys();
        let pods = pods.map(|prefix| network(prefix.key.address, prefix.bits));
        Self {
            family: family.to_string(),
            node_addresses: addresses.collect(),
            pod_networks: pods.collect(),
            frontends: frontends.collect(),
        }
    }

    /// As text, line by line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("BPF maps, {}", self.family)];
        for NodeAddress { address, for_pods } in &self.node_addresses {
            let whose = if *for_pods {
                ""
            } else {
                " for the node itself"
            };
            lines.push(format!("  {address}: NodePorts{whose}"));
        }
        for network in &self.pod_networks {
            lines.push(format!("  {network}: pods"));
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
        let backends = backends.map(|(place, to)| {
            let to = SocketAddr::from(*to);
            Backend {
                index: place.index,
                address: to.ip(),
                port: to.port(),
            }
        });
        let mut protocols = Protocol::ALL.into_iter();
        let protocol = protocols.find(|protocol| protocol.number() == key.protocol);
        let port = u16::from_be(key.port);
        let has = |flag| frontend.flags & flag != 0;
        Self {
            at: match key.kind {
                bpf::AT_ADDRESS => At::Address {
                    address: key.address.into(),
                    port,
                },
                _ => At::NodePort { port },
            },
            protocol: protocol.map_or_else(|| key.protocol.to_string(), |p| p.to_string()),
            masquerade: match (has(bpf::MASQUERADE_ALL), has(bpf::MASQUERADE_OUTSIDE)) {
                (true, _) => Masquerade::Everybody,
                (false, true) => Masquerade::Outside,
                (false, false) => Masquerade::Nobody,
            },
            sources: has(bpf::GUARDED).then(|| sources(entries, key)),
            local: has(bpf::LOCAL_OUTSIDE).then_some(frontend.local),
            affinity_seconds: (frontend.affinity_seconds != 0).then_some(frontend.affinity_seconds),
            count: frontend.count,
            consistent_hashing: frontend.table != bpf::Table::NONE,
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
        if let Some(local) = self.local {
            write!(f, ", for clients outside {local} here")?;
        }
        if self.consistent_hashing {
            f.write_str(", hashed for clients outside")?;
        }
        match self.masquerade {
            Masquerade::Everybody => f.write_str(", masqueraded")?,
            Masquerade::Outside => f.write_str(", masqueraded for others than pods")?,
            Masquerade::Nobody => {}
        }
        match &self.sources {
            None => {}
            Some(sources) if sources.is_empty() => f.write_str(", for nobody")?,
            Some(sources) => {
                write!(f, ", only for {}", sources.join(" "))?;
            }
        }
        Ok(())
    }
}

/// Who may call a front end.
fn sources(entries: &Entries, frontend: &bpf::FrontendKey) -> Vec<String> {
    let of = entries.allowed.keys();
    let of = of.filter(|prefix| prefix.key.frontend == *frontend);
    of.map(|prefix| network(prefix.key.source, prefix.bits - 8 * FRONTEND_BYTES))
        .collect()
}

/// A network, of so many bits of its mapped address.
fn network(address: bpf::Address, bits: u32) -> String {
    let address = IpAddr::from(address);
    let unmapped = if address.is_ipv4() { bits - 96 } else { bits };
    let length = u8::try_from(unmapped).expect("a prefix is no longer than its address");
    IpNet::new_assert(address, length).to_string()
}
