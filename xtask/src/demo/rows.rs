//! The rows of the demo's table: a question that someone asks, and what must come of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::traffic::{Protocol, Tally, ask_many};

use super::examples::Examples;

/// How long one connection may take; it takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// Who asks.
    pub(crate) from: &'a Host,
    /// The address that is asked.
    pub(crate) to: SocketAddr,
    /// How.
    pub(crate) protocol: Protocol,
    /// What kind of address that is.
    kind: &'static str,
    /// The servers that must answer, each at least once, and nobody else.
    servers: BTreeSet<String>,
    /// The address that the servers must see.
    source: Source,
}

/// What a server sees.
#[derive(Debug)]
enum Source {
    Kept(IpAddr),
    Masqueraded(IpAddr),
}

/// All rows, in the order of the table.
///
/// # Errors
/// If the examples lack what a row is about.
pub(crate) fn all<'a>(
    cluster: &'a Cluster,
    pods: &'a [Pod],
    examples: &Examples,
) -> Result<Vec<Row<'a>>> {
    let client = &cluster.client;
    let node = &cluster.node1.host;
    // Pods of the agent's node, and not of the Service that they ask: a pod that reaches itself is masqueraded.
    let redis = host(pods, "redis-0")?;
    let whoami = examples.pods_on(&node.name, "whoami").into_iter().next();
    let whoami = host(pods, &whoami.context("no whoami pod on the agent's node")?)?;
    let redis_1 = host(pods, "redis-1")?;

    let cluster_ip = |from: &'a Host, service: &str, ipv6, protocol, kind| {
        Ok::<_, anyhow::Error>(Row {
            from,
            to: examples.cluster_ip(service, ipv6)?,
            protocol,
            kind,
            servers: examples.pods_of(service),
            source: Source::Kept(if ipv6 { from.v6 } else { from.v4 }),
        })
    };
    Ok(vec![
        cluster_ip(
            redis,
            "whoami",
            false,
            Protocol::Tcp,
            "ClusterIP of whoami, a Deployment of 2",
        )?,
        cluster_ip(
            redis,
            "whoami",
            true,
            Protocol::Tcp,
            "ClusterIP of whoami, IPv6",
        )?,
        Row {
            from: client,
            to: SocketAddr::new(node.v4, examples.node_port("whoami")?),
            protocol: Protocol::Tcp,
            kind: "NodePort of whoami, at node-1",
            servers: examples.pods_of("whoami"),
            source: Source::Masqueraded(node.v4),
        },
        Row {
            from: client,
            to: examples.load_balancer("shop")?,
            protocol: Protocol::Tcp,
            kind: "load balancer of shop, externalTrafficPolicy: Local:\nonly the pods here, and they see the client",
            servers: examples.pods_on(&node.name, "shop"),
            source: Source::Kept(client.v4),
        },
        Row {
            from: whoami,
            to: examples.load_balancer("shop")?,
            protocol: Protocol::Tcp,
            kind: "the same from a pod: all pods",
            servers: examples.pods_of("shop"),
            source: Source::Kept(whoami.v4),
        },
        cluster_ip(
            whoami,
            "kube-dns",
            false,
            Protocol::Udp,
            "ClusterIP of kube-dns",
        )?,
        cluster_ip(
            whoami,
            "kube-dns",
            false,
            Protocol::Tcp,
            "ClusterIP of kube-dns, the same port",
        )?,
        cluster_ip(
            whoami,
            "redis-client",
            false,
            Protocol::Tcp,
            "ClusterIP of redis-client, a StatefulSet of 3",
        )?,
        Row {
            from: whoami,
            to: SocketAddr::new(
                redis_1.v4,
                examples.cluster_ip("redis-client", false)?.port(),
            ),
            protocol: Protocol::Tcp,
            kind: "redis-1.redis.default.svc, headless Service:\nno rules, DNS answers with the pods' addresses",
            servers: [redis_1.name.clone()].into(),
            source: Source::Kept(whoami.v4),
        },
    ])
}

impl Row<'_> {
    /// Makes the connections.
    pub(crate) fn ask(&self, count: usize) -> Tally {
        ask_many(&self.from.netns, self.protocol, self.to, PATIENCE, count)
    }

    /// Whether everyone who must answer did, nobody else did, and all saw the right address.
    pub(crate) fn is_as_expected(&self, tally: &Tally) -> bool {
        let (Source::Kept(source) | Source::Masqueraded(source)) = self.source;
        tally.failures.is_empty()
            && tally.servers.keys().eq(&self.servers)
            && tally.seen == [source].into()
    }

    /// The row's texts, the verdict last.
    pub(crate) fn cells(&self, tally: &Tally, verdict: &str) -> [String; 5] {
        let Tally {
            servers,
            seen,
            failures,
        } = tally;
        let answers = servers
            .iter()
            .map(|(server, count)| format!("{count:>3} × {server}"));
        let failures = failures
            .iter()
            .map(|(failure, count)| format!("{count:>3} × {failure}"));
        let answered: Vec<_> = answers.chain(failures).collect();
        let seen: Vec<_> = seen
            .iter()
            .map(|address| format!("{address}\n{}", self.meaning(*address)))
            .collect();
        [
            self.from.name.clone(),
            format!("{} {}\n{}", self.to, self.protocol, self.kind),
            answered.join("\n"),
            seen.join("\n"),
            verdict.to_owned(),
        ]
    }

    fn meaning(&self, seen: IpAddr) -> &'static str {
        match self.source {
            _ if seen == self.from.v4 || seen == self.from.v6 => "kept",
            Source::Masqueraded(node) if seen == node => "masqueraded",
            _ => "neither kept nor masqueraded",
        }
    }
}

fn host<'a>(pods: &'a [Pod], name: &str) -> Result<&'a Host> {
    let pod = pods.iter().find(|pod| pod.host.name == name);
    Ok(&pod
        .with_context(|| format!("no pod {name} in the examples"))?
        .host)
}
