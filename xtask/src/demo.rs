//! `cargo xtask demo`: shows what the agent does, in a minute, with no cluster.
//!
//! Makes a small cluster out of network namespaces, with the pods that `deploy/examples` names, runs the agent on one of
//! its nodes with `--manifests deploy/examples`, makes connections, and prints who answered whom. Fails if anything is not
//! as Kubernetes promises.
//!
//! Nothing is left behind, however it ends: the namespaces have no names, and the agent is killed with this process.

mod examples;
mod rows;

use std::env;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use proxyd_tests::agent::{Agent, BINARY_VARIABLE};
use proxyd_tests::cluster::{CLUSTER_CIDR, Cluster, Pod};
use proxyd_tests::netns::Netns;
use proxyd_tests::traffic::ask;
use proxyd_tests::wait;

use crate::programs;
use crate::tools::{self, cargo};
use examples::{Examples, PodSpec};
use rows::Row;

/// How long the agent may take from its start to its first rules.
const RULES_PATIENCE: Duration = Duration::from_secs(20);

/// How long one attempt waits while there may be no rules.
const ATTEMPT_PATIENCE: Duration = Duration::from_millis(500);

/// The demo's options.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many connections to make for each row of the table.
    // With fewer, one of three pods is missed by chance too often.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(30..))]
    connections: u16,
    /// Keep everything running after the table, to look around, until Enter is pressed.
    #[arg(long)]
    hold: bool,
}

/// Runs the demo; an error if it cannot run here or if a row is not as expected.
pub(crate) fn run(args: &Args) -> Result<()> {
    Netns::new().context("the demo makes network namespaces, which needs root: try `sudo`")?;
    programs::install_missing()?;
    let binary = build()?;
    let manifests = tools::root().join("deploy/examples");
    let examples = Examples::read(&manifests)?;

    let cluster = Cluster::new();
    let pods = make_pods(&cluster, &examples)?;
    let manifests = manifests.to_str().context("the path is not UTF-8")?;
    let mut agent = Agent::start_binary(
        &binary,
        &cluster.node1.host.netns,
        &[
            "--manifests",
            manifests,
            "--hostname-override",
            &cluster.node1.host.name,
            "--cluster-cidr",
            CLUSTER_CIDR,
        ],
    );
    let rows = rows::all(&cluster, &pods, &examples)?;
    wait_for_rules(&mut agent, &rows)?;

    println!("{}", introduction(&pods, args.connections));
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL).set_header([
        "who asks",
        "which address",
        "who answered",
        "the server saw",
        "",
    ]);
    let mut unexpected = 0;
    for row in &rows {
        let tally = row.ask(args.connections.into());
        let good = row.is_as_expected(&tally);
        unexpected += usize::from(!good);
        table.add_row(row.cells(&tally, if good { "ok" } else { "NOT AS EXPECTED" }));
    }
    println!("{table}");
    println!("{}", closing(&agent, args.hold));
    if args.hold {
        io::stdin().read_line(&mut String::new())?;
    }
    if unexpected > 0 {
        show_log(&agent);
        bail!("{unexpected} of {} rows are not as expected", rows.len());
    }
    Ok(())
}

/// Builds the agent, unless the caller has one already, and says where it is.
fn build() -> Result<String> {
    if let Ok(binary) = env::var(BINARY_VARIABLE) {
        return Ok(binary);
    }
    tools::run(&mut cargo(&["build", "--locked", "--package", "proxyd"]))?;
    let binary = tools::target_dir()?.join("debug/proxyd").into_os_string();
    binary.into_string().ok().context("the path is not UTF-8")
}

/// Makes the pods that the examples' EndpointSlices name, with their addresses, on their nodes.
fn make_pods(cluster: &Cluster, examples: &Examples) -> Result<Vec<Pod>> {
    let nodes = [&cluster.node1, &cluster.node2];
    let make = |(name, spec): (&String, &PodSpec)| {
        let node = nodes.iter().find(|node| node.host.name == spec.node);
        let node = node.with_context(|| format!("pod {name}: no node {}", spec.node))?;
        let addresses: Vec<_> = spec.addresses.iter().copied().collect();
        let pod = node.pod_at(name, &addresses);
        Ok(spec.ports.iter().fold(pod, |pod, port| pod.serving(*port)))
    };
    examples.pods.iter().map(make).collect()
}

/// Waits until every row gets an answer, as the first rules come in one piece for each family.
fn wait_for_rules(agent: &mut Agent, rows: &[Row<'_>]) -> Result<()> {
    let ready = wait::poll(RULES_PATIENCE, || {
        if let Some(status) = agent.exited() {
            return Some(Err(status));
        }
        let answers = |row: &Row<'_>| ask(&row.from.netns, row.protocol, row.to, ATTEMPT_PATIENCE);
        rows.iter()
            .all(|row| answers(row).is_ok())
            .then_some(Ok(()))
    });
    match ready {
        Some(Ok(())) => Ok(()),
        Some(Err(status)) => {
            show_log(agent);
            bail!("the agent ended: {status}");
        }
        // The table shows which rows have none.
        None => {
            eprintln!("no answer for every row within {RULES_PATIENCE:?}");
            Ok(())
        }
    }
}

fn introduction(pods: &[Pod], connections: u16) -> String {
    let pods: String = pods
        .iter()
        .map(|pod| {
            format!(
                "  {:<26} {:<12} {}\n",
                pod.host.name, pod.host.v4, pod.host.v6
            )
        })
        .collect();
    format!(
        "
A cluster of two nodes and a client outside, each a network namespace of this machine, with these pods:

{pods}
node-1 (192.168.0.2, pods 10.244.1.x) runs proxyd with `--manifests deploy/examples`; there is no API server. Each row
is {connections} connections (or datagrams) that pass node-1. Every server answers with its name and with the address that it saw.
"
    )
}

fn closing(agent: &Agent, hold: bool) -> String {
    let look = if hold {
        format!(
            "Look at the rules, from another shell, until you press Enter here:\n\n  \
             nsenter --net=/proc/{pid}/ns/net nft list table ip proxyd      (and: table ip6 proxyd)\n  \
             nsenter --net=/proc/{pid}/ns/net nft monitor                   (then edit deploy/examples)",
            pid = agent.pid()
        )
    } else {
        format!(
            "Look at the rules, in the node or (without root) as text:\n\n  \
             cargo xtask demo --hold\n  \
             cargo run -p proxyd -- --dry-run --manifests deploy/examples --hostname-override node-1 \\\n      \
             --cluster-cidr {CLUSTER_CIDR}"
        )
    };
    format!(
        "
kept         The server saw who asked.
masqueraded  The server saw node-1 in the client's place: its answer has to come back through node-1, where the address
             was translated, and not straight to the client, which does not know the pod.

{look}
"
    )
}

fn show_log(agent: &Agent) {
    for line in agent.log() {
        eprintln!("agent: {line}");
    }
}
