//! The kernel's settings of connection tracking (`net.netfilter.nf_conntrack_*`), as kube-proxy makes them
//! (`cmd/kube-proxy/app`, `SetSysctls`): [`ConntrackConfig`] → values → files under `/proc/sys` and `/sys`.
//!
//! What the settings should be is worked out without I/O; [`tune`] compares them with what is there and writes what
//! differs. What cannot be read or written is a warning each: a container may see a read-only `/proc/sys`, and
//! a network namespace other than the first one cannot change the limit.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

/// The number of buckets of the kernel's hash table. Writable in the first network namespace alone.
const HASH_SIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";

/// How many connections the kernel keeps in a bucket, as kube-proxy has it.
const ENTRIES_PER_BUCKET: u64 = 4;

/// What connection tracking should be like. A time of `None` leaves the kernel's as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// How many connections can be tracked for each CPU; 0 leaves the limit as it is, whatever `min` says.
    pub max_per_core: u32,
    /// How many connections can be tracked at the least.
    pub min: u32,
    /// How long an idle TCP connection is kept.
    pub tcp_established: Option<Duration>,
    /// How long a TCP connection is kept that one side has closed.
    pub tcp_close_wait: Option<Duration>,
    /// Whether TCP packets outside the window are valid; `false` leaves that as it is.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow without an answer is kept.
    pub udp: Option<Duration>,
    /// How long an answered UDP flow is kept.
    pub udp_stream: Option<Duration>,
}

/// A value that a file of the kernel should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    /// The path below the root directory.
    path: &'static str,
    value: u64,
    /// Whether a larger value does as well.
    or_more: bool,
    /// The flag that leaves it alone.
    flag: &'static str,
}

/// A value that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Changed {
    path: &'static str,
    from: u64,
    to: u64,
}

/// Why a value is not as it should be.
#[derive(Debug, thiserror::Error)]
enum SysctlError {
    #[error("/{} cannot be read ({source}); it should be {}, see --{}", wanted.path, wanted.value, wanted.flag)]
    Read {
        wanted: Wanted,
        #[source]
        source: io::Error,
    },
    #[error(
        "/{} is {found} and cannot be set to {} ({source}); see --{}",
        wanted.path, wanted.value, wanted.flag
    )]
    Write {
        wanted: Wanted,
        found: u64,
        #[source]
        source: io::Error,
    },
}

/// Makes connection tracking as it should be, and logs what was changed and what could not be. `root` is the
/// directory that holds `proc/sys` and `sys`: `/`, but for tests. Whether all is as it should be.
pub fn tune(config: &ConntrackConfig, root: &Path) -> bool {
    let mut is_whole = true;
    for outcome in apply(config, root) {
        match outcome {
            Ok(Changed { path, from, to }) => info!("/{path}: {from} → {to}"),
            Err(error) => {
                is_whole = false;
                warn!("{error}");
            }
        }
    }
    is_whole
}

/// Makes connection tracking as it should be; returns what was changed and what could not be.
fn apply(config: &ConntrackConfig, root: &Path) -> Vec<Result<Changed, SysctlError>> {
    let mut outcomes = Vec::new();
    if let Some(limit) = limit(config, cores(root)) {
        let outcome = ensure(limit, root).transpose();
        // A table that may not grow needs no more buckets, and who may not set one may not set the other.
        let may_grow = !matches!(outcome, Some(Err(_)));
        outcomes.extend(outcome);
        if may_grow {
            outcomes.extend(ensure(hash_size(limit.value), root).transpose());
        }
    }
    outcomes.extend(
        others(config)
            .into_iter()
            .filter_map(|wanted| ensure(wanted, root).transpose()),
    );
    outcomes
}

/// The limit of tracked connections, if it is to be set.
fn limit(config: &ConntrackConfig, cores: u64) -> Option<Wanted> {
    let scaled = u64::from(config.max_per_core) * cores;
    (config.max_per_core > 0).then(|| Wanted {
        path: "proc/sys/net/netfilter/nf_conntrack_max",
        // The kernel takes no more.
        value: scaled.max(config.min.into()).min(i32::MAX as u64),
        or_more: true,
        flag: "conntrack-max-per-core",
    })
}

/// The number of buckets for so many connections.
fn hash_size(limit: u64) -> Wanted {
    Wanted {
        path: HASH_SIZE,
        value: limit / ENTRIES_PER_BUCKET,
        or_more: true,
        flag: "conntrack-max-per-core",
    }
}

/// The settings that are not the limit.
fn others(config: &ConntrackConfig) -> Vec<Wanted> {
    // The kernel counts in seconds, and forgets at once what it may keep for 0.
    let seconds = |time: Option<Duration>| time.map(|time| time.as_millis().div_ceil(1_000));
    let values = [
        (
            "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
            seconds(config.tcp_established),
            "conntrack-tcp-timeout-established",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            seconds(config.tcp_close_wait),
            "conntrack-tcp-timeout-close-wait",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
            config.tcp_be_liberal.then_some(1),
            "conntrack-tcp-be-liberal",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_udp_timeout",
            seconds(config.udp),
            "conntrack-udp-timeout",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream",
            seconds(config.udp_stream),
            "conntrack-udp-timeout-stream",
        ),
    ];
    let wanted = values.into_iter().filter_map(|(path, value, flag)| {
        Some(Wanted {
            path,
            value: u64::try_from(value?).unwrap_or(u64::MAX),
            or_more: false,
            flag,
        })
    });
    wanted.collect()
}

/// Writes a value unless what is there will do.
fn ensure(wanted: Wanted, root: &Path) -> Result<Option<Changed>, SysctlError> {
    let file = root.join(wanted.path);
    let found = read(&file).map_err(|source| SysctlError::Read { wanted, source })?;
    // A limit of 0 is none.
    let will_do = found == wanted.value || wanted.or_more && (found > wanted.value || found == 0);
    if will_do {
        return Ok(None);
    }
    fs::write(&file, wanted.value.to_string()).map_err(|source| SysctlError::Write {
        wanted,
        found,
        source,
    })?;
    Ok(Some(Changed {
        path: wanted.path,
        from: found,
        to: wanted.value,
    }))
}

fn read(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let number = text.trim().parse();
    number.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// How many CPUs the machine has: the limit is the machine's, so those that this process may not use count too.
fn cores(root: &Path) -> u64 {
    let online = fs::read_to_string(root.join("sys/devices/system/cpu/online"));
    let counted = online.ok().and_then(|list| count(list.trim()));
    counted.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get() as u64))
}

/// How many numbers a list of the kernel holds, such as `0-3,8`.
fn count(list: &str) -> Option<u64> {
    let counts = list.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    counts.sum()
}

#[cfg(test)]
mod tests;
