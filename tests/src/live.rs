//! A cluster with an API server at node-1's loopback address, for agents that watch it.

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use crate::agent::{Agent, nft, run_once};
use crate::apiserver::{ApiServer, Options};
use crate::cluster::{CLUSTER_CIDR, Cluster, Host};
use crate::netns::Netns;
use crate::sockets::Sockets;
use crate::tables::Table;
use crate::world::PATIENCE;

/// The two families as `nft` names them.
pub const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// How many tracked connections are shown where a test failed.
const MOST_TRACKED: usize = 50;

/// A cluster, and the API server that agents on its node-1 watch.
#[derive(Debug)]
pub struct Live {
    /// The cluster.
    pub cluster: Cluster,
    /// The API server.
    pub server: ApiServer,
    /// The cgroup and the pins of agents with `--backend ebpf`; none: they have rules only.
    pub programs: Option<Sockets>,
    kubeconfig: String,
    _directory: TempDir,
}

impl Live {
    /// Starts the server, which knows the Node.
    pub fn new(cluster: Cluster, options: Options) -> Self {
        let listener = cluster.node1.enter(|| TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("the namespace has a loopback interface");
        let server = ApiServer::serve_on(listener, options);
        let Host { name, v4, v6, .. } = &cluster.node1.host;
        let address = |ip: &IpAddr| json!({ "type": "InternalIP", "address": ip });
        server.create(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "status": { "addresses": [address(v4), address(v6)] },
        }));
        let directory = TempDir::new().expect("the directory for temporary files can be written");
        let path = directory.path().join("kubeconfig");
        fs::write(&path, server.kubeconfig()).expect("the directory is ours");
        Self {
            cluster,
            server,
            programs: None,
            kubeconfig: path.to_str().expect("the path is UTF-8").to_owned(),
            _directory: directory,
        }
    }

    /// The namespace of the node that agents run on.
    pub fn node(&self) -> &Netns {
        &self.cluster.node1.host.netns
    }

    /// The flags of an agent here.
    pub fn args(&self) -> Vec<&str> {
        let args = [
            "-v4",
            "--hostname-override",
            "node-1",
            "--kubeconfig",
            &self.kubeconfig,
            "--cluster-cidr",
            CLUSTER_CIDR,
        ];
        let programs = self.programs.iter().flat_map(Sockets::args);
        args.into_iter().chain(programs).collect()
    }

    /// Starts an agent, and waits until it is in sync.
    pub fn start_in_sync(&self) -> Agent {
        let agent = Agent::start(self.node(), &self.args());
        agent.wait_for_log("in sync", 3 * PATIENCE);
        agent
    }

    /// The server listens again after [`ApiServer::stop`].
    pub fn resume_server(&self) {
        let address = self.server.address();
        let listener = self.cluster.node1.enter(|| TcpListener::bind(address));
        self.server
            .resume_on(listener.expect("the port is still free"));
    }

    /// The tables of both families as they are.
    pub fn tables(&self) -> [Table; 2] {
        FAMILIES.map(|family| Table::of(self.node(), family))
    }

    /// The tables as they would be if nothing had ever gone wrong: what a dry run prints, loaded elsewhere.
    ///
    /// # Panics
    /// If the dry run fails, or nft does not load it.
    pub fn planned_tables(&self) -> [Table; 2] {
        let dry_run = run_once(self.node(), &[&self.args()[..], &["--dry-run"]].concat());
        assert!(dry_run.status.success(), "{dry_run:?}");
        let text = String::from_utf8(dry_run.stdout).expect("the rules are UTF-8");
        let elsewhere = Netns::new().expect("root may make namespaces");
        nft(&elsewhere, &["-f", "-"], &text);
        FAMILIES.map(|family| Table::of(&elsewhere, family))
    }

    /// Compares what is there with what a dry run comes to: the elements but for endpoints' places and remembered
    /// clients, and the rules of every chain that is needed. (Chains that were needed once stay.)
    ///
    /// # Panics
    /// If they are not the same.
    #[track_caller]
    pub fn expect_planned_tables(&self) {
        for (is, planned) in self.tables().iter().zip(&self.planned_tables()) {
            let [mut there, mut wanted] = [is, planned].map(Table::without_places);
            // nft cannot load rules that look a client up by another front end's key, or remember it so: they are
            // comments in the text, as is what leads to chains of nothing else.
            for elements in there.values_mut() {
                elements.retain(|element| !element.contains(": goto remember-node-port-"));
            }
            for elements in [&mut there, &mut wanted] {
                elements.remove("affinity");
            }
            assert_eq!(there, wanted);
            for (name, rules) in &planned.chains {
                let mut there = is.chains.get(name).cloned();
                if name.ends_with("-shared") {
                    let there = there.as_mut().expect("the chain is there");
                    there.retain(|rule| !rule.ends_with("map @affinity"));
                }
                assert_eq!(there.as_ref(), Some(rules), "chain {name}");
            }
            assert_eq!(is.skeleton(), planned.skeleton());
        }
    }
}

impl Drop for Live {
    /// Says what became of connections, where a test failed.
    fn drop(&mut self) {
        if thread::panicking() {
            let tracked = self
                .node()
                .enter(|| fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
            for line in tracked.unwrap_or_default().lines().take(MOST_TRACKED) {
                eprintln!("tracked at node-1: {line}");
            }
        }
    }
}
