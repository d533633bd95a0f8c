//! A proxy at work in a namespace: started, watched until it is in sync, and what it costs.
//!
//! All that is asked of one is kube-proxy's: its flags, `/healthz` and `/metrics`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use proxyd_tests::agent::Agent;
use proxyd_tests::http;
use proxyd_tests::netns::Netns;

use super::path;
use super::peer::{PeerMode, Way};

/// How often is asked whether a proxy has started: the error of the time of a start.
const INTERVAL: Duration = Duration::from_millis(2);

/// `/metrics` of a peer takes it some milliseconds. So it is asked only so often: after a twentieth of the time so far.
const METRICS_SHARE: u32 = 20;

/// When rules were last written, in `/metrics`.
const LAST_WRITTEN: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// How long a start may take: kube-proxy needs minutes for the largest clusters.
const SYNC_PATIENCE: Duration = Duration::from_secs(1800);

/// A process that uses less than a hundredth of a CPU for this long is done with what it had to do.
const QUIET: Duration = Duration::from_millis(200);

/// How long it may take to get there.
const QUIET_PATIENCE: Duration = Duration::from_secs(30);

/// What `/proc/PID/stat` counts in (sysconf(3) `_SC_CLK_TCK`, 100 on every architecture that Kubernetes runs on).
const TICK: Duration = Duration::from_millis(10);

/// How one knows that a proxy has written all rules.
#[derive(Clone, Copy)]
pub(super) enum Sign<'a> {
    /// Its `/healthz` turns 200: proxyd's. (kube-proxy's is 200 from the start, and names all families from there on. It
    /// turns 503 only once a change has waited for long.)
    Health,
    /// They are in the kernel.
    Kernel(&'a dyn Fn() -> Result<bool>),
    /// Its metrics say when it wrote some: a peer's, where rules are there before.
    Metrics,
}

/// A proxy that runs.
pub(super) struct Proxy {
    agent: Agent,
    clock: ClockId,
    /// From its start until all rules were written.
    pub(super) start: Duration,
}

impl Proxy {
    /// Starts a proxy and waits until all rules are written, by this sign.
    ///
    /// # Errors
    /// That it ends before, with what it logged last.
    pub(super) fn start(
        binary: &Path,
        netns: &Netns,
        (way, kubeconfig, node): (Way, &Path, &str),
        more: &[&str],
        sign: Sign<'_>,
    ) -> Result<Self> {
        let [health, metrics] =
            [10256, 10249].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let mode = match way {
            Way::Peer(mode) => mode,
            Way::Rules | Way::Programs => PeerMode::Nftables,
        };
        let args = [
            "--proxy-mode",
            mode.name(),
            "--hostname-override",
            node,
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            // The limit of connection tracking is the machine's.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--kubeconfig",
            path(kubeconfig)?,
        ];
        let args = [&args[..], more].concat();
        let started = Instant::now();
        let mut agent = Agent::start_binary(path(binary)?, netns, &args);
        let is_written = || match sign {
            Sign::Health => {
                Ok(http::get(netns, health, "/healthz").is_ok_and(|answer| answer.code == 200))
            }
            Sign::Kernel(is_written) => is_written(),
            Sign::Metrics => Ok(http::get(netns, metrics, "/metrics")
                .is_ok_and(|answer| answer.code == 200 && says_written(&answer.body))),
        };
        while !is_written()? {
            if let Some(status) = agent.exited() {
                let log = agent.log();
                let last = log[log.len().saturating_sub(20)..].join("\n");
                bail!("{} ended with {status}:\n{last}", binary.display());
            }
            ensure!(
                started.elapsed() < SYNC_PATIENCE,
                "{} is not in sync",
                binary.display()
            );
            thread::sleep(match sign {
                Sign::Health | Sign::Kernel(_) => INTERVAL,
                Sign::Metrics => INTERVAL.max(started.elapsed() / METRICS_SHARE),
            });
        }
        let start = started.elapsed();
        let pid = i32::try_from(agent.pid()).expect("process ids are below 2^22");
        Ok(Self {
            clock: clock_getcpuclockid(Pid::from_raw(pid))?,
            agent,
            start,
        })
    }

    /// The CPU time that it has used so far: user and system time of all its threads, those that ended too, to the
    /// nanosecond, and of its children that ended, to ten milliseconds. (The files `schedstat` of its threads would
    /// lose what threads that ended have used.)
    pub(super) fn cpu(&self) -> Result<Duration> {
        let own = Duration::from(self.clock.now()?);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.agent.pid()))?;
        Ok(own + TICK * children_ticks(&stat).context("/proc/PID/stat reads otherwise")?)
    }

    /// Waits until it is done with what it had to do, such as giving memory back.
    pub(super) fn wait_until_quiet(&self) -> Result<()> {
        let started = Instant::now();
        let mut before = self.cpu()?;
        while started.elapsed() < QUIET_PATIENCE {
            thread::sleep(QUIET);
            let now = self.cpu()?;
            if now - before < QUIET / 100 {
                return Ok(());
            }
            before = now;
        }
        bail!("the proxy goes on working though there is nothing to do");
    }

    /// Its resident memory, once it is done with what it had to do.
    pub(super) fn quiet_memory_mib(&self) -> Result<f64> {
        self.wait_until_quiet()?;
        memory_mib(self.agent.pid(), "VmRSS:")
    }

    /// The most that its resident memory ever was.
    pub(super) fn peak_memory_mib(&self) -> Result<f64> {
        memory_mib(self.agent.pid(), "VmHWM:")
    }

    /// Ends it; its rules stay.
    pub(super) fn end(self) {
        self.agent.terminate();
    }
}

/// Whether metrics say that rules of IPv4, which the Services are of, have been written. Those of old versions name no family.
fn says_written(metrics: &str) -> bool {
    metrics.lines().any(|line| {
        let Some(rest) = line.strip_prefix(LAST_WRITTEN) else {
            return false;
        };
        let time = rest
            .rsplit_once(' ')
            .and_then(|(_, time)| time.parse().ok());
        rest.starts_with([' ', '{']) && !rest.contains("IPv6") && time > Some(0.0)
    })
}

/// A figure of `/proc/PID/status`, in MiB.
pub(super) fn memory_mib(pid: u32, what: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let number: f64 = number.with_context(|| format!("no {what}"))?.parse()?;
    Ok(number / 1024.0)
}

/// `cutime` and `cstime`, the 16th and 17th fields. The second is a name that may hold anything.
fn children_ticks(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(13);
    let mut next = || fields.next()?.parse::<u32>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_children_are_read_past_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 70 80 20 0 1 0";
        assert_eq!(children_ticks(stat), Some(150));
        assert_eq!(children_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn metrics_say_when_rules_were_written() {
        let name = LAST_WRITTEN;
        for (text, is_written) in [
            (format!("# TYPE {name} gauge\n"), false),
            (format!("{name}{{ip_family=\"IPv6\"}} 1.7e+09"), false),
            (format!("{name}{{ip_family=\"IPv4\"}} 1.7e+09"), true),
            (format!("{name} 0"), false),
            (format!("a 1\n{name} 1.7e+09\n"), true),
            (format!("{name}_total 1"), false),
        ] {
            assert_eq!(says_written(&text), is_written, "{text}");
        }
    }
}
