//! A small dual-stack cluster made of network namespaces.
//!
//! ```text
//!   pod   pod                                                              pod   pod
//!     \   /                                                                  \   /
//!     node-1 192.168.0.2 ─────────────────── fabric ─────────────────── node-2 192.168.1.2
//!     10.244.1.0/24                            │                        10.244.2.0/24
//!                                           client 203.0.113.2
//! ```
//!
//! The fabric is the network between the nodes: it sends each node's pod addresses to that node, and the addresses of
//! Services (ClusterIPs, load-balancer and external addresses) to node-1, where the agent under test runs. What it does
//! not know it discards in silence, so that a client there sees a time-out. An address of a Service that node-1 has no
//! rule for comes back to the fabric until its TTL is spent: TCP clients see "host unreachable", which tells a missing
//! rule from a dropped packet.
//!
//! Everything is routed, nothing is bridged unless a test asks for it, and nothing is translated unless it loads rules that do. Addresses are
//! constants, for every cluster is on its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use crate::netns::Netns;
use crate::netns::link::{self, Link};
use crate::traffic::EchoServer;

/// The pod addresses of all nodes, as `--cluster-cidr` wants them.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/56";

/// The addresses that ClusterIPs come from.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// The addresses that load balancers hand out. The client's own lie in there, and are not sent to node-1.
pub const LOAD_BALANCER_CIDRS: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];

/// The addresses for `externalIPs`.
pub const EXTERNAL_CIDRS: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];

/// Pods that do not choose an address get the ones from here on, so that a test may choose lower ones.
const FIRST_POD: u32 = 100;

/// What a namespace is set up with before it gets its first link.
const HOST_SYSCTLS: &[(&str, &str)] = &[
    // New namespaces take their IPv4 settings from the root namespace's, so what matters is said (net.core.rst,
    // devconf_inherit_init_net). Replies may come by another way than the request went: no reverse path filter.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    // A refused datagram must look refused the hundredth time too. What is not in these masks of ICMP types has no rate
    // limit, neither that of a destination nor that of a namespace. An empty mask cannot be written for IPv6; 127 is no
    // message that the kernel sends.
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv6/icmp/ratemask", "127"),
];

const ROUTER_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// Two nodes, the network between them, and a client outside.
#[derive(Debug)]
pub struct Cluster {
    /// The router in the middle.
    pub fabric: Netns,
    /// The node that the addresses of Services are routed to.
    pub node1: Node,
    /// Another node.
    pub node2: Node,
    /// A client outside the cluster.
    pub client: Host,
}

/// A namespace with an address of each family.
#[derive(Debug)]
pub struct Host {
    /// What it is called in answers and messages.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
}

/// A node: forwards for the pods that it has.
#[derive(Debug)]
pub struct Node {
    /// Its name and its addresses.
    pub host: Host,
    /// Its `podCIDRs`, IPv4 and IPv6.
    pub pod_cidrs: [IpNet; 2],
    pods: AtomicU32,
}

/// A pod; its namespace and its servers go when it is dropped.
#[derive(Debug)]
pub struct Pod {
    /// Its name and its addresses.
    pub host: Host,
    servers: Vec<EchoServer>,
}

impl Cluster {
    /// Makes the cluster, without pods.
    ///
    /// # Panics
    /// Without the privileges that namespaces need.
    #[expect(
        clippy::new_without_default,
        reason = "makes things outside this process"
    )]
    pub fn new() -> Self {
        Self::build().expect("a cluster needs root, and a kernel with network namespaces and veth")
    }

    fn build() -> Result<Self> {
        let fabric = router()?;
        let cluster = Self {
            node1: Node::new(&fabric, 1)?,
            node2: Node::new(&fabric, 2)?,
            client: client(&fabric)?,
            fabric,
        };
        cluster.route()?;
        Ok(cluster)
    }

    /// Lets what pods of node-2 answer to a host outside both nodes pass through node-1, which may have translated
    /// the question without hiding the host.
    ///
    /// # Panics
    /// If called twice for one host.
    pub fn return_by_node1(&self, to: &Host) {
        let Node { host: node1, .. } = &self.node1;
        let ways = [(to.v4, node1.v4), (to.v6, node1.v6)];
        for (pods, (to, gateway)) in self.node2.pod_cidrs.into_iter().zip(ways) {
            link::add_source_route(&self.fabric, pods, to, gateway)
                .expect("the fabric has no such rule yet");
        }
    }

    /// A pod on a third node, of which there is nothing else.
    ///
    /// # Panics
    /// If called twice.
    pub fn pod_elsewhere(&self, name: &str) -> Host {
        let addresses =
            ["10.244.3.2", "fd00:10:244:3::2"].map(|ip| ip.parse().expect("an address"));
        leaf(&self.fabric, name, 200, addresses).expect("the fabric has no such pod yet")
    }

    /// The routes that the links do not bring.
    fn route(&self) -> Result<()> {
        for node in [&self.node1, &self.node2] {
            for (cidr, gateway) in node.pod_cidrs.into_iter().zip([node.host.v4, node.host.v6]) {
                link::add_route(&self.fabric, cidr, gateway)?;
                // An address that no pod has is discarded, not sent back where it came from.
                link::add_blackhole(&node.host.netns, cidr)?;
            }
        }
        for [v4, v6] in [SERVICE_CIDRS, LOAD_BALANCER_CIDRS, EXTERNAL_CIDRS] {
            link::add_route(&self.fabric, v4.parse()?, self.node1.host.v4)?;
            link::add_route(&self.fabric, v6.parse()?, self.node1.host.v6)?;
        }
        // What the fabric's ICMP errors come from.
        link::add_address(&self.fabric, "lo", "192.168.255.1/32".parse()?)?;
        link::add_address(&self.fabric, "lo", "fd00:168:ffff::1/128".parse()?)?;
        link::add_blackhole(&self.fabric, "0.0.0.0/0".parse()?)?;
        link::add_blackhole(&self.fabric, "::/0".parse()?)
    }
}

