//! `cargo xtask test`: every test there is, on a machine that has nothing but cargo.
//!
//! Installs the programs that the tests call, builds the agent and hands its path to the tests as `PROXYD_BIN`. Tests
//! that need root are left out only when asked for, and then it says so.

use anyhow::bail;

use crate::programs;
use crate::tools::{self, cargo};

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
    let root = programs::is_root()?;
    if !root && !args.without_root {
        bail!("{WITHOUT_ROOT}\nrun as root, or pass --without-root to run the other tests");
    }
    if !args.without_root {
        programs::install_missing()?;
    }
    tools::run(cargo(&["build", "--locked", "--package", "proxyd"]).args(args.profile()))?;
    let agent = tools::target_dir()?
        .join(if args.release { "release" } else { "debug" })
        .join("proxyd");
    for targets in args.targets() {
        tools::run(
            cargo(&["test", "--workspace", "--locked"])
                .args(*targets)
                .args(args.selection())
                .env("PROXYD_BIN", &agent),
        )?;
    }
    if args.without_root {
        println!("{WITHOUT_ROOT}: package {ROOT_PACKAGE} was left out");
    }
    Ok(())
}

impl Args {
    fn profile(&self) -> &[&str] {
        if self.release { &["--release"] } else { &[] }
    }

    /// The targets of each run of `cargo test`. Documentation comes first, so that the report ends with what was
    /// tested most; who passes arguments chooses for himself.
    fn targets(&self) -> &[&[&str]] {
        if self.cargo_args.is_empty() {
            &[&["--doc"], &["--lib", "--bins", "--tests"]]
        } else {
            &[&[]]
        }
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
