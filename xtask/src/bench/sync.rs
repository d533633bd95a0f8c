//! `cargo xtask bench sync`: how soon rules follow the API server, and what that costs.
//!
//! Clusters are made up, on the tests' API server or a real one; the proxy runs in a network namespace of its own, with
//! the real kernel. With a peer, that one does the same work afterwards. Everything is measured from outside and the
//! same way for both: `/healthz`, the generation number of the kernel's rules, elements of the map of Services, and
//! what the kernel says of the process. What each figure means stands where it is taken, in [`super::measure`] and
//! [`super::lag`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::cluster::Cluster;
use super::dry_run;
use super::lag::{FEWEST_SERVICES, Marks};
use super::measure::{Amounts, measure};
use super::report::{Report, Results, table};
use super::workload::Workload;

/// How long a peer must have been silent before a change: kube-proxy deletes old chains a second after a change.
const PEER_SETTLE: Duration = Duration::from_secs(2);

/// A load from which on the machine is too busy to measure on.
const BUSY: f64 = 0.5;

/// What is measured, and how much of it.
#[derive(clap::Args)]
#[group(id = "sync")]
pub(super) struct Args {
    /// Clusters to measure: Services × endpoints of each.
    #[arg(default_values = ["1000x10", "10000x5", "10000x10"], value_name = "SERVICESxENDPOINTS")]
    clusters: Vec<Workload>,

    /// How often to start and to restart; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How many changes to time, one at a time.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,

    /// The same for the peer, which may take seconds for each.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    peer_changes: u32,

    /// How many changes to make as fast as the server takes them.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    burst: u32,

    /// How many changes to make in a second, for --seconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    rate: u32,

    /// For how long to make --rate changes in a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// For how many seconds to watch what an idle proxy uses.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,

    /// How many Services to make and delete again, three times.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5000))]
    churn: u32,

    /// A file to write the results to, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// A kubeconfig of a real API server to make the clusters on, in namespaces proxyd-bench-*; they are removed again.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// A kube-proxy that does the same work, in mode nftables.
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<PathBuf>,

    /// Has proxyd itself do the same work again, with --backend ebpf.
    #[arg(long, conflicts_with = "peer")]
    ebpf: bool,
}

/// Measures each cluster, prints a table for each, and writes the file.
pub(super) fn run(args: &Args, binary: &Path) -> Result<()> {
    let peer = args.peer.as_deref().filter(|peer| {
        let is_there = peer.is_file();
        if !is_there {
            println!("NOT RUN: the peer: there is no {}", peer.display());
        }
        is_there
    });
    let mut report = Report::new()?;
    if report.load_before > BUSY {
        println!(
            "this machine is busy (load {}): all figures will be worse than they could be",
            report.load_before
        );
    }
    for cluster in &args.clusters {
        ensure!(
            cluster.services >= FEWEST_SERVICES,
            "at least {FEWEST_SERVICES} Services, please"
        );
        let results = one(*cluster, args, (binary, peer))?;
        println!("{}", table(&results));
        report.clusters.push(results);
        if let Some(file) = &args.json {
            // After each cluster: those that come may take long, or fail.
            report.write(file)?;
        }
    }
    Ok(())
}

fn one(workload: Workload, args: &Args, (binary, peer): (&Path, Option<&Path>)) -> Result<Results> {
    let amounts = Amounts {
        rounds: args.rounds as usize,
        changes: args.changes as usize,
        settle: Duration::ZERO,
        marks: Marks::Endpoint,
        burst: args.burst as usize,
        rate: args.rate,
        seconds: args.seconds,
        idle: Duration::from_secs(args.idle.into()),
        churn: args.churn as usize,
        repairs: true,
        by_programs: false,
    };
    let of_peer = if args.ebpf {
        Amounts {
            repairs: false,
            by_programs: true,
            ..amounts.clone()
        }
    } else {
        Amounts {
            changes: args.peer_changes as usize,
            settle: PEER_SETTLE,
            repairs: false,
            marks: Marks::Service,
            ..amounts.clone()
        }
    };
    let (peer, peer_name) = if args.ebpf {
        (Some(binary), Some("proxyd --backend ebpf".to_owned()))
    } else {
        let name = peer.and_then(Path::file_name);
        (peer, name.map(|name| name.to_string_lossy().into_owned()))
    };
    let figures = |binary: &Path, amounts: &Amounts| {
        println!("measuring {} with {workload} …", binary.display());
        let mut cluster = Cluster::make(workload, args.kubeconfig.as_deref())?;
        measure(binary, &mut cluster, amounts)
    };
    Ok(Results {
        cluster: workload,
        proxyd: figures(binary, &amounts)?,
        peer_name,
        peer: peer.map(|peer| figures(peer, &of_peer)).transpose()?,
        dry_run: match args.kubeconfig {
            Some(_) => None,
            None => Some(dry_run::measure(workload, binary)?),
        },
    })
}
