//! A cluster with the agent at work on node-1, fed by a directory of manifests.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::{Agent, nft};
use crate::cluster::{CLUSTER_CIDR, Cluster, Host, Pod};
use crate::objects::{self, Port};
use crate::traffic::{Protocol, Tally, ask, ask_many};
use crate::wait::eventually;

/// For what must come: much longer than it takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// For what must not come: nothing in a namespace takes this long.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A cluster, the agent on its node-1, and the manifests that it reads.
#[derive(Debug)]
pub struct World {
    /// The agent.
    pub agent: Agent,
    /// The cluster.
    pub cluster: Cluster,
    /// The directory that the agent reads.
    pub manifests: TempDir,
}

impl World {
    /// Starts the agent with these objects and waits until it is in sync. `args` come after those that name the
    /// manifests and the node; [`World::DETECT_PODS`] is most often among them.
    pub fn start(cluster: Cluster, objects: &[Value], args: &[&str]) -> Self {
        let manifests = TempDir::new().expect("the directory for temporary files can be written");
        write(&manifests, objects);
        Self::resume(cluster, manifests, args)
    }

    /// The arguments that make the agent know the pods' addresses.
    pub const DETECT_PODS: [&str; 2] = ["--cluster-cidr", CLUSTER_CIDR];

    /// Gives the agent other objects. It takes them a moment later.
    pub fn write(&self, objects: &[Value]) {
        write(&self.manifests, objects);
    }

    /// Ends the agent and starts another one with the same objects.
    #[must_use]
    pub fn restart(self, args: &[&str]) -> Self {
        let Self {
            agent,
            cluster,
            manifests,
        } = self;
        agent.terminate();
        Self::resume(cluster, manifests, args)
    }

    /// Starts an agent in a cluster where one was before.
    #[must_use]
    pub fn resume(cluster: Cluster, manifests: TempDir, args: &[&str]) -> Self {
        let agent = start_agent(&cluster.node1.host, &manifests, args);
        Self {
            agent,
            cluster,
            manifests,
        }
    }

    /// Kills the agent and takes all rules away: what else there is in the kernel is left alone.
    ///
    /// # Panics
    /// If the agent does not end, or a rule stays.
    pub fn leave_without_rules(&mut self) {
        let agent = &mut self.agent;
        agent.signal(Signal::SIGKILL);
        eventually("it has ended", PATIENCE, || agent.exited().is_some());
        let node = &self.node().netns;
        nft(node, &["flush", "ruleset"], "");
        assert_eq!(nft(node, &["list", "tables"], ""), "");
    }

    /// The node that the agent is on.
    pub fn node(&self) -> &Host {
        &self.cluster.node1.host
    }
}

/// Starts an agent on a node, fed by a directory of manifests, and waits until it is in sync.
pub fn start_agent(node: &Host, manifests: &TempDir, args: &[&str]) -> Agent {
    let directory = manifests.path().to_str().expect("the path is UTF-8");
    let own = [
        "-v4",
        "--hostname-override",
        &node.name,
        "--manifests",
        directory,
    ];
    let agent = Agent::start(&node.netns, &[&own, args].concat());
    agent.wait_for_log("in sync", PATIENCE);
    agent
}

/// Puts objects into a directory of manifests, in one step.
///
/// # Panics
/// If the directory cannot be written.
pub fn write(manifests: &TempDir, objects: &[Value]) {
    // Written beside and moved: the agent never sees half of it.
    let beside = manifests.path().join("objects.tmp");
    fs::write(&beside, objects::list(objects)).expect("the directory is ours");
    fs::rename(&beside, manifests.path().join("objects.json")).expect("the directory is ours");
}

/// A Service with TCP port 80 at an IPv4 address, and the slice of its endpoints: pods and their nodes' names.
///
/// # Panics
/// If the address is none, or without a pod.
pub fn http(name: &str, ip: &str, pods: &[(&Pod, &str)]) -> [Value; 2] {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|(pod, node)| (pod.host.v4, *node))
        .collect();
    let ip = ip.parse().expect("an IP address");
    [
        objects::service(name, &[ip], &[Port::HTTP]),
        objects::slice(name, &[Port::HTTP], &endpoints),
    ]
}

/// Asks many times; every one of `pods` must answer, nobody else, and all must see `source`.
#[track_caller]
pub fn expect_answers(
    from: &Host,
    protocol: Protocol,
    to: SocketAddr,
    pods: &[&Pod],
    source: IpAddr,
) {
    // With 40 questions one of two or three pods is missed once in three million runs.
    let tally = ask_many(&from.netns, protocol, to, PATIENCE, 40);
    let what = format!("{} → {to} {protocol}: {tally:?}", from.name);
    let mut expected: Vec<&str> = pods.iter().map(|pod| pod.host.name.as_str()).collect();
    expected.sort_unstable();
    assert!(tally.failures.is_empty(), "{what}");
    assert!(tally.servers.keys().eq(expected), "{what}");
    assert_eq!(tally.seen, [source].into(), "{what}");
}

/// Waits until these pods and no others answer. For what follows a change, which the agent takes a moment for.
#[track_caller]
pub fn wait_for_answers(from: &Host, protocol: Protocol, to: SocketAddr, pods: &[&Pod]) {
    let mut expected: Vec<&str> = pods.iter().map(|pod| pod.host.name.as_str()).collect();
    expected.sort_unstable();
    let what = format!(
        "{} → {to} {protocol} is answered by {expected:?}",
        from.name
    );
    eventually(&what, PATIENCE, || {
        let Tally {
            servers, failures, ..
        } = ask_many(&from.netns, protocol, to, SILENCE, 40);
        failures.is_empty() && servers.keys().eq(&expected)
    });
}

/// Asks until there is this failure.
#[track_caller]
pub fn wait_for_failure(
    from: &Host,
    protocol: Protocol,
    to: SocketAddr,
    failure: crate::traffic::Failure,
) {
    let what = format!("{} → {to} {protocol}: {failure}", from.name);
    eventually(&what, PATIENCE, || {
        ask(&from.netns, protocol, to, SILENCE).is_err_and(|found| found == failure)
    });
}
