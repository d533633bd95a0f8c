//! What was measured, as JSON for [`super::plot`] and as a table for people: the proxy, its peer, and the bars to reach.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use super::workload::Workload;

/// A file of results.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The machine's number of CPUs.
    pub(super) cpus: usize,
    /// The kernel's release.
    pub(super) kernel: String,
    /// The load of the machine before (proc_loadavg(5), one minute): other work on it spoils the figures.
    pub(super) load_before: f64,
    /// One for each cluster.
    pub(super) clusters: Vec<Results>,
}

/// The results of one cluster.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Results {
    /// Its size.
    #[serde(flatten)]
    pub(super) cluster: Workload,
    /// The figures of this proxy.
    pub(super) proxyd: Figures,
    /// Those of others, on the same work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) others: Vec<Other>,
    /// What needs no cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dry_run: Option<DryRun>,
}

/// Another program, or this one in another way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Other {
    /// What it is called.
    pub(super) name: String,
    /// Its figures.
    pub(super) figures: Figures,
}

/// How long a dry run takes, and `nft` to check what it prints.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct DryRun {
    pub(super) dry_run_ms: f64,
    pub(super) nft_check_ms: f64,
}

/// What a proxy does on a cluster. The names say it, with their units; [`LINES`] say it in words.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) start_ms: f64,
    #[serde(default)]
    pub(super) start_cpu_ms: f64,
    pub(super) restart_ms: f64,
    pub(super) restart_transactions: u32,
    pub(super) change_p50_ms: f64,
    pub(super) change_p90_ms: f64,
    pub(super) change_p99_ms: f64,
    pub(super) change_cpu_ms: f64,
    pub(super) burst_changes_per_s: f64,
    pub(super) burst_lag_p50_ms: f64,
    pub(super) burst_lag_p99_ms: f64,
    pub(super) burst_lag_max_ms: f64,
    pub(super) burst_drained_ms: f64,
    pub(super) rate_asked_per_s: f64,
    pub(super) rate_changes_per_s: f64,
    pub(super) rate_lag_p50_ms: f64,
    pub(super) rate_lag_p99_ms: f64,
    pub(super) rate_lag_max_ms: f64,
    pub(super) rate_cpu_ms: f64,
    pub(super) churn_services: usize,
    pub(super) churn_created_ms: f64,
    pub(super) churn_deleted_ms: f64,
    pub(super) idle_cpu_ms_per_s: f64,
    pub(super) resident_mib: f64,
    pub(super) resident_after_changes_mib: f64,
    pub(super) resident_after_churn_mib: f64,
    pub(super) peak_mib: f64,
    /// How soon what others change is put right.
    pub(super) repair: Option<Repair>,
    /// What a real API server had to do for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<ServerCosts>,
}

/// What a real API server had to do for a proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ServerCosts {
    /// What it sent until the proxy was in sync and quiet, as it was on the wire.
    pub(super) start_bytes: u64,
    /// What it sent for one of the sustained changes.
    pub(super) change_bytes: f64,
    /// Its CPU time for the start, if its process is on this machine.
    pub(super) start_cpu_ms: Option<f64>,
    /// Its CPU time for one of the sustained changes, the write included.
    pub(super) change_cpu_ms: Option<f64>,
}

/// How long Services were without what someone else removed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Repair {
    /// One element of the map of Services.
    pub(super) element_ms: f64,
    /// Everything.
    pub(super) flush_ms: f64,
    /// The rules of a chain.
    pub(super) rule_ms: f64,
}

impl Report {
    /// A report of this machine without results.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            cpus: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            load_before: fs::read_to_string("/proc/loadavg")?
                .split(' ')
                .next()
                .context("/proc/loadavg is empty")?
                .parse()?,
            clusters: Vec::new(),
        })
    }

    /// Reads a file of results.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{}: no results of the bench", file.display()))
    }

    /// Writes a file of results.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| file.display().to_string())
    }
}

/// A line of the table.
struct Line {
    what: &'static str,
    unit: &'static str,
    value: fn(&Figures) -> f64,
    /// The most that it should be, on this cluster.
    bar: fn(Workload) -> Option<f64>,
}

const fn line(what: &'static str, unit: &'static str, value: fn(&Figures) -> f64) -> Line {
    Line {
        what,
        unit,
        value,
        bar: |_| None,
    }
}

const fn bar(line: Line, bar: fn(Workload) -> Option<f64>) -> Line {
    Line { bar, ..line }
}

