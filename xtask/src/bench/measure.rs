//! One proxy on one cluster: what is measured, in the order in which it is.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use proxyd_tests::generation::Generation;
use proxyd_tests::netns::Netns;
use proxyd_tests::sockets::Sockets;

use super::cluster::Cluster;
use super::kernel::Kernel;
use super::lag::{self, Pace};
use super::peer::Way;
use super::process::{Proxy, Sign};
use super::report::{Figures, Repair, ServerCosts};
use super::{CHANGE_PATIENCE, POLL_INTERVAL, percentile};

/// How many Services are looked up to make sure that a proxy that says so is in sync.
const SAMPLES: usize = 100;

/// How often Services are made and deleted.
const CHURN_ROUNDS: usize = 3;

/// How long a peer may take for a change.
const PEER_PATIENCE: Duration = Duration::from_secs(300);

/// How much is measured.
#[derive(Debug, Clone)]
pub(super) struct Amounts {
    /// How often the proxy is started, in a namespace of its own, and again where its rules are.
    pub(super) rounds: usize,
    /// How many changes one at a time.
    pub(super) changes: usize,
    /// For how long there must have been no transaction before a change is made. The peer deletes old chains a second
    /// after a change, which must not be taken for the next one.
    pub(super) settle: Duration,
    /// How many changes in a row.
    pub(super) burst: usize,
    /// How many changes in a second, and for how long.
    pub(super) rate: u32,
    /// For how long.
    pub(super) seconds: u32,
    /// For how long it idles.
    pub(super) idle: Duration,
    /// How many Services are made and deleted at once.
    pub(super) churn: usize,
    /// Whether others change the rules. A peer may take an hour to notice.
    pub(super) repairs: bool,
    /// How the proxy balances.
    pub(super) way: Way,
}

