//! Anonymous network namespaces.
//!
//! A [`Netns`] has no name under `/run/netns`: it lives as long as something holds a file descriptor, a socket or a
//! process in it, so the kernel removes it on every way out of a test, SIGKILL included. Nothing here touches the
//! namespace of the calling thread: all work is done on threads that enter the namespace and end there.
//!
//! Needs CAP_SYS_ADMIN and CAP_NET_ADMIN. Links, addresses and routes are in [`link`].

mod conntrack;
pub mod link;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace of our own, with its loopback interface up.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    /// The cgroup that threads in it are in, if it is another than that of the process.
    cgroup: OnceLock<PathBuf>,
}

impl Netns {
    /// Makes an empty namespace.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; whatever the kernel says otherwise.
    pub fn new() -> io::Result<Self> {
        let fd = thread::spawn(|| -> io::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })
        .join()
        .expect("the thread only makes two system calls")?;
        let netns = Self {
            fd,
            cgroup: OnceLock::new(),
        };
        link::set_loopback_up(&netns).map_err(io::Error::other)?;
        Ok(netns)
    }

    /// Makes threads that [`enter`](Self::enter) from now on be in a cgroup of version 2, one of threads.
    ///
    /// # Panics
    /// If they are in one already.
    pub fn join_cgroup(&self, cgroup: &Path) {
        let joined = self.cgroup.set(cgroup.join("cgroup.threads"));
        joined.expect("a namespace is in one cgroup");
    }

    /// Runs `work` on a thread inside the namespace and returns what it returns; a panic in it goes on here.
    ///
    /// Sockets made by `work` stay in the namespace wherever they are moved to. Processes are better started with
    /// [`spawn`](Self::spawn).
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.fd, CloneFlags::CLONE_NEWNET)
                        .expect("the descriptor is a network namespace");
                    if let Some(cgroup) = self.cgroup.get() {
                        fs::write(cgroup, "0").expect("the thread can be in the cgroup");
                    }
                    work()
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a program inside the namespace. It is killed when this process ends, however it ends.
    ///
    /// `configure` gets a command that already stands for `program`, to add arguments and streams.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(&self, program: &str, configure: impl FnOnce(&mut Command)) -> io::Result<Child> {
        // setpriv(1) sets PR_SET_PDEATHSIG and becomes the program, so the process id is the program's own.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        configure(&mut command);
        let (reply, answer) = mpsc::channel();
        let start = Start {
            netns: self.fd.try_clone()?,
            command,
            reply,
        };
        spawner()
            .send(start)
            .expect("the spawner thread never ends");
        answer.recv().expect("the spawner thread always answers")
    }

    /// Runs a program inside the namespace to its end, with `stdin` as its input.
    ///
    /// # Errors
    /// If the program cannot be started or its streams fail; its exit status is in the result.
    pub fn run(&self, program: &str, args: &[&str], stdin: &str) -> io::Result<Output> {
        let mut child = self.spawn(program, |command| {
            command
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        })?;
        let mut input = child.stdin.take().expect("stdin is piped");
        thread::scope(|scope| {
            // Written beside reading the output: neither pipe can fill up and block the other. A program that does
            // not read its input is no error, so neither is the broken pipe.
            scope.spawn(move || input.write_all(stdin.as_bytes()).ok());
            child.wait_with_output()
        })
    }

    /// Makes connection tracking forget all connections.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn forget_connections(&self) {
        self.enter(conntrack::flush)
            .expect("connections can be forgotten");
    }

    /// Sets a sysctl of the namespace, named by its path below `/proc/sys`: `"net/ipv4/ip_forward"`.
    ///
    /// # Panics
    /// If the kernel has no such sysctl or refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) {
        self.sysctls(&[(path, value)]);
    }

    /// Sets several sysctls, in order; see [`sysctl`](Self::sysctl).
    pub fn sysctls(&self, settings: &[(&str, &str)]) {
        self.enter(|| {
            for (path, value) in settings {
                fs::write(format!("/proc/sys/{path}"), value)
                    .unwrap_or_else(|error| panic!("sysctl {path}={value}: {error}"));
            }
        });
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A program to start and where its handle goes.
struct Start {
    netns: OwnedFd,
    command: Command,
    reply: Sender<io::Result<Child>>,
}

/// The one thread that starts all programs.
///
/// PR_SET_PDEATHSIG is about the *thread* that forked: if a short-lived thread started a program, the program would be
/// killed when that thread ends (prctl(2)). So this thread lives as long as the process.
fn spawner() -> &'static Sender<Start> {
    static SPAWNER: OnceLock<Sender<Start>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Start>();
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for Start {
                    netns,
                    mut command,
                    reply,
                } in receiver
                {
                    let child = setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
                    // The other side waits for the answer; if it is gone, so is the wish for the child.
                    drop(reply.send(child.and_then(|()| command.spawn())));
                }
            })
            .expect("a thread can be started");
        sender
    })
}
