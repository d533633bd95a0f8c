//! `cargo xtask bench`: how fast the agent is, measured on the tests' API server and the real kernel.
//!
//! Speed is checked here and never in tests. The agent runs in a network namespace of its own; one endpoint of
//! one Service changes at a time, and the time is taken from the API server's commit until the kernel's rules
//! have a new generation.

mod conntrack;
mod traffic;
mod workload;

use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets};
use proxyd_tests::agent::Agent;
use proxyd_tests::apiserver::{ApiServer, Options};
use proxyd_tests::generation::Generation;
use proxyd_tests::netns::Netns;

use crate::programs;
use crate::tools;
use workload::Workload;

/// How long the agent may take to be in sync.
const SYNC_PATIENCE: Duration = Duration::from_secs(120);

/// How long one change may take.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// How often the kernel is asked whether a change has arrived: the error of the figures.
const POLL_INTERVAL: Duration = Duration::from_micros(20);

/// What is measured.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,

    /// Clusters to measure: Services × endpoints of each.
    #[arg(default_values = ["1000x10", "10000x5", "10000x10"], value_name = "SERVICESxENDPOINTS")]
    clusters: Vec<Workload>,

    /// How many changes to time in each cluster.
    #[arg(long, default_value_t = 500)]
    changes: usize,
}

/// What is measured instead of clusters, when asked for.
#[derive(clap::Subcommand)]
enum Other {
    /// Rule changes beside a full connection tracking table (raises nf_conntrack_max of the machine meanwhile).
    Conntrack(conntrack::Args),
    /// What connections through a Service cost, compared with the same ones to the pod.
    Traffic(traffic::Args),
}

/// Builds the agent, measures each cluster and prints a table.
pub(crate) fn run(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) {
        // The API server runs in this process, and would be slower than what it measures.
        let again = [
            "run",
            "--release",
            "--quiet",
            "--locked",
            "--package",
            "xtask",
            "--",
        ];
        return tools::run(tools::cargo(&again).args(std::env::args_os().skip(1)));
    }
    programs::install_missing()?;
    tools::run(&mut tools::cargo(&[
        "build",
        "--release",
        "--locked",
        "-p",
        "proxyd",
    ]))?;
    let binary = tools::target_dir()?.join("release/proxyd");
    match &args.other {
        Some(Other::Conntrack(args)) => return conntrack::run(args, &binary),
        Some(Other::Traffic(args)) => return traffic::run(args, &binary),
        None => (),
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "Services × endpoints",
        "start to in sync",
        "resident",
        "change: API to kernel p50 / p90 / p99",
        "event to kernel p50 / p99",
        "restart",
        "dry run of one YAML file",
        "nft -c",
    ]);
    for cluster in &args.clusters {
        println!("measuring {cluster} …");
        table.add_row(measure(*cluster, args.changes, &binary)?);
    }
    println!("{table}");
    Ok(())
}

/// One row of the table.
fn measure(cluster: Workload, changes: usize, binary: &Path) -> Result<[String; 8]> {
    let node = Netns::new().context("making a network namespace needs root")?;
    let listener = node.enter(|| TcpListener::bind("127.0.0.1:0"))?;
    let server = ApiServer::serve_on(listener, Options::default());
    for number in 0..cluster.services {
        server.create(&cluster.service(number));
        server.create(&cluster.slice(number, 0));
    }
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig())?;
    let args = [
        "-v4",
        "--hostname-override",
        "node-1",
        "--kubeconfig",
        path(&kubeconfig)?,
    ];
    let start = || {
        let started = Instant::now();
        let agent = Agent::start_binary(path(binary)?, &node, &args);
        agent.wait_for_log("in sync", SYNC_PATIENCE);
        anyhow::Ok((agent, started.elapsed()))
    };

    let (agent, first_start) = start()?;
    let mut latencies = change_latencies(cluster, changes, &node, &server)?;
    let resident_kib = resident_kib(agent.pid())?;
    let (_, log) = agent.terminate();
    let mut events = event_latencies(&log);
    ensure!(!events.is_empty(), "the agent logged no change");
    let (agent, restart) = start()?;
    agent.terminate();
    let (dry_run, check) = dry_run(cluster, directory.path(), binary)?;
    Ok([
        cluster.to_string(),
        format!("{} ms", first_start.as_millis()),
        format!("{:.1} MiB", resident_kib as f64 / 1024.0),
        format!(
            "{} / {} / {} µs",
            percentile(&mut latencies, 50).as_micros(),
            percentile(&mut latencies, 90).as_micros(),
            percentile(&mut latencies, 99).as_micros()
        ),
        format!(
            "{} / {} µs",
            percentile(&mut events, 50).as_micros(),
            percentile(&mut events, 99).as_micros()
        ),
        format!("{} ms", restart.as_millis()),
        format!("{:.2} s", dry_run.as_secs_f64()),
        format!("{:.2} s", check.as_secs_f64()),
    ])
}

/// Replaces one endpoint of one Service at a time; each is timed from the API server's commit to the kernel's.
fn change_latencies(
    cluster: Workload,
    changes: usize,
    node: &Netns,
    server: &ApiServer,
) -> Result<Vec<Duration>> {
    let generation = Generation::of(node)?;
    (0..changes)
        .map(|round| {
            // A stride that is prime to the number of Services visits them all.
            let number = round * 7919 % cluster.services;
            let before = generation.get()?;
            let started = Instant::now();
            server.update(&cluster.slice(number, 1 + round / cluster.services));
            while generation.get()? == before {
                ensure!(
                    started.elapsed() < CHANGE_PATIENCE,
                    "change {round} did not reach the kernel"
                );
                thread::sleep(POLL_INTERVAL);
            }
            Ok(started.elapsed())
        })
        .collect()
}

/// The agent's own figures: from a watch event's arrival to the kernel's answer.
fn event_latencies(log: &[String]) -> Vec<Duration> {
    let microseconds = |line: &String| {
        let (before, _) = line.split_once(" µs after the event")?;
        before.rsplit(' ').next()?.parse().ok()
    };
    let changes = log
        .iter()
        .filter(|line| !line.contains("reading everything back"));
    changes
        .filter_map(microseconds)
        .map(Duration::from_micros)
        .collect()
}

/// How long the dry run of one YAML file takes, and how long `nft` takes to check what it printed.
fn dry_run(cluster: Workload, directory: &Path, binary: &Path) -> Result<(Duration, Duration)> {
    let manifest = directory.join("cluster.yaml");
    std::fs::write(&manifest, cluster.yaml())?;
    let apart = Netns::new()?;
    let started = Instant::now();
    let args = [
        "--dry-run",
        "--hostname-override",
        "node-1",
        "--manifests",
        path(&manifest)?,
    ];
    let output = apart.run(path(binary)?, &args, "")?;
    let dry_run = started.elapsed();
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let started = Instant::now();
    let check = apart.run(
        "nft",
        &["-c", "-f", "-"],
        std::str::from_utf8(&output.stdout)?,
    )?;
    ensure!(
        check.status.success(),
        "nft -c: {}",
        String::from_utf8_lossy(&check.stderr)
    );
    Ok((dry_run, started.elapsed()))
}

/// The resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no VmRSS")?;
    Ok(number.parse()?)
}

fn percentile(durations: &mut [Duration], percent: usize) -> Duration {
    durations.sort_unstable();
    durations[(durations.len() - 1) * percent / 100]
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