/// The bars are those of the project's plan, for the clusters that it names and for smaller ones.
const LINES: &[Line] = &[
    bar(
        line("start to full sync", "ms", |f| f.start_ms),
        |w| match (w.services, w.endpoints) {
            (..=1_000, ..=10) | (..=10_000, ..=5) => Some(1_000.0),
            (..=45_000, ..=5) => Some(5_000.0),
            _ => None,
        },
    ),
    line("CPU for it", "ms", |f| f.start_cpu_ms),
    bar(
        line("restart, the rules present", "ms", |f| f.restart_ms),
        |w| match (w.services, w.endpoints) {
            (..=1_000, ..=10) | (..=10_000, ..=5) => Some(1_000.0),
            _ => None,
        },
    ),
    bar(
        line("transactions at a restart", "", |f| {
            f64::from(f.restart_transactions)
        }),
        |_| Some(0.0),
    ),
    bar(
        line("one change, API to kernel, p50", "ms", |f| f.change_p50_ms),
        |_| Some(5.0),
    ),
    line("p90", "ms", |f| f.change_p90_ms),
    bar(line("p99", "ms", |f| f.change_p99_ms), |_| Some(20.0)),
    bar(
        line("CPU for one change", "ms", |f| f.change_cpu_ms),
        |_| Some(1.0),
    ),
    line("in a row: changes the server took", "/s", |f| {
        f.burst_changes_per_s
    }),
    line("kernel behind the server, p50", "ms", |f| {
        f.burst_lag_p50_ms
    }),
    line("p99", "ms", |f| f.burst_lag_p99_ms),
    line("most", "ms", |f| f.burst_lag_max_ms),
    line("after the last change", "ms", |f| f.burst_drained_ms),
    line("sustained: changes the server took", "/s", |f| {
        f.rate_changes_per_s
    }),
    line("kernel behind the server, p50", "ms", |f| f.rate_lag_p50_ms),
    line("p99", "ms", |f| f.rate_lag_p99_ms),
    bar(line("most", "ms", |f| f.rate_lag_max_ms), |_| Some(100.0)),
    line("CPU for one of them", "ms", |f| f.rate_cpu_ms),
    line("Services made and gone at once", "", |f| {
        f.churn_services as f64
    }),
    line("until the kernel has them", "ms", |f| f.churn_created_ms),
    line("until they are gone", "ms", |f| f.churn_deleted_ms),
    bar(
        line("CPU while idle", "ms/s", |f| f.idle_cpu_ms_per_s),
        |_| Some(0.05),
    ),
    bar(line("resident, in sync", "MiB", |f| f.resident_mib), memory),
    bar(
        line("after the changes", "MiB", |f| f.resident_after_changes_mib),
        memory,
    ),
    bar(
        line("after Services came and went", "MiB", |f| {
            f.resident_after_churn_mib
        }),
        memory,
    ),
    line("at its peak", "MiB", |f| f.peak_mib),
];

/// The most that should be resident.
fn memory(cluster: Workload) -> Option<f64> {
    match (cluster.services, cluster.endpoints) {
        (..=1_000, ..=10) => Some(25.0),
        (..=10_000, ..=5) => Some(40.0),
        (..=10_000, ..=10) => Some(60.0),
        (..=45_000, ..=5) => Some(120.0),
        _ => None,
    }
}

/// What a line of a real API server's costs says, its unit, and its value.
type ServerLine = (&'static str, &'static str, fn(&ServerCosts) -> Option<f64>);

const SERVER_LINES: [ServerLine; 4] = [
    ("the API server sent for a start", "kB", |s| {
        Some(s.start_bytes as f64 / 1e3)
    }),
    ("its CPU for that", "ms", |s| s.start_cpu_ms),
    ("the API server sent for one change", "bytes", |s| {
        Some(s.change_bytes)
    }),
    ("its CPU for that, the write included", "ms", |s| {
        s.change_cpu_ms
    }),
];

/// The results of one cluster as a table, with what is missed.
pub(super) fn table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let mut header = vec![results.cluster.to_string(), "proxyd".to_owned()];
    for other in &results.others {
        header.extend([other.name.clone(), "that / proxyd".to_owned()]);
    }
    header.push("bar".to_owned());
    let columns = header.len();
    table.set_header(header);
    for line in LINES {
        let value = (line.value)(&results.proxyd);
        let others = results.others.iter();
        let others = others.map(|other| Some((line.value)(&other.figures)));
        let mut row = compared(line.what, line.unit, value, others);
        row.push((line.bar)(results.cluster).map_or_else(String::new, |bar| verdict(value, bar)));
        table.add_row(row);
    }
    for (what, unit, of) in SERVER_LINES {
        let Some(value) = results.proxyd.server.as_ref().and_then(of) else {
            continue;
        };
        let others = results.others.iter();
        let others = others.map(|other| other.figures.server.as_ref().and_then(of));
        table.add_row(compared(what, unit, value, others));
    }
    if let Some(repair) = &results.proxyd.repair {
        for (what, value) in [
            ("an element that others deleted is back", repair.element_ms),
            ("everything is back after a flush", repair.flush_ms),
            ("a chain whose rules others flushed is back", repair.rule_ms),
        ] {
            let mut row = vec![what.to_owned(), with_unit(value, "ms")];
            row.resize(columns - 1, String::new());
            row.push(verdict(value, 100.0));
            table.add_row(row);
        }
    }
    if let Some(dry_run) = &results.dry_run {
        for (what, value) in [
            ("dry run of one YAML file", dry_run.dry_run_ms),
            ("nft -c of what it prints", dry_run.nft_check_ms),
        ] {
            table.add_row([what.to_owned(), with_unit(value, "ms")]);
        }
    }
    table
}

