//! `cargo xtask`: the project's own commands, in Rust so that they need nothing but cargo.
//!
//! This file is the command line; each command is a module of the same name. Nothing here is shipped.

mod bench;
mod check;
mod demo;
mod ebpf;
mod programs;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, documentation, dependencies and house rules: what CI runs before the tests.
    Check,
    /// Install what is missing, build the agent and run every test.
    Test(test::Args),
    /// Run the agent on the examples, between network namespaces, and show who answers.
    Demo(demo::Args),
    /// Measure start, change latency and memory on made-up clusters.
    Bench(Box<bench::Args>),
    /// The BPF programs: build them, or verify those that are committed.
    #[command(subcommand)]
    Ebpf(ebpf::Command),
    /// The house rules alone (a part of `check`; takes no time).
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => check::run(),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Ebpf(command) => ebpf::run(&command),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Not by returning it: a backtrace of xtask helps nobody whose code fails a check.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
