//! Who takes part in every scene: pods on the nodes, the nodes, and a client outside.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{Cluster, EXTERNAL_CIDRS, Host, LOAD_BALANCER_CIDRS, Pod, SERVICE_CIDRS};
use crate::netns::Netns;
use crate::netns::link::{self, bridge};
use crate::traffic::EchoServer;

/// The port that endpoints answer at.
pub const PORT: u16 = 8080;

/// The cast of a scene. A name is what tables call it.
#[derive(Debug)]
pub struct Cast {
    /// The nodes, the network between them, and `client`.
    pub cluster: Cluster,
    pods: Vec<Pod>,
    pod_elsewhere: Host,
    /// The addresses of node-1.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Whether node-1's pods are on a bridge.
    bridged: bool,
    /// Answers on node-1 itself, under the node's name.
    _on_host: EchoServer,
    /// Answer at other ports.
    others: Vec<EchoServer>,
}

/// Pods by name, on node-1 and on node-2. The first only asks.
const PODS: [&str; 5] = ["pod", "here", "here2", "there", "there2"];

/// The pods of node-1, in the order of their interfaces.
const PODS_HERE: [&str; 3] = ["pod", "here", "here2"];

/// What node-1's clients bind to: not the address that masquerade takes, so that one is told from the other.
const NODE_SOURCE: [&str; 2] = ["192.168.0.3", "fd00:168::3"];

/// The bridge of [`Cast::bridge_pods`].
pub const BRIDGE: &str = "pods";

impl Cast {
    /// Sets the scene.
    pub fn new() -> Self {
        let cluster = Cluster::new();
        let pods = PODS.map(|name| {
            let node = if Self::is_here(name) {
                &cluster.node1
            } else {
                &cluster.node2
            };
            let pod = node.pod(name);
            if name == "pod" {
                pod
            } else {
                pod.serving(PORT)
            }
        });
        let node = &cluster.node1.host;
        let on_host = EchoServer::start(&node.netns, &node.name, PORT);
        let mut cast = Self {
            pods: pods.into(),
            node_addresses: [node.v4, node.v6].into(),
            pod_elsewhere: cluster.pod_elsewhere("pod-3"),
            bridged: false,
            _on_host: on_host,
            others: Vec::new(),
            cluster,
        };
        for address in NODE_SOURCE {
            cast.add_node_address(address.parse().expect("an address"));
        }
        cast
    }

    /// Whether a member is on the node under test, or is that node.
    pub fn is_here(name: &str) -> bool {
        ["pod", "here", "here2", "node-1"].contains(&name)
    }

    /// The namespaces of the node under test and of its pods.
    pub fn namespaces_here(&self) -> Vec<&Netns> {
        let pods = PODS_HERE.map(|name| &self.host(name).netns);
        let node = &self.cluster.node1.host.netns;
        pods.into_iter().chain([node]).collect()
    }

    /// The pod of a name.
    ///
    /// # Panics
    /// If there is none.
    pub fn pod(&self, name: &str) -> &Pod {
        let pod = self.pods.iter().find(|pod| pod.host.name == name);
        pod.unwrap_or_else(|| panic!("{name} is not in the cast"))
    }

    /// A member of the cast.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn host(&self, name: &str) -> &Host {
        match name {
            "node-1" => &self.cluster.node1.host,
            "node-2" => &self.cluster.node2.host,
            "client" => &self.cluster.client,
            "pod-3" => &self.pod_elsewhere,
            pod => &self.pod(pod).host,
        }
    }

    /// A member's address in family 0 (IPv4) or 1.
    pub fn address(&self, name: &str, family: usize) -> IpAddr {
        let host = self.host(name);
        [host.v4, host.v6][family]
    }

    /// The address that a member's packets come from: of node-1 a second one.
    ///
    /// # Panics
    /// If there is no such member.
    pub fn source(&self, name: &str, family: usize) -> IpAddr {
        if name == "node-1" {
            NODE_SOURCE[family].parse().expect("an address")
        } else {
            self.address(name, family)
        }
    }

    /// Lets a pod, or the node, answer at one more port, as `name:port`.
    ///
    /// # Panics
    /// If the port is taken.
    pub fn serve_also(&mut self, name: &str, port: u16) {
        let server = EchoServer::start(&self.host(name).netns, &format!("{name}:{port}"), port);
        self.others.push(server);
    }

    /// Puts the pods of node-1 on a bridge.
    ///
    /// # Panics
    /// If they are on it already.
    pub fn bridge_pods(&mut self) {
        let devices = PODS_HERE.map(|name| (self.host(name), self.interface(name)));
        let ports = devices.each_ref().map(|(host, device)| bridge::Port {
            device: device.as_deref().expect("pods have one"),
            leaf: &host.netns,
            addresses: [host.v4, host.v6],
        });
        bridge::attach(&self.cluster.node1.host.netns, BRIDGE, 200, &ports)
            .expect("the kernel has bridges, and node-1 has none yet");
        self.bridged = true;
    }

    /// Gives node-1 one more address, which the network knows and which nobody has as a source who does not bind to it.
    ///
    /// # Panics
    /// If it has it already.
    pub fn add_node_address(&mut self, address: IpAddr) {
        let node = &self.cluster.node1.host;
        link::add_unchosen_address(&node.netns, link::LEAF_DEVICE, address.into())
            .expect("node-1 does not have it yet");
        let gateway = if address.is_ipv4() { node.v4 } else { node.v6 };
        link::add_route(&self.cluster.fabric, address.into(), gateway)
            .expect("the fabric reaches node-1");
        self.node_addresses.insert(address);
    }

    /// Whether the network routes an address to node-1 since it is for Services.
    pub fn is_routed_here(&self, address: IpAddr) -> bool {
        let client = &self.cluster.client;
        let networks = [SERVICE_CIDRS, LOAD_BALANCER_CIDRS, EXTERNAL_CIDRS];
        let mut networks = networks.into_iter().flatten();
        let is_in = |network: &str| {
            let network: IpNet = network.parse().expect("a network");
            network.contains(&address)
        };
        ![client.v4, client.v6].contains(&address) && networks.any(is_in)
    }

    /// The interface of node-1 by which a member's packets come in; `None` for that node itself.
    pub fn interface(&self, name: &str) -> Option<String> {
        match PODS_HERE.iter().position(|pod| *pod == name) {
            Some(_) if self.bridged => Some(BRIDGE.to_owned()),
            Some(number) => Some(format!("pod-{number}")),
            None if name == "node-1" => None,
            None => Some("eth0".to_owned()),
        }
    }
}

impl Default for Cast {
    fn default() -> Self {
        Self::new()
    }
}
