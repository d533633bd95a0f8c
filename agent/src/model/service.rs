//! A Service that has rules, and the front ends (addresses and ports that clients call) it claims.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Family, ObjectName, Port, Protocol};

/// `spec.type` of a Service that has rules. ExternalName Services have none and never become a [`Service`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceType {
    /// Reached at its ClusterIP only.
    ClusterIp,
    /// Also reached at a port of every node.
    NodePort,
    /// Also reached through an external load balancer.
    LoadBalancer,
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        })
    }
}

/// What proxyd keeps of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Seconds since the epoch when it was made. Of two Services that claim one front end the older has it.
    pub created: i64,
    /// Its type.
    pub kind: ServiceType,
    /// Its ClusterIPs, at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service. Endpoints join it by name; `targetPort` is never read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The name, empty if the Service has one port without a name.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the ClusterIP.
    pub port: Port,
    /// The port at every node, if there is one.
    pub node_port: Option<Port>,
}

/// What a client calls: the key of everything that is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// A port of an address that belongs to the Service.
    Address {
        /// The address.
        ip: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: Port,
    },
    /// A port of each of the node's own addresses of a family.
    NodePort {
        /// The family of the node's addresses.
        family: Family,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: Port,
    },
}

impl Frontend {
    /// The address family.
    pub fn family(&self) -> Family {
        match *self {
            Self::Address { ip, .. } => Family::of(ip),
            Self::NodePort { family, .. } => family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address { ip, protocol, port } => {
                write!(f, "{} {protocol}", SocketAddr::new(ip, port.get()))
            }
            Self::NodePort {
                family,
                protocol,
                port,
            } => write!(f, "{family} node port {port} {protocol}"),
        }
    }
}

impl Service {
    /// Every front end that the Service claims, with the port of the Service behind it.
    pub fn frontends(&self) -> impl Iterator<Item = (Frontend, &ServicePort)> {
        self.cluster_ips.iter().flat_map(move |&ip| {
            self.ports.iter().flat_map(move |port| {
                let address = Frontend::Address {
                    ip,
                    protocol: port.protocol,
                    port: port.port,
                };
                let node_port = port.node_port.map(|number| Frontend::NodePort {
                    family: Family::of(ip),
                    protocol: port.protocol,
                    port: number,
                });
                std::iter::once(address)
                    .chain(node_port)
                    .map(move |frontend| (frontend, port))
            })
        })
    }
}
