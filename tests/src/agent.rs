//! Runs the built `proxyd` program in a namespace, and `nft` beside it.
//!
//! The program is the one that cargo built beside the running executable; `cargo xtask test` builds it first, for
//! cargo does not build other packages' programs for tests. `PROXYD_BIN` names another.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::wait;

/// Names the program to run instead of the one beside the test.
pub const BINARY_VARIABLE: &str = "PROXYD_BIN";

/// How long the program may take to end after a SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A running agent. Dropping it kills it, and prints what it logged if the test failed.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts the agent in a namespace.
    ///
    /// # Panics
    /// If the program is not built or does not start.
    pub fn start(netns: &Netns, args: &[&str]) -> Self {
        Self::start_binary(&binary(), netns, args)
    }

    /// As [`start`](Self::start), with a program of the caller's choice.
    ///
    /// # Panics
    /// If the program does not start.
    pub fn start_binary(binary: &str, netns: &Netns, args: &[&str]) -> Self {
        let mut child = netns
            .spawn(binary, |command| {
                command
                    .args(args)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped());
            })
            .unwrap_or_else(|error| panic!("cannot start {binary}: {error}"));
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || collect(stderr, &log)
        });
        Self {
            child,
            log,
            reader: Some(reader),
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What was logged so far, one line each.
    pub fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    /// Waits for a line that contains `text`, also one that was logged before, and returns it.
    ///
    /// # Panics
    /// If there is none within `patience`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str, patience: Duration) -> String {
        wait::poll(patience, || {
            lock(&self.log)
                .iter()
                .find(|line| line.contains(text))
                .cloned()
        })
        .unwrap_or_else(|| panic!("the agent did not log {text:?} within {patience:?}"))
    }

    /// The exit status, if the agent has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Sends a signal to the agent.
    ///
    /// # Panics
    /// If the agent has ended already and was waited for.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("process ids are below 2^22");
        kill(Pid::from_raw(pid), signal).expect("the agent runs, or has not been waited for");
    }

    /// Asks the agent to end (SIGTERM), waits, and returns how it ended and what it logged.
    ///
    /// # Panics
    /// If it still runs after ten seconds.
    pub fn terminate(mut self) -> (ExitStatus, Vec<String>) {
        self.signal(Signal::SIGTERM);
        let status = wait::poll(END_PATIENCE, || self.exited());
        let status = status.unwrap_or_else(|| {
            panic!("the agent does not end within {END_PATIENCE:?} of a SIGTERM")
        });
        self.finish_log();
        (status, self.log())
    }

    /// Waits until the agent ends by itself, and returns how it ended and what it logged.
    ///
    /// # Panics
    /// If it still runs after `patience`.
    pub fn wait(mut self, patience: Duration) -> (ExitStatus, Vec<String>) {
        let status = wait::poll(patience, || self.exited());
        let status = status.unwrap_or_else(|| panic!("the agent does not end within {patience:?}"));
        self.finish_log();
        (status, self.log())
    }

    /// Ends the agent without giving it a chance to do anything (SIGKILL), and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Neither fails but for a child that was waited for already, and then there is nothing to do.
        self.child.kill().ok();
        self.child.wait().ok();
        self.finish_log();
    }

    /// Waits for the last lines: the pipe ends with the process.
    fn finish_log(&mut self) {
        drop(self.reader.take().map(JoinHandle::join));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            for line in lock(&self.log).iter() {
                eprintln!("agent: {line}");
            }
        }
    }
}

/// Runs the agent to its end in a namespace: `--dry-run` and other things that do not stay.
///
/// # Panics
/// If the program is not built or does not start.
pub fn run_once(netns: &Netns, args: &[&str]) -> Output {
    let binary = binary();
    netns
        .run(&binary, args, "")
        .unwrap_or_else(|error| panic!("cannot run {binary}: {error}"))
}

/// Runs `nft` in a namespace, with `stdin` as the file `-`, and returns what it printed.
///
/// # Panics
/// If it is not installed, or fails.
#[track_caller]
pub fn nft(netns: &Netns, args: &[&str], stdin: &str) -> String {
    let output = netns.run("nft", args, stdin).expect("nft is installed");
    assert!(
        output.status.success(),
        "nft {args:?} ended with {}: {}\n{stdin}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("nft prints UTF-8")
}

/// The path of the program to run.
///
/// # Panics
/// If there is none, saying how to build it.
pub fn binary() -> String {
    let path = env::var_os(BINARY_VARIABLE)
        .map_or_else(beside_this_executable, |path| Some(PathBuf::from(path)));
    path.filter(|path| path.is_file())
        .unwrap_or_else(|| panic!("no proxyd to run: use `cargo xtask test`, which builds it, or set {BINARY_VARIABLE}"))
        .into_os_string()
        .into_string()
        .expect("the path is UTF-8")
}

/// `target/<profile>/proxyd`, seen from a test in `target/<profile>/deps` or a program in `target/<profile>`.
fn beside_this_executable() -> Option<PathBuf> {
    let executable = env::current_exe().ok()?;
    executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("proxyd"))
        .find(|path| path.is_file())
}

fn collect(stderr: ChildStderr, log: &Mutex<Vec<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        lock(log).push(line);
    }
}

/// A panic elsewhere must not hide the log.
fn lock(log: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
