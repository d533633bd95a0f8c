//! `cargo xtask check`: what CI runs before the tests, and nothing that CI does not run.
//!
//! Every step runs, whatever the others say; the summary at the end names those that failed and how to repeat them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::ebpf;
use crate::tidy;
use crate::tools::{self, cargo, command};

const CARGO_DENY_VERSION: &str = "0.20.2";

/// cargo-deny's other check. `deny.toml` says why it is not part of this.
const ADVISORIES_NOT_RUN: &str = "NOT RUN: advisories: the database is a git repository that CI cannot reach; by hand: cargo deny check advisories";

/// Runs all steps; an error if any of them failed.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut steps = Steps::default();
    steps.run("tidy", "cargo xtask tidy", tidy::run);
    steps.command("format", cargo(&["fmt", "--all", "--check"]));
    let of_ebpf = ["--manifest-path", "ebpf/Cargo.toml"];
    steps.command(
        "format, ebpf",
        cargo(&[&["fmt", "--all", "--check"][..], &of_ebpf].concat()),
    );
    steps.command(
        "clippy",
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]),
    );
    steps.command("docs", docs());
    steps.run("ebpf objects", "cargo xtask ebpf verify", ebpf::verify);
    steps.command("fuzz target", fuzz_target());
    steps.run(
        "dependencies",
        "cargo deny --locked check bans licenses sources",
        dependencies,
    );
    steps.finish()
}

fn docs() -> Command {
    let mut docs = cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    docs
}

/// Checks the fuzz target, which is in a workspace of its own, and without libFuzzer, which needs a C++ compiler.
fn fuzz_target() -> Command {
    cargo(&[
        "clippy",
        "--manifest-path",
        "agent/fuzz/Cargo.toml",
        "--target-dir",
        "target",
        "--no-default-features",
        "--locked",
        "--",
        "-D",
        "warnings",
    ])
}

fn dependencies() -> anyhow::Result<()> {
    let deny = cargo_deny()?;
    tools::run(&mut command(
        deny,
        &["--locked", "check", "bans", "licenses", "sources"],
    ))?;
    println!("{ADVISORIES_NOT_RUN}");
    Ok(())
}

/// The cargo-deny to use: the one in PATH or in `target/tools`, where it is installed if there is none.
fn cargo_deny() -> anyhow::Result<PathBuf> {
    if let Some(found) = tools::find_program("cargo-deny") {
        return Ok(found);
    }
    let dir = tools::root().join("target/tools");
    let installed = dir.join("bin/cargo-deny");
    if !installed.is_file() {
        let mut install = tools::cargo_install("cargo-deny", CARGO_DENY_VERSION, &dir);
        tools::run(&mut install)?;
    }
    Ok(installed)
}

/// The steps taken so far and how they ended.
#[derive(Default)]
struct Steps(Vec<Step>);

struct Step {
    name: &'static str,
    /// What to type to run this step alone.
    repeat: String,
    failure: Option<String>,
    took: Duration,
}

impl Steps {
    fn command(&mut self, name: &'static str, mut command: Command) {
        self.run(name, &tools::shown(&command), || tools::run(&mut command));
    }

    fn run(&mut self, name: &'static str, repeat: &str, step: impl FnOnce() -> anyhow::Result<()>) {
        println!("\n== {name}");
        let start = Instant::now();
        let failure = step().err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            println!("FAILED: {name}: {failure}");
        }
        self.0.push(Step {
            name,
            repeat: repeat.to_owned(),
            failure,
            took: start.elapsed(),
        });
    }

    fn finish(&self) -> anyhow::Result<()> {
        println!("\n{}", self.summary());
        let failed: Vec<_> = self
            .0
            .iter()
            .filter(|step| step.failure.is_some())
            .map(|step| step.name)
            .collect();
        if !failed.is_empty() {
            bail!("check failed: {}", failed.join(", "));
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let mut lines = vec!["== summary".to_owned()];
        for Step {
            name,
            repeat,
            failure,
            took,
        } in &self.0
        {
            let outcome = if failure.is_some() { "FAILED" } else { "ok" };
            lines.push(format!("{name:<13} {outcome:<7} {:>4} s", took.as_secs()));
            if let Some(failure) = failure {
                lines.push(format!("    {failure}"));
                lines.push(format!("    repeat it: {repeat}"));
            }
        }
        lines.push(ADVISORIES_NOT_RUN.to_owned());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_steps_run_and_failed_ones_say_how_to_repeat_them() {
        let mut steps = Steps::default();
        steps.command("first", command("sh", &["-c", "exit 2"]));
        steps.run("second", "repeat second", || Ok(()));
        assert_eq!(
            steps.summary().lines().collect::<Vec<_>>(),
            [
                "== summary",
                "first         FAILED     0 s",
                "    sh ended with exit status: 2",
                "    repeat it: sh -c 'exit 2'",
                "second        ok         0 s",
                ADVISORIES_NOT_RUN,
            ]
        );
        assert_eq!(
            steps.finish().unwrap_err().to_string(),
            "check failed: first"
        );
    }

    #[test]
    fn steps_that_pass_make_a_check_that_passes() {
        let mut steps = Steps::default();
        steps.run("only", "repeat only", || Ok(()));
        steps.finish().unwrap();
    }
}