/// Measures a proxy.
pub(super) fn measure(binary: &Path, cluster: &mut Cluster, amounts: &Amounts) -> Result<Figures> {
    let directory = tempfile::tempdir()?;
    let mut figures = Figures::default();
    let (mut starts, mut resident, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..amounts.rounds {
        // The one before, and with it the rules of its namespace, has ended.
        drop(last.take());
        let node = Netns::new().context("making a network namespace needs root")?;
        let kubeconfig = cluster.attach(&node, directory.path())?;
        let name = cluster.node().to_owned();
        let programs = (amounts.way == Way::Programs).then(|| Sockets::of(&[]));
        let args: Vec<&str> = programs.iter().flat_map(Sockets::args).collect();
        let before = cluster.taken()?;
        let on = (amounts.way, &*kubeconfig, &*name);
        let (proxy, kernel) = if let Way::Peer(mode) = amounts.way {
            let kernel = Kernel::of_peer(&node, mode)?;
            let are_there = || missing(cluster, &kernel).map(|number| number.is_none());
            let sign = Sign::Kernel(&are_there);
            let proxy = Proxy::start(binary, &node, on, &args, sign)?;
            (proxy, kernel)
        } else {
            let proxy = Proxy::start(binary, &node, on, &args, Sign::Health)?;
            (proxy, in_sync(&node, cluster, programs.as_ref())?)
        };
        starts.push(proxy.start);
        resident.push(proxy.quiet_memory_mib()?);
        let of_server = cluster.taken()?.zip(before);
        let of_server = of_server.map(|(now, before)| now.since(before));
        costs.push((proxy.cpu()?, of_server));
        figures.peak_mib = figures.peak_mib.max(proxy.peak_memory_mib()?);
        last = Some((proxy, kernel, kubeconfig, node, programs));
    }
    let (proxy, kernel, kubeconfig, node, programs) = last.context("at least one round")?;
    figures.start_ms = millis(percentile(&mut starts, 50));
    resident.sort_unstable_by(f64::total_cmp);
    figures.resident_mib = resident[resident.len() / 2];
    // The server's are of the same start as the proxy's.
    costs.sort_unstable_by_key(|(cpu, _)| *cpu);
    let (cpu, of_server) = costs[costs.len() / 2];
    figures.start_cpu_ms = millis(cpu);
    figures.server = of_server.map(|taken| ServerCosts {
        start_bytes: taken.bytes,
        start_cpu_ms: taken.cpu.map(millis),
        ..ServerCosts::default()
    });
    let generation = Generation::of(&node)?;
    one_at_a_time(
        &proxy,
        cluster,
        (&generation, &kernel),
        amounts,
        &mut figures,
    )?;
    in_a_row(&proxy, &kernel, cluster, amounts, &mut figures)?;
    figures.resident_after_changes_mib = proxy.quiet_memory_mib()?;
    idle(&proxy, amounts.idle, &mut figures)?;
    churn(cluster, &kernel, amounts.churn, &mut figures)?;
    figures.resident_after_churn_mib = proxy.quiet_memory_mib()?;
    if amounts.repairs {
        figures.repair = Some(repair(&node, cluster, &kernel)?);
    }
    figures.peak_mib = figures.peak_mib.max(proxy.peak_memory_mib()?);
    proxy.end();
    let mut restarts = Vec::new();
    let args: Vec<&str> = programs.iter().flat_map(Sockets::args).collect();
    for _ in 0..amounts.rounds {
        let before = generation.get()?;
        let name = cluster.node().to_owned();
        let on = (amounts.way, &*kubeconfig, &*name);
        let sign = match amounts.way {
            Way::Rules | Way::Programs => Sign::Health,
            Way::Peer(_) => Sign::Metrics,
        };
        let proxy = Proxy::start(binary, &node, on, &args, sign)?;
        restarts.push(proxy.start);
        proxy.wait_until_quiet()?;
        let written = generation.get()?.wrapping_sub(before);
        figures.restart_transactions = figures.restart_transactions.max(written);
        proxy.end();
    }
    figures.restart_ms = millis(percentile(&mut restarts, 50));
    Ok(figures)
}

/// Makes sure that the proxy is in sync as it said, by looking some Services up.
fn in_sync(node: &Netns, cluster: &Cluster, programs: Option<&Sockets>) -> Result<Kernel> {
    let kernel = match programs {
        Some(programs) => Kernel::of_programs(programs)?,
        None => Kernel::of_rules(node)?,
    };
    if let Some(number) = missing(cluster, &kernel)? {
        bail!("the proxy says that it is in sync, and Service {number} is not in the kernel");
    }
    Ok(kernel)
}

/// A Service that is not in the kernel, of some that are looked up.
fn missing(cluster: &Cluster, kernel: &Kernel) -> Result<Option<usize>> {
    let stride = cluster.len().div_ceil(SAMPLES);
    for number in (0..cluster.len()).rev().step_by(stride) {
        if !kernel.serves(cluster.service(number))? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// Replaces one endpoint at a time; each is timed from the API server's commit to the kernel's.
fn one_at_a_time(
    proxy: &Proxy,
    cluster: &mut Cluster,
    (generation, kernel): (&Generation, &Kernel),
    amounts: &Amounts,
    figures: &mut Figures,
) -> Result<()> {
    proxy.wait_until_quiet()?;
    let before = proxy.cpu()?;
    let mut latencies = Vec::new();
    for round in 0..amounts.changes {
        let before = settled(generation, amounts.settle)?;
        // A stride that is prime to the number of Services visits them all.
        let number = round * 7919 % cluster.len();
        let started = Instant::now();
        let [_, new] = cluster.replace_endpoint(number)?;
        let patience = CHANGE_PATIENCE.max(if amounts.settle.is_zero() {
            Duration::ZERO
        } else {
            PEER_PATIENCE
        });
        let service = cluster.service(number);
        let is_there = || match amounts.way {
            Way::Rules => Ok(generation.get()? != before),
            Way::Programs | Way::Peer(_) => kernel.has_endpoint(service, cluster.endpoints(), new),
        };
        while !is_there()? {
            ensure!(
                started.elapsed() < patience,
                "change {round} did not reach the kernel"
            );
            thread::sleep(POLL_INTERVAL);
        }
        latencies.push(started.elapsed());
    }
    proxy.wait_until_quiet()?;
    let used = proxy.cpu()? - before;
    figures.change_p50_ms = millis(percentile(&mut latencies, 50));
    figures.change_p90_ms = millis(percentile(&mut latencies, 90));
    figures.change_p99_ms = millis(percentile(&mut latencies, 99));
    figures.change_cpu_ms = millis(used) / amounts.changes as f64;
    Ok(())
}

/// The generation number once it has not changed for a while.
fn settled(generation: &Generation, settle: Duration) -> Result<u32> {
    let mut number = generation.get()?;
    let mut since = Instant::now();
    while since.elapsed() < settle {
        thread::sleep(settle / 100);
        let now = generation.get()?;
        if now != number {
            (number, since) = (now, Instant::now());
        }
    }
    Ok(number)
}

/// Changes without a pause: as fast as the server takes them, and at the rate that was asked for.
fn in_a_row(
    proxy: &Proxy,
    kernel: &Kernel,
    cluster: &mut Cluster,
    amounts: &Amounts,
    figures: &mut Figures,
) -> Result<()> {
    let pace = Pace {
        changes: amounts.burst,
        per_second: None,
    };
    let lag = lag::measure(cluster, kernel, pace)?;
    figures.burst_changes_per_s = lag.per_second;
    figures.burst_lag_p50_ms = millis(lag.p50);
    figures.burst_lag_p99_ms = millis(lag.p99);
    figures.burst_lag_max_ms = millis(lag.worst);
    figures.burst_drained_ms = millis(lag.drained);
    proxy.wait_until_quiet()?;
    let (before, of_server) = (proxy.cpu()?, cluster.taken()?);
    let pace = Pace {
        changes: amounts.rate as usize * amounts.seconds as usize,
        per_second: Some(amounts.rate),
    };
    let lag = lag::measure(cluster, kernel, pace)?;
    proxy.wait_until_quiet()?;
    figures.rate_asked_per_s = f64::from(amounts.rate);
    figures.rate_changes_per_s = lag.per_second;
    figures.rate_lag_p50_ms = millis(lag.p50);
    figures.rate_lag_p99_ms = millis(lag.p99);
    figures.rate_lag_max_ms = millis(lag.worst);
    figures.rate_cpu_ms = millis(proxy.cpu()? - before) / pace.changes as f64;
    if let (Some(server), Some((now, before))) =
        (&mut figures.server, cluster.taken()?.zip(of_server))
    {
        let (taken, changes) = (now.since(before), pace.changes as f64);
        server.change_bytes = taken.bytes as f64 / changes;
        server.change_cpu_ms = taken.cpu.map(|cpu| millis(cpu) / changes);
    }
    Ok(())
}

/// What it uses while nothing happens.
fn idle(proxy: &Proxy, time: Duration, figures: &mut Figures) -> Result<()> {
    proxy.wait_until_quiet()?;
    let (before, started) = (proxy.cpu()?, Instant::now());
    thread::sleep(time);
    let used = proxy.cpu()? - before;
    figures.idle_cpu_ms_per_s = millis(used) / started.elapsed().as_secs_f64();
    Ok(())
}

/// Makes Services and deletes them again, some times; the times are those of the last.
fn churn(
    cluster: &mut Cluster,
    kernel: &Kernel,
    count: usize,
    figures: &mut Figures,
) -> Result<()> {
    for _ in 0..CHURN_ROUNDS {
        let started = Instant::now();
        cluster.grow(count)?;
        let last = cluster.service(cluster.len() - 1);
        lag::wait_until(PEER_PATIENCE, || kernel.serves(last))?;
        figures.churn_created_ms = millis(started.elapsed());
        let started = Instant::now();
        cluster.shrink(count)?;
        lag::wait_until(PEER_PATIENCE, || Ok(!kernel.serves(last)?))?;
        figures.churn_deleted_ms = millis(started.elapsed());
    }
    figures.churn_services = count;
    Ok(())
}

/// Changes the rules as someone else; each time from that commit until what was lost is there again.
fn repair(node: &Netns, cluster: &Cluster, kernel: &Kernel) -> Result<Repair> {
    let generation = Generation::of(node)?;
    let (first, last) = (cluster.service(0), cluster.service(cluster.len() - 1));
    let time = |commands: &[&str]| -> Result<f64> {
        settled(&generation, Duration::from_secs(1))?;
        let before = generation.get()?;
        let mut nft = node.spawn("nft", |command| {
            command.args(commands);
        })?;
        lag::wait_until(CHANGE_PATIENCE, || Ok(generation.get()? != before))?;
        let changed = Instant::now();
        lag::wait_until(CHANGE_PATIENCE, || {
            // Where rules were lost, the elements are there all the time.
            let is_repaired = generation.get()?.wrapping_sub(before) > 1;
            Ok(is_repaired && kernel.serves(first)? && kernel.serves(last)?)
        })?;
        let time = changed.elapsed();
        let status = nft.wait()?;
        ensure!(status.success(), "nft {commands:?} ended with {status}");
        Ok(millis(time))
    };
    let element = format!("{{ {} . tcp . 80 }}", first.cluster_ip);
    Ok(Repair {
        element_ms: time(&["delete", "element", "ip", "proxyd", "services", &element])?,
        flush_ms: time(&["flush", "ruleset"])?,
        rule_ms: time(&["flush", "chain", "ip", "proxyd", "nat-prerouting"])?,
    })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerMode;
    use super::super::stand_in;
    use super::super::workload::Workload;
    use super::*;
    use std::path::PathBuf;

    use proxyd_tests::apiserver::{ApiServer, Options};
    use serde_json::json;

    fn check(binary: &Path, cluster: &mut Cluster, way: Way) -> Figures {
        let amounts = Amounts {
            rounds: 2,
            changes: 3,
            settle: Duration::from_millis(1),
            burst: 50,
            rate: 200,
            seconds: 1,
            idle: Duration::from_millis(10),
            churn: 5,
            repairs: way == Way::Rules,
            way,
        };
        let figures = measure(binary, cluster, &amounts).unwrap();
        let times = [
            figures.start_ms,
            figures.start_cpu_ms,
            figures.restart_ms,
            figures.change_p50_ms,
            figures.change_cpu_ms,
            figures.burst_lag_p50_ms,
            figures.rate_lag_max_ms,
            figures.rate_cpu_ms,
            figures.churn_created_ms,
            figures.churn_deleted_ms,
        ];
        assert!(times.iter().all(|time| *time > 0.0), "{figures:?}");
        assert!(figures.change_p50_ms <= figures.change_p99_ms);
        assert!(figures.rate_changes_per_s <= 210.0, "{figures:?}");
        // The kernel's own figure of the peak may be behind by some pages for each CPU.
        assert!(figures.resident_mib > 1.0, "{figures:?}");
        assert!(figures.peak_mib > figures.resident_mib - 2.0, "{figures:?}");
        figures
    }

    fn proxyd() -> PathBuf {
        proxyd_tests::agent::binary().into()
    }

    const SMALL: Workload = Workload {
        services: 20,
        endpoints: 3,
    };

    #[test]
    fn proxy_is_measured_on_the_server_of_the_tests() {
        for way in [Way::Rules, Way::Programs] {
            let mut cluster = Cluster::make(SMALL, None).unwrap();
            let figures = check(&proxyd(), &mut cluster, way);
            assert_eq!(figures.restart_transactions, 0);
            assert_eq!(figures.server, None);
        }
    }

    #[test]
    fn peer_is_measured_in_both_of_its_modes() {
        let directory = tempfile::tempdir().unwrap();
        let program = stand_in::install(&directory);
        for mode in [PeerMode::Nftables, PeerMode::Iptables] {
            let mut cluster = Cluster::make(SMALL, None).unwrap();
            let figures = check(&program, &mut cluster, Way::Peer(mode));
            // It does not know what is there.
            assert!(figures.restart_transactions > 0);
        }
    }

    /// The tests' server stands for a real one.
    #[test]
    fn proxies_are_measured_on_a_server_outside_of_their_namespace() {
        let server = ApiServer::start_with(Options {
            service_cidr: Some("10.96.0.0/16".parse().unwrap()),
            ..Options::default()
        });
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "worker" } });
        server.create(&node);
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), server.kubeconfig()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let peer = stand_in::install(&directory);
        for (binary, way) in [
            (proxyd(), Way::Rules),
            (peer, Way::Peer(PeerMode::Nftables)),
        ] {
            let mut cluster = Cluster::make(SMALL, Some(kubeconfig.path())).unwrap();
            let server = check(&binary, &mut cluster, way).server.unwrap();
            // 20 Services with their slices, and then one slice at a time.
            assert!(server.start_bytes > 5_000, "{server:?}");
            assert!(server.change_bytes > 100.0, "{server:?}");
            assert!(server.change_bytes < server.start_bytes as f64 / 5.0);
            assert!(server.start_cpu_ms > Some(0.0), "{server:?}");
            assert!(server.change_cpu_ms > Some(0.0), "{server:?}");
        }
    }
}
