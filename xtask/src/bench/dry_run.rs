//! How long the dry run of one YAML file takes, and how long `nft` takes to check what it printed.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use proxyd_tests::netns::Netns;

use super::path;
use super::report::DryRun;
use super::workload::Workload;

/// Measures both once.
pub(super) fn measure(cluster: Workload, binary: &Path) -> Result<DryRun> {
    let directory = tempfile::tempdir()?;
    let manifest = directory.path().join("cluster.yaml");
    std::fs::write(&manifest, cluster.yaml())?;
    let apart = Netns::new()?;
    let args = [
        "--dry-run",
        "--hostname-override",
        "node-1",
        "--manifests",
        path(&manifest)?,
    ];
    let started = Instant::now();
    let output = apart.run(path(binary)?, &args, "")?;
    let dry_run = started.elapsed();
    ensure!(
        output.status.success(),
        "the dry run ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let rules = std::str::from_utf8(&output.stdout)?;
    let started = Instant::now();
    let check = apart.run("nft", &["-c", "-f", "-"], rules)?;
    let nft_check = started.elapsed();
    ensure!(
        check.status.success(),
        "nft -c ended with {}: {}",
        check.status,
        String::from_utf8_lossy(&check.stderr)
    );
    Ok(DryRun {
        dry_run_ms: dry_run.as_secs_f64() * 1e3,
        nft_check_ms: nft_check.as_secs_f64() * 1e3,
    })
}
