//! `cargo xtask bench conntrack`: what a full connection tracking table costs the agent.
//!
//! In a network namespace of its own the agent has Services whose endpoints change one at a time: TCP ones, for which it
//! looks at no flow; UDP ones with an empty table; UDP ones with their flows in it, made by netlink. The first row is
//! what the others are to be compared with. More memory than allowed is a failure.
//!
//! The kernel's limit of flows is the machine's, not the namespace's: it is raised if it has to be, and put back
//! on every way out.

mod fill;
mod limit;

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
use proxyd_tests::wait::eventually;
use serde_json::Value;

use super::process::memory_mib;
use super::workload::Workload;
use super::{CHANGE_PATIENCE, POLL_INTERVAL, path, percentile};

/// The Services, and the endpoints of each.
const CLUSTER: Workload = Workload {
    services: 1_000,
    endpoints: 10,
};

/// The time from one change to the next: so slow that all of them take longer than several walks through the table.
const PACE: Duration = Duration::from_millis(10);

/// The most that the agent may ever have resident, however many flows there are.
const MAX_PEAK_MIB: f64 = 64.0;

/// How long the agent may take to be in sync.
const SYNC_PATIENCE: Duration = Duration::from_secs(120);

/// How long the agent may take for its last walk.
const WALK_PATIENCE: Duration = Duration::from_secs(60);

/// How much is measured.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How many UDP flows are in the full table.
    #[arg(long, default_value_t = 1_000_000)]
    flows: u32,

    /// How many changes to time with each table.
    #[arg(long, default_value_t = 2_000)]
    changes: usize,
}

/// Measures with an empty and with a full table, and prints both.
pub(super) fn run(args: &Args, binary: &Path) -> Result<()> {
    let (limit, flows) = limit::Limit::raise(args.flows)?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "Services, flows",
        "resident: in sync → after (peak)",
        "change: API to kernel p50 / p90 / p99 / worst",
        "event to kernel p50 / p99",
        "walks",
        "one walk: median / worst",
        "stale flows deleted",
    ]);
    for (protocol, flows) in [("TCP", 0), ("UDP", 0), ("UDP", flows)] {
        println!("measuring {protocol} Services with {flows} flows …");
        table.add_row(measure(protocol, flows, args.changes, binary)?);
    }
    println!("{table}");
    limit.put_back()
}

/// One row of the table.
fn measure(protocol: &str, flows: u32, changes: usize, binary: &Path) -> Result<[String; 7]> {
    let node = Netns::new().context("making a network namespace needs root")?;
    let listener = node.enter(|| TcpListener::bind("127.0.0.1:0"))?;
    let server = ApiServer::serve_on(listener, Options::default());
    for number in 0..CLUSTER.services {
        server.create(&of(protocol, CLUSTER.service(number)));
        server.create(&of(protocol, CLUSTER.slice(number, 0)));
    }
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig())?;
    node.enter(|| fill::fill(CLUSTER, flows))?;
    let args = [
        "-v4",
        "--hostname-override",
        "node-1",
        "--kubeconfig",
        path(&kubeconfig)?,
    ];
    let agent = Agent::start_binary(path(binary)?, &node, &args);
    agent.wait_for_log("in sync", SYNC_PATIENCE);
    let before = memory_mib(agent.pid(), "VmRSS:")?;
    let mut latencies = latencies(protocol, changes, &node, &server)?;
    if protocol == "UDP" {
        // The last change has its walk too.
        let before = walks(&agent.log()).len();
        eventually("a walk after the last change", WALK_PATIENCE, || {
            walks(&agent.log()).len() > before
        });
    }
    let after = memory_mib(agent.pid(), "VmRSS:")?;
    let peak = memory_mib(agent.pid(), "VmHWM:")?;
    ensure!(
        peak < MAX_PEAK_MIB,
        "{flows} flows of {protocol} Services: a peak of {peak:.1} MiB, and {MAX_PEAK_MIB} are allowed"
    );
    let (_, log) = agent.terminate();
    let mut events = event_latencies(&log);
    ensure!(!events.is_empty(), "the agent logged no change");
    let walks = walks(&log);
    let mut durations: Vec<_> = walks.iter().map(|walk| walk.duration).collect();
    Ok([
        format!("{protocol}, {flows}"),
        format!("{before:.1} → {after:.1} ({peak:.1}) MiB"),
        format!(
            "{} / {} / {} / {} µs",
            percentile(&mut latencies, 50).as_micros(),
            percentile(&mut latencies, 90).as_micros(),
            percentile(&mut latencies, 99).as_micros(),
            percentile(&mut latencies, 100).as_micros()
        ),
        format!(
            "{} / {} µs",
            percentile(&mut events, 50).as_micros(),
            percentile(&mut events, 99).as_micros()
        ),
        walks.len().to_string(),
        if durations.is_empty() {
            "–".to_owned()
        } else {
            format!(
                "{} / {} ms",
                percentile(&mut durations, 50).as_millis(),
                percentile(&mut durations, 100).as_millis()
            )
        },
        walks
            .iter()
            .map(|walk| walk.deleted)
            .sum::<u64>()
            .to_string(),
    ])
}

/// Replaces one endpoint of one Service at a time; each is timed from the API server's commit to the kernel's.
fn latencies(
    protocol: &str,
    changes: usize,
    node: &Netns,
    server: &ApiServer,
) -> Result<Vec<Duration>> {
    let generation = Generation::of(node)?;
    (0..changes)
        .map(|round| {
            let number = round % CLUSTER.services;
            let version = 1 + round / CLUSTER.services;
            let slice = of(protocol, CLUSTER.slice(number, version));
            let before = generation.get()?;
            let started = Instant::now();
            server.update(&slice);
            while generation.get()? == before {
                ensure!(
                    started.elapsed() < CHANGE_PATIENCE,
                    "change {round} did not reach the kernel"
                );
                thread::sleep(POLL_INTERVAL);
            }
            let took = started.elapsed();
            thread::sleep(PACE.saturating_sub(took));
            Ok(took)
        })
        .collect()
}

/// A Service or a slice with its port on another protocol.
fn of(protocol: &str, mut object: Value) -> Value {
    for place in ["/spec/ports/0/protocol", "/ports/0/protocol"] {
        if let Some(value) = object.pointer_mut(place) {
            *value = protocol.into();
        }
    }
    object
}

/// A walk through the table, as the agent logged it.
struct Walk {
    duration: Duration,
    deleted: u64,
}

fn walks(log: &[String]) -> Vec<Walk> {
    let walk = |line: &String| {
        let (_, line) = line.split_once("tracked flows: deleted ")?;
        let duration = line.strip_suffix(" µs")?.rsplit(' ').next()?;
        Some(Walk {
            duration: Duration::from_micros(duration.parse().ok()?),
            deleted: line.split(' ').next()?.parse().ok()?,
        })
    };
    log.iter().filter_map(walk).collect()
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
