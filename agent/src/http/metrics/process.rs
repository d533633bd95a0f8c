//! What the process takes of the machine, and what it is: read from the kernel when somebody asks.
//!
//! Names are those of Go's collector of Prometheus (`process_*`) and of `k8s.io/component-base` (`kubernetes_build_info`).

use std::fmt;
use std::fs;

use nix::time::{ClockId, clock_gettime};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustix::process::{Resource, getrlimit};

use super::exposition::Out;
use crate::version;

/// The kernel's clock ticks in `/proc`: `USER_HZ`, 100 wherever Kubernetes runs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Where the field `starttime` is in `/proc/self/stat` after the name in parentheses (proc(5): field 22).
const START_TIME: usize = 19;

/// Metrics of this process.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out::new(&mut encoder);
        // A clock of the process itself cannot fail.
        if let Ok(time) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
            let seconds = std::time::Duration::from(time).as_secs_f64();
            let help = "Time that the process took of processors, in user and system mode";
            out.counters("process_cpu_seconds", help, [([], seconds)])?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, help, field) in [
            (
                "process_resident_memory_bytes",
                "Memory that the process has",
                "VmRSS:",
            ),
            (
                "process_virtual_memory_bytes",
                "Addresses that the process has",
                "VmSize:",
            ),
        ] {
            if let Some(bytes) = kibibytes(&status, field) {
                out.gauges(name, help, [([], bytes)])?;
            }
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            let help = "Files that the process has open";
            out.gauges("process_open_fds", help, [([], files.count() as u64)])?;
        }
        // None stands for no limit, which is told as the largest number.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let help = "Files that the process may have open";
        out.gauges("process_max_fds", help, [([], limit)])?;
        if let Some(seconds) = started() {
            let help = "When the process started, in seconds since 1970";
            out.gauges("process_start_time_seconds", help, [([], seconds)])?;
        }
        build_info(out)
    }
}

fn build_info(out: &mut Out<'_, '_>) -> fmt::Result {
    let info = version::INFO;
    let labels = [
        ("build_date", info.build_date),
        ("compiler", info.compiler),
        ("git_commit", info.git_commit),
        ("git_tree_state", info.git_tree_state),
        ("git_version", info.git_version),
        ("go_version", info.go_version),
        ("major", info.major),
        ("minor", info.minor),
        ("platform", info.platform),
    ];
    let help = "1, labeled by what was built, from what, and for what";
    out.gauges("kubernetes_build_info", help, [(labels, 1_u64)])
}

/// A field of `/proc/self/status`, in bytes.
fn kibibytes(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// When this process started, in seconds since 1970.
pub(in crate::http) fn started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    started_from(&stat, &kernel)
}

fn started_from(stat: &str, kernel: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: f64 = fields.split(' ').nth(START_TIME)?.parse().ok()?;
    let booted = kernel
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(booted.parse::<f64>().ok()? + ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let status = "Name:\tproxyd\nVmSize:\t  226284 kB\nVmRSS:\t   20480 kB\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(20_480 * 1024));
        assert_eq!(kibibytes(status, "VmSwap:"), None);
        // The name may hold anything, parentheses and spaces too.
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 12 3 0 0 20 0 4 0 123456 231714816 5120 1";
        let kernel = "cpu  1 2 3\nbtime 1700000000\nprocesses 9\n";
        assert_eq!(started_from(stat, kernel), Some(1_700_001_234.56));
        assert_eq!(started_from("7 (a) S", kernel), None);
    }

    #[test]
    fn this_process_started_a_while_ago() {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let age = now.as_secs_f64() - started().unwrap();
        assert!((-2.0..3_600.0).contains(&age), "{age}");
    }
}
