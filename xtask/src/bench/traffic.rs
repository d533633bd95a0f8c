//! `cargo xtask bench traffic`: what the rules cost the connections that go through them.
//!
//! A client pod and a server pod hang on a node by veth pairs, and the node forwards. The same traffic goes to the server's
//! own address and to the ClusterIP of a Service whose only endpoint the server is, in turns of milliseconds, so that
//! what else the machine does disturbs both alike. Every round gives one ratio of the two; their median is what counts.
//!
//! What is compared is a list of [`Path`]s. Each proxy has a [`Station`] for each number of Services, all of which are there at
//! the same time, and there is one station without any proxy. Another data plane is one more [`Proxy`].

mod load;
mod report;
mod server;
mod station;

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::peer::{self, PeerMode};
use load::{Figure, Figures};
use report::Report;
use station::{Proxy, Station};

/// When no further round is begun.
const TIME_LIMIT: Duration = Duration::from_secs(150);

/// What is measured, and how often.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How many Services there are; the measured one is among them.
    #[arg(long, value_name = "NUMBER,…", value_delimiter = ',', default_values_t = [1, 1_000, 10_000],
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: Vec<u32>,

    /// How many rounds, at most: none is begun after two and a half minutes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,

    /// Measures only proxies with this in their names, beside a node without any, so that a profiler sees nothing else.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// A kube-proxy to measure in the same rounds.
    #[arg(long, value_name = "PATH/kube-proxy")]
    peer: Option<PathBuf>,

    /// The modes to measure it in; iptables with the nf_tables back end of that program.
    #[arg(long, value_name = "MODE,…", value_delimiter = ',', default_values = ["nftables"])]
    peer_mode: Vec<PeerMode>,

    /// Also writes the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One way of the traffic: from a client of a station to an address.
struct Path<'a> {
    station: &'a Station,
    label: Label,
}

/// Which path it is, for the results.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    /// The proxy's name, if there is one, and its number of Services.
    proxy: Option<(String, u32)>,
    from: Caller,
    to: To,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The client pod.
    Client,
    /// The server pod itself: by its loopback device, where nothing sends it elsewhere.
    Server,
}

/// Whose address the client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// The server pod's.
    Pod,
    /// The Service's.
    Service,
}

/// Measures every path in turns, and prints how they compare.
pub(super) fn run(args: &Args, binary: &FilePath) -> Result<()> {
    let mut proxies = vec![
        Proxy::new("proxyd nftables", binary)?,
        Proxy::at_sockets("proxyd ebpf", binary)?,
        Proxy::at_devices("proxyd ebpf, devices", binary)?,
        Proxy::on_fast_path("proxyd ebpf, fast path", binary)?,
    ];
    match &args.peer {
        Some(peer) => {
            for (peer, mode) in peer::usable(peer, &args.peer_mode) {
                proxies.push(Proxy::peer(&peer, mode)?);
            }
        }
        None => println!("NOT RUN: peer: give --peer PATH/kube-proxy to measure it beside"),
    }
    proxies.retain(|proxy| proxy.name.contains(&args.only));
    let stations = stations(&proxies, &args.services)?;
    let mut paths = Vec::new();
    for station in &stations {
        let ways: &[To] = match station.proxy {
            Some(_) => &[To::Pod, To::Service],
            None => &[To::Pod],
        };
        for from in station.clients() {
            paths.extend(ways.iter().map(|to| {
                let (proxy, from, to) = (station.proxy.clone(), *from, *to);
                let label = Label { proxy, from, to };
                Path { station, label }
            }));
        }
    }
    let rounds = rounds(&paths, args.rounds)?;
    let labels = paths.into_iter().map(|path| path.label).collect();
    let report = Report::new(labels, rounds);
    println!("{report}");
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("written: {}", file.display());
    }
    Ok(())
}

/// A station without rules, and one for each proxy and number of Services.
fn stations(proxies: &[Proxy], services: &[u32]) -> Result<Vec<Station>> {
    let mut stations = vec![Station::without_proxy()?];
    for proxy in proxies {
        for services in services {
            println!("starting {} with {services} Services …", proxy.name);
            stations.push(Station::start(proxy, *services)?);
        }
    }
    Ok(stations)
}

/// The figures of every path, by round. The first round, in which caches and neighbours are cold, does not count.
fn rounds(paths: &[Path<'_>], most: u32) -> Result<Vec<Vec<Figures>>> {
    println!("measuring {} paths in up to {most} rounds …", paths.len());
    let started = Instant::now();
    round(paths, false)?;
    let mut rounds = Vec::new();
    for number in 0..most {
        if number > 0 && started.elapsed() > TIME_LIMIT {
            println!("{TIME_LIMIT:?} are over: {number} rounds must do");
            break;
        }
        rounds.push(round(paths, number % 2 == 1)?);
    }
    Ok(rounds)
}

/// Measures one figure after the other, each on all paths, in the order of the list or from its end.
fn round(paths: &[Path<'_>], from_end: bool) -> Result<Vec<Figures>> {
    let mut figures = vec![Figures::default(); paths.len()];
    let mut order: Vec<usize> = (0..paths.len()).collect();
    if from_end {
        order.reverse();
    }
    for load in load::ALL {
        for index in &order {
            let path = &paths[*index];
            path.station
                .load(*load, &path.label, &mut figures[*index])
                .with_context(|| format!("{load:?} by {}", path.label))?;
        }
    }
    Ok(figures)
}
