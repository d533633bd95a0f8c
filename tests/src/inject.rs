//! System calls of a running program that fail or take long on purpose: strace(1), attached to it.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::wait;

/// How long strace may take to attach, and to let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Interferes with a program while it lives; the program goes on unharmed when it is dropped.
#[derive(Debug)]
pub struct Injection(Child);

impl Injection {
    /// Attaches to one thread, or with `all_threads` to each. `what` is the argument of strace's `--inject`; with
    /// `path`, only system calls on files at or below it are meant. `None`, with the reason printed, where nobody may
    /// trace processes.
    ///
    /// # Panics
    /// If strace is not installed or does not know `what`.
    pub fn attach(
        netns: &Netns,
        pid: u32,
        all_threads: bool,
        what: &str,
        path: &[&str],
    ) -> Option<Self> {
        let child = netns.spawn("strace", |command| {
            command.args(["--quiet=all", "--output=/dev/null"]);
            if all_threads {
                command.arg("--follow-forks");
            }
            for path in path {
                command.args(["--trace-path", path]);
            }
            let inject = format!("--inject={what}");
            command.args([&inject, "--attach", &pid.to_string()]);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        });
        let mut injection = Self(child.expect("strace can be started"));
        let traced = wait::poll(PATIENCE, || {
            let ended = injection.0.try_wait().expect("the child is ours").is_some();
            let is_traced = tracer(pid) == Some(injection.0.id());
            (ended || is_traced).then_some(is_traced)
        });
        if traced == Some(true) {
            return Some(injection);
        }
        injection.0.kill().ok();
        let mut said = String::new();
        if let Some(mut stderr) = injection.0.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said).ok();
        }
        assert!(said.contains("not permitted"), "strace: {said}");
        println!("NOT RUN: system calls that fail on purpose: {said}");
        None
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Asked to end, strace lets go of what it traces first. Killed, it would do so too.
        let pid = i32::try_from(self.0.id()).expect("process ids are below 2^22");
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        if wait::poll(PATIENCE, || self.0.try_wait().ok().flatten()).is_none() {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
}

/// Who traces a process.
fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("TracerPid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
