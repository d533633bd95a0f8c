//! `cargo xtask test`: every test there is, on a machine that has nothing but cargo.
//!
//! Installs the programs that the tests call, builds the agent and hands its path to the tests as `PROXYD_BIN`. Tests
//! that need root are left out only when asked for, and then it says so.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, bail};

use crate::tools::{self, cargo, command, find_program};

/// What the tests call, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
];

/// The package whose tests make network namespaces, which needs root.
const ROOT_PACKAGE: &str = "proxyd-tests";

const WITHOUT_ROOT: &str =
    "NOT RUN: network-namespace tests: need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)";

/// The tests' options.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Test the optimised build.
    #[arg(long)]
    release: bool,
    /// Leave out what needs root instead of failing.
    #[arg(long)]
    without_root: bool,
    /// Handed to `cargo test`, such as a part of a test's name; after a second `--`, to the tests themselves.
    #[arg(last = true)]
    cargo_args: Vec<String>,
}

/// Runs the tests; an error if one fails, or if they cannot all run and `--without-root` was not given.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let root = is_root()?;
    if !root && !args.without_root {
        bail!("{WITHOUT_ROOT}\nrun as root, or pass --without-root to run the other tests");
    }
    if !args.without_root {
        install_missing()?;
    }
    tools::run(cargo(&["build", "--locked", "--package", "proxyd"]).args(args.profile()))?;
    let agent = tools::target_dir()?
        .join(if args.release { "release" } else { "debug" })
        .join("proxyd");
    tools::run(
        cargo(&["test", "--workspace", "--locked"])
            .args(args.selection())
            .env("PROXYD_BIN", agent),
    )?;
    if args.without_root {
        println!("{WITHOUT_ROOT}: package {ROOT_PACKAGE} was left out");
    }
    Ok(())
}

impl Args {
    fn profile(&self) -> &[&str] {
        if self.release { &["--release"] } else { &[] }
    }

    fn selection(&self) -> Vec<&str> {
        let mut selection = self.profile().to_vec();
        if self.without_root {
            selection.extend(["--exclude", ROOT_PACKAGE]);
        }
        selection.extend(self.cargo_args.iter().map(String::as_str));
        selection
    }
}

fn install_missing() -> anyhow::Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = |names: Vec<&str>| names.join(" ");
    let programs = list(missing.iter().map(|(program, _)| *program).collect());
    let packages = list(missing.iter().map(|(_, package)| *package).collect());
    if find_program("apt-get").is_none() {
        bail!(
            "missing: {programs}\ninstall them; on Debian and Ubuntu the packages are: {packages}"
        );
    }
    println!("missing: {programs}: installing {packages}");
    let install =
        format!("apt-get update && apt-get install -y --no-install-recommends {packages}");
    tools::run(command("sh", &["-c", &install]).env("DEBIAN_FRONTEND", "noninteractive"))
        .with_context(|| format!("{packages} cannot be installed"))
}

/// Whether this process runs as root: `/proc/self` belongs to the effective user (proc(5)).
fn is_root() -> anyhow::Result<bool> {
    Ok(fs::metadata("/proc/self")
        .context("/proc is not mounted")?
        .uid()
        == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn check(line: &str, selection: &str) {
        let args = Cli::parse_from(line.split(' ')).args;
        assert_eq!(args.selection().join(" "), selection, "{line}");
    }

    #[test]
    fn options_reach_cargo_test() {
        check("test", "");
        check("test --release -- affinity", "--release affinity");
        check("test --without-root", "--exclude proxyd-tests");
        check("test -- --doc -- --nocapture", "--doc -- --nocapture");
    }
}
