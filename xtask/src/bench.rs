//! `cargo xtask bench`: how fast the agent is, measured on the tests' API server and the real kernel.
//!
//! Speed is checked here and never in tests. Each kind of measurement is a subcommand, and a module of the same name;
//! what they share is here. Proxies run in network namespaces of their own.

mod cluster;
mod conntrack;
mod dry_run;
mod kernel;
mod lag;
mod measure;
mod peer;
mod plot;
mod process;
mod report;
#[cfg(test)]
mod stand_in;
mod sync;
mod traffic;
mod workload;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::programs;
use crate::tools;

/// How long one change may take.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// How often the kernel is asked whether a change has arrived: the error of the figures.
const POLL_INTERVAL: Duration = Duration::from_micros(20);

/// What is measured: `sync`, if nothing is said.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    sync: sync::Args,
}

/// What is measured.
#[derive(clap::Subcommand)]
enum Command {
    /// Start, change latency, CPU and memory on made-up clusters, beside another proxy if there is one.
    Sync(sync::Args),
    /// Rule changes beside a full connection tracking table (raises nf_conntrack_max of the machine meanwhile).
    Conntrack(conntrack::Args),
    /// Draws results of `sync`.
    Plot(plot::Args),
    /// What connections through a Service cost, compared with the same ones to the pod.
    Traffic(traffic::Args),
}

/// Does what is asked for; builds the agent first, if it is to be measured.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(Command::Plot(args)) = &args.command {
        return plot::run(args);
    }
    if cfg!(debug_assertions) {
        // The API server runs in this process, and would be slower than what it measures.
        let again = [
            "run",
            "--release",
            "--quiet",
            "--locked",
            "--package",
            "xtask",
            "--",
        ];
        return tools::run(tools::cargo(&again).args(std::env::args_os().skip(1)));
    }
    programs::install_missing()?;
    tools::run(&mut tools::cargo(&[
        "build",
        "--release",
        "--locked",
        "-p",
        "proxyd",
    ]))?;
    let binary = tools::target_dir()?.join("release/proxyd");
    match &args.command {
        None => sync::run(&args.sync, &binary),
        Some(Command::Sync(args)) => sync::run(args, &binary),
        Some(Command::Conntrack(args)) => conntrack::run(args, &binary),
        Some(Command::Plot(args)) => plot::run(args),
        Some(Command::Traffic(args)) => traffic::run(args, &binary),
    }
}

/// The duration that so many in a hundred are not longer than.
fn percentile(durations: &mut [Duration], percent: usize) -> Duration {
    durations.sort_unstable();
    durations[(durations.len() - 1) * percent / 100]
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