/// A row without its last cell: a value, and what others have in comparison.
fn compared(
    what: &str,
    unit: &str,
    value: f64,
    others: impl Iterator<Item = Option<f64>>,
) -> Vec<String> {
    let mut row = vec![what.to_owned(), with_unit(value, unit)];
    for other in others {
        let ratio = other.filter(|_| value > 0.0);
        let ratio = ratio.map(|other| format!("{} ×", number(other / value)));
        let other = other.map(|other| with_unit(other, unit));
        row.extend([other, ratio].map(Option::unwrap_or_default));
    }
    row
}

/// The bar, and by how much it is missed.
fn verdict(value: f64, bar: f64) -> String {
    if value <= bar {
        format!("≤ {}", number(bar))
    } else if bar > 0.0 {
        let percent = (value / bar - 1.0) * 100.0;
        format!("≤ {}: MISSED by {} %", number(bar), number(percent))
    } else {
        format!("≤ {}: MISSED", number(bar))
    }
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", number(value)).trim_end().to_owned()
}

/// Three digits, or all of a whole number.
fn number(value: f64) -> String {
    let places = match value.abs() {
        0.0 => 0,
        ..0.1 => 4,
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.places$}");
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        Results {
            cluster: Workload {
                services: 10_000,
                endpoints: 5,
            },
            proxyd: Figures {
                start_ms: 1_250.0,
                restart_transactions: 2,
                change_p50_ms: 0.25,
                resident_mib: 31.5,
                ..Figures::default()
            },
            others: vec![Other {
                name: "kube-proxy".to_owned(),
                figures: Figures {
                    start_ms: 13_800.0,
                    change_p50_ms: 3_500.0,
                    ..Figures::default()
                },
            }],
            dry_run: None,
        }
    }

    #[test]
    fn table_says_ratios_and_which_bars_are_missed() {
        let text = table(&results()).to_string();
        let row = |what: &str| {
            let line = text.lines().find(|line| line.contains(what)).unwrap();
            let cells = line.split(['│', '┆']).map(str::trim);
            cells.filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(
            row("start to full sync")[1..],
            ["1250 ms", "13800 ms", "11 ×", "≤ 1000: MISSED by 25 %"]
        );
        assert_eq!(row("at a restart")[1..], ["2", "0", "0 ×", "≤ 0: MISSED"]);
        assert_eq!(
            row("API to kernel, p50")[1..],
            ["0.250 ms", "3500 ms", "14000 ×", "≤ 5"]
        );
        assert_eq!(
            row("resident, in sync")[1..],
            ["31.5 MiB", "0 MiB", "0 ×", "≤ 40"]
        );
    }

    /// Whose process is not on this machine has no CPU time.
    #[test]
    fn table_says_what_each_proxy_costs_a_real_server() {
        let mut results = results();
        results.others.push(results.others[0].clone());
        results.proxyd.server = Some(ServerCosts {
            start_bytes: 15_300_000,
            change_bytes: 1_000.0,
            start_cpu_ms: Some(580.0),
            change_cpu_ms: None,
        });
        results.others[1].figures.server = Some(ServerCosts {
            start_bytes: 30_600_000,
            change_bytes: 2_500.0,
            ..ServerCosts::default()
        });
        let text = table(&results).to_string();
        let row = |what: &str| {
            let line = text.lines().find(|line| line.contains(what)).unwrap();
            let cells = line.trim_matches('│').split('┆').map(str::trim);
            cells.skip(1).collect::<Vec<_>>()
        };
        assert_eq!(
            row("sent for a start")[..5],
            ["15300 kB", "", "", "30600 kB", "2 ×"]
        );
        assert_eq!(
            row("sent for one change")[..5],
            ["1000 bytes", "", "", "2500 bytes", "2.50 ×"]
        );
        assert_eq!(row("its CPU for that")[..5], ["580 ms", "", "", "", ""]);
        assert!(!text.contains("the write included"), "{text}");
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let report = Report {
            cpus: 2,
            kernel: "6.18".to_owned(),
            load_before: 0.25,
            clusters: vec![results()],
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        report.write(file.path()).unwrap();
        assert_eq!(Report::read(file.path()).unwrap(), report);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("\"services\": 10000,\n"), "{text}");
    }
}
