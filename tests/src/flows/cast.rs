//! Who takes part in every scene: pods on the nodes, the nodes, and a client outside.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster::{Cluster, Host, Pod};
use crate::netns::link;
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
    /// Answers on node-1 itself, under the node's name.
    _on_host: EchoServer,
}

/// Pods by name, on node-1 and on node-2. The first only asks.
const PODS: [&str; 5] = ["pod", "here", "here2", "there", "there2"];

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
        Self {
            pods: pods.into(),
            node_addresses: [node.v4, node.v6].into(),
            pod_elsewhere: cluster.pod_elsewhere("pod-3"),
            _on_host: on_host,
            cluster,
        }
    }

    /// Whether a member is on the node under test, or is that node.
    pub fn is_here(name: &str) -> bool {
        ["pod", "here", "here2", "node-1"].contains(&name)
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

    /// Gives node-1 one more address, which the network knows.
    ///
    /// # Panics
    /// If it has it already.
    pub fn add_node_address(&mut self, address: IpAddr) {
        let node = &self.cluster.node1.host;
        link::add_address(&node.netns, link::LEAF_DEVICE, address.into())
            .expect("node-1 does not have it yet");
        let gateway = if address.is_ipv4() { node.v4 } else { node.v6 };
        link::add_route(&self.cluster.fabric, address.into(), gateway)
            .expect("the fabric reaches node-1");
        self.node_addresses.insert(address);
    }

    /// The interface of node-1 by which a member's packets come in; `None` for that node itself.
    pub fn interface(&self, name: &str) -> Option<String> {
        let pods = ["pod", "here", "here2"];
        match pods.iter().position(|pod| *pod == name) {
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
