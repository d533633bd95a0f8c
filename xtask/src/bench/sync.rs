//! `cargo xtask bench sync`: how soon rules follow the API server, and what that costs.
//!
//! Clusters are made up, on the tests' API server or a real one; the proxy runs in a network namespace of its own, with
//! the real kernel. With a peer, that one does the same work afterwards. Everything is measured from outside and the
//! same way for all: `/healthz`, what the kernel holds of a Service ([`super::kernel`]), and what it says of the process;
//! with a real API server, also what that sent, and its process. What each figure means stands where it is taken, in
//! [`super::measure`] and [`super::lag`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::cluster::Cluster;
use super::dry_run;
use super::lag::FEWEST_SERVICES;
use super::measure::{Amounts, measure};
use super::peer::{self, PeerMode, Way};
use super::report::{Figures, Other, Report, Results, table};
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

    /// A kube-proxy that does the same work.
    #[arg(long, value_name = "PATH/kube-proxy")]
    peer: Option<PathBuf>,

    /// The modes in which it does; iptables with the nf_tables back end of that program.
    #[arg(long, value_name = "MODE,…", value_delimiter = ',', default_values = ["nftables"])]
    peer_mode: Vec<PeerMode>,

    /// Has proxyd itself do the same work again, with --backend ebpf.
    #[arg(long)]
    ebpf: bool,
}

/// Measures each cluster, prints a table for each, and writes the file.
pub(super) fn run(args: &Args, binary: &Path) -> Result<()> {
    let peers = match &args.peer {
        Some(peer) => peer::usable(peer, &args.peer_mode),
        None => Vec::new(),
    };
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
        let results = one(*cluster, args, binary, &peers)?;
        println!("{}", table(&results));
        report.clusters.push(results);
        if let Some(file) = &args.json {
            // After each cluster: those that come may take long, or fail.
            report.write(file)?;
        }
    }
    Ok(())
}

fn one(
    workload: Workload,
    args: &Args,
    binary: &Path,
    peers: &[(PathBuf, PeerMode)],
) -> Result<Results> {
    let figures = |binary: &Path, way| -> Result<Figures> {
        println!("measuring {} with {workload} …", name(binary, way));
        let mut cluster = Cluster::make(workload, args.kubeconfig.as_deref())?;
        measure(binary, &mut cluster, &amounts(args, way))
    };
    let proxyd = figures(binary, Way::Rules)?;
    let ebpf = args.ebpf.then_some((binary, Way::Programs));
    let peers = peers.iter().map(|(peer, mode)| (&**peer, Way::Peer(*mode)));
    let other = |(binary, way)| {
        anyhow::Ok(Other {
            name: name(binary, way),
            figures: figures(binary, way)?,
        })
    };
    Ok(Results {
        cluster: workload,
        proxyd,
        others: ebpf
            .into_iter()
            .chain(peers)
            .map(other)
            .collect::<Result<_>>()?,
        dry_run: match args.kubeconfig {
            Some(_) => None,
            None => Some(dry_run::measure(workload, binary)?),
        },
    })
}

/// What a proxy is called in the results.
fn name(binary: &Path, way: Way) -> String {
    match way {
        Way::Rules => "proxyd".to_owned(),
        Way::Programs => "proxyd --backend ebpf".to_owned(),
        Way::Peer(mode) => peer::name(binary, mode),
    }
}

fn amounts(args: &Args, way: Way) -> Amounts {
    let is_peer = matches!(way, Way::Peer(_));
    let (changes, settle) = if is_peer {
        (args.peer_changes, PEER_SETTLE)
    } else {
        (args.changes, Duration::ZERO)
    };
    Amounts {
        rounds: args.rounds as usize,
        changes: changes as usize,
        settle,
        burst: args.burst as usize,
        rate: args.rate,
        seconds: args.seconds,
        idle: Duration::from_secs(args.idle.into()),
        churn: args.churn as usize,
        repairs: way == Way::Rules,
        way,
    }
}