impl Host {
    /// Its address of the same family as another one.
    pub fn own(&self, family: IpAddr) -> IpAddr {
        if family.is_ipv4() { self.v4 } else { self.v6 }
    }

    /// Runs `work` inside; see [`Netns::enter`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.enter(work)
    }
}

impl Node {
    /// Node `number` of the cluster, linked to the fabric.
    fn new(fabric: &Netns, number: u8) -> Result<Self> {
        let netns = router()?;
        let subnet = number - 1;
        let v4 = Ipv4Addr::new(192, 168, subnet, 2);
        let v6 = Ipv6Addr::new(0xfd00, 0x168, 0, subnet.into(), 0, 0, 0, 2);
        let name = format!("node-{number}");
        Link {
            router: fabric,
            router_device: &name,
            router_index: 100 + u32::from(number),
            leaf: &netns,
            addresses: &[IpNet::new(v4.into(), 24)?, IpNet::new(v6.into(), 64)?],
        }
        .attach()?;
        Ok(Self {
            host: Host {
                name,
                netns,
                v4: v4.into(),
                v6: v6.into(),
            },
            pod_cidrs: [
                IpNet::new(Ipv4Addr::new(10, 244, number, 0).into(), 24)?,
                IpNet::new(
                    Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0).into(),
                    64,
                )?,
            ],
            pods: AtomicU32::new(0),
        })
    }

    /// Makes a pod on this node, with the next free addresses.
    ///
    /// # Panics
    /// If the node is full (156 pods).
    pub fn pod(&self, name: &str) -> Pod {
        self.pod_at(name, &[])
    }

    /// Makes a pod with these addresses, at most one of a family; a family that is not there gets the next free one.
    ///
    /// # Panics
    /// If an address is outside the node's pod CIDRs.
    pub fn pod_at(&self, name: &str, addresses: &[IpAddr]) -> Pod {
        self.try_pod(name, addresses)
            .unwrap_or_else(|error| panic!("pod {name} on {}: {error:#}", self.host.name))
    }

    fn try_pod(&self, name: &str, chosen: &[IpAddr]) -> Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let mut addresses = self
            .pod_cidrs
            .map(|cidr| nth_address(cidr, FIRST_POD + number));
        for address in chosen {
            let family = self
                .pod_cidrs
                .iter()
                .position(|cidr| cidr.contains(address));
            addresses
                [family.with_context(|| format!("{address} is not in {:?}", self.pod_cidrs))?] =
                *address;
        }
        let netns = host()?;
        Link {
            router: &self.host.netns,
            router_device: &format!("pod-{number}"),
            router_index: 100 + number,
            leaf: &netns,
            addresses: &addresses.map(IpNet::from),
        }
        .attach()?;
        let [v4, v6] = addresses;
        Ok(Pod {
            host: Host {
                name: name.into(),
                netns,
                v4,
                v6,
            },
            servers: Vec::new(),
        })
    }

    /// Runs `work` inside; see [`Netns::enter`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.enter(work)
    }
}

impl Pod {
    /// Answers on `port`, TCP and UDP, both families, with the pod's name, until the pod is dropped.
    ///
    /// # Panics
    /// If the port is taken.
    #[must_use]
    pub fn serving(mut self, port: u16) -> Self {
        self.servers
            .push(EchoServer::start(&self.host.netns, &self.host.name, port));
        self
    }

    /// Stops answering on every port: connections are refused from now on, and those that were open are closed.
    pub fn stop_serving(&mut self) {
        self.servers.clear();
    }

    /// Runs `work` inside; see [`Netns::enter`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.enter(work)
    }
}

/// The client outside. It sends everything to the fabric, also what is in its own network: load balancers' addresses
/// are there.
fn client(fabric: &Netns) -> Result<Host> {
    let v4 = Ipv4Addr::new(203, 0, 113, 2).into();
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2).into();
    leaf(fabric, "client", 100, [v4, v6])
}

/// A host on a link of its own to the fabric.
fn leaf(fabric: &Netns, name: &str, index: u32, [v4, v6]: [IpAddr; 2]) -> Result<Host> {
    let netns = host()?;
    Link {
        router: fabric,
        router_device: name,
        router_index: index,
        leaf: &netns,
        addresses: &[v4.into(), v6.into()],
    }
    .attach()?;
    Ok(Host {
        name: name.into(),
        netns,
        v4,
        v6,
    })
}

fn host() -> Result<Netns> {
    let netns = Netns::new()?;
    netns.sysctls(HOST_SYSCTLS);
    Ok(netns)
}

fn router() -> Result<Netns> {
    let netns = host()?;
    netns.sysctls(ROUTER_SYSCTLS);
    Ok(netns)
}

/// The address of `cidr` with `number` in its last byte.
fn nth_address(cidr: IpNet, number: u32) -> IpAddr {
    assert!(number < 256, "the node is full");
    match cidr.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() + number).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() + u128::from(number)).into(),
    }
}
