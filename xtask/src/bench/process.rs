//! A proxy at work in a namespace: started, watched until it is in sync, and what it costs.
//!
//! Nothing here knows which proxy it is. All that is asked of one is kube-proxy's: its flags, and `/healthz`, which
//! turns 200 once the rules of both families are written.

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

/// How often `/healthz` is asked: the error of the time of a start.
const HEALTH_INTERVAL: Duration = Duration::from_millis(2);

/// How long a start may take: kube-proxy needs minutes for the largest clusters.
const SYNC_PATIENCE: Duration = Duration::from_secs(1800);

/// A process that uses less than a hundredth of a CPU for this long is done with what it had to do.
const QUIET: Duration = Duration::from_millis(200);

/// How long it may take to get there.
const QUIET_PATIENCE: Duration = Duration::from_secs(30);

/// What `/proc/PID/stat` counts in (sysconf(3) `_SC_CLK_TCK`, 100 on every architecture that Kubernetes runs on).
const TICK: Duration = Duration::from_millis(10);

/// A proxy that runs.
pub(super) struct Proxy {
    agent: Agent,
    clock: ClockId,
    /// From its start until `/healthz` was 200.
    pub(super) start: Duration,
}

impl Proxy {
    /// Starts a proxy and waits until it says that all rules are written.
    ///
    /// # Errors
    /// That it ends before, with what it logged last.
    pub(super) fn start(
        binary: &Path,
        netns: &Netns,
        (kubeconfig, node): (&Path, &str),
        more: &[&str],
    ) -> Result<Self> {
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 10256));
        let args = [
            "--proxy-mode=nftables",
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
        let is_healthy =
            || http::get(netns, health, "/healthz").is_ok_and(|answer| answer.code == 200);
        while !is_healthy() {
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
            thread::sleep(HEALTH_INTERVAL);
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
}
