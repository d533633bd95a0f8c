//! A Service that has rules, and the front ends (addresses and ports that clients call) it claims.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

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
    /// Its ClusterIPs, at most one of each family. The families that it has are those of its ClusterIPs.
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses that a load balancer sends here as they are (`status.loadBalancer.ingress`, `ipMode: VIP`).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.externalIPs` that are none of the others.
    pub external_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// Which endpoints its ClusterIPs use.
    pub internal_policy: TrafficPolicy,
    /// Which endpoints clients outside the cluster reach.
    pub external_policy: TrafficPolicy,
    /// How long a client keeps its endpoint, if it does (`sessionAffinity: ClientIP`).
    pub affinity: Option<AffinityTimeout>,
    /// Who may call the load-balancer addresses; `None`: everybody. A family without a range is closed.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// Where load balancers ask whether this node has endpoints; with `externalTrafficPolicy: Local` only.
    pub health_check_port: Option<Port>,
}

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// Endpoints on every node.
    #[default]
    Cluster,
    /// Endpoints on the client's node (internal) or on the node that the packet came to (external).
    Local,
}

/// How long after its last new connection a client keeps its endpoint, in seconds: 1 to 86,400 (Kubernetes API
/// reference, `ClientIPConfig.timeoutSeconds`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityTimeout(u32);

impl AffinityTimeout {
    /// What counts where a Service does not say: three hours.
    pub const DEFAULT: Self = Self(10_800);

    /// A timeout of so many seconds; `None` outside 1 to 86,400.
    pub const fn new(seconds: u32) -> Option<Self> {
        if seconds >= 1 && seconds <= 86_400 {
            Some(Self(seconds))
        } else {
            None
        }
    }

    /// The seconds.
    pub const fn seconds(self) -> u32 {
        self.0
    }
}

/// What kind of address a front end has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exposure {
    /// The Service's address inside the cluster.
    ClusterIp,
    /// An address that a load balancer sends here.
    LoadBalancer,
    /// An address of `externalIPs`.
    External,
    /// The node's own addresses.
    NodePort,
}

/// A front end that a Service claims.
#[derive(Debug, Clone, Copy)]
pub struct Claimed<'a> {
    /// What a client calls.
    pub frontend: Frontend,
    /// The kind of its address.
    pub exposure: Exposure,
    /// The port of the Service behind it.
    pub port: &'a ServicePort,
}

impl Claimed<'_> {
    /// The front end of the same port and family at the Service's ClusterIP.
    pub fn at_cluster_ip(&self, service: &Service) -> Option<Frontend> {
        let family = self.frontend.family();
        let mut ips = service.cluster_ips.iter();
        let ip = ips.find(|ip| Family::of(**ip) == family)?;
        Some(Frontend::Address {
            ip: *ip,
            protocol: self.port.protocol,
            port: self.port.port,
        })
    }
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
    /// Those that a packet to an address may be for, in the order in which they are looked for: one at the address, and,
    /// `at_node`, if the address is one of the node that has NodePorts, a NodePort.
    pub fn called(
        ip: IpAddr,
        protocol: Protocol,
        port: Port,
        at_node: bool,
    ) -> impl Iterator<Item = Self> {
        let node_port = at_node.then_some(Self::NodePort {
            family: Family::of(ip),
            protocol,
            port,
        });
        [Self::Address { ip, protocol, port }]
            .into_iter()
            .chain(node_port)
    }

    /// The address; `None` for a NodePort, which is at many.
    pub fn address(&self) -> Option<IpAddr> {
        match *self {
            Self::Address { ip, .. } => Some(ip),
            Self::NodePort { .. } => None,
        }
    }

    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        match *self {
            Self::Address { protocol, .. } | Self::NodePort { protocol, .. } => protocol,
        }
    }

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
    /// Every front end that the Service claims, each once.
    pub fn frontends(&self) -> impl Iterator<Item = Claimed<'_>> {
        let addresses = [
            (Exposure::ClusterIp, &self.cluster_ips),
            (Exposure::LoadBalancer, &self.load_balancer_ips),
            (Exposure::External, &self.external_ips),
        ];
        let addresses = addresses
            .into_iter()
            .flat_map(|(exposure, ips)| ips.iter().map(move |ip| (exposure, *ip)));
        let at_addresses = addresses.flat_map(move |(exposure, ip)| {
            self.ports.iter().map(move |port| Claimed {
                frontend: Frontend::Address {
                    ip,
                    protocol: port.protocol,
                    port: port.port,
                },
                exposure,
                port,
            })
        });
        let at_nodes = self.cluster_ips.iter().flat_map(move |ip| {
            self.ports.iter().filter_map(move |port| {
                Some(Claimed {
                    frontend: Frontend::NodePort {
                        family: Family::of(*ip),
                        protocol: port.protocol,
                        port: port.node_port?,
                    },
                    exposure: Exposure::NodePort,
                    port,
                })
            })
        });
        at_addresses.chain(at_nodes)
    }
}
