//! Many clients that open connections one after the other while something happens, and what became of them.
//!
//! Closed loops, each paced: a client connects, asks who is there, closes, and begins anew.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::cluster::Host;
use crate::wait::eventually;
use crate::world::PATIENCE;

/// Clients at work. Dropping it stops them.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What clients saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// How many answers each server gave at each address.
    pub answers: BTreeMap<(SocketAddr, String), usize>,
    /// Every connection without an answer: where to, and why.
    pub failures: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// How many connections each client has behind it.
    rounds: Vec<AtomicUsize>,
    seen: Mutex<Seen>,
}

impl Load {
    /// Starts `count` clients on a host, spread evenly over the addresses; each begins a connection every `pace` at
    /// most.
    pub fn start(from: &Host, to: &[SocketAddr], count: usize, pace: Duration) -> Self {
        // A client's port is in TIME_WAIT for a minute; there are to be enough of them, and the kernel may use one
        // again after a second (net.ipv4.tcp_tw_reuse).
        from.netns.sysctls(&[
            ("net/ipv4/ip_local_port_range", "1024 65535"),
            ("net/ipv4/tcp_tw_reuse", "1"),
        ]);
        let shared = Arc::new(Shared {
            rounds: (0..count).map(|_| AtomicUsize::default()).collect(),
            ..Shared::default()
        });
        let targets = to.to_vec();
        // A thread is in the namespace of the one that starts it.
        let thread = from.enter(|| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || run(&shared, &targets, pace))
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Waits until every client has begun and ended another connection.
    ///
    /// # Panics
    /// If one of them hangs.
    #[track_caller]
    pub fn wait_for_round(&self) {
        let now = |shared: &Shared| -> Vec<usize> {
            let rounds = shared.rounds.iter();
            rounds.map(|round| round.load(Ordering::SeqCst)).collect()
        };
        let before = now(&self.shared);
        eventually("every client has come round", 3 * PATIENCE, || {
            // One more is the end of the connection that was under way.
            now(&self.shared)
                .iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + 2)
        });
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.shared.seen().clone()
    }

    /// Stops the clients when their connections have ended, and tells what they saw.
    pub fn finish(mut self) -> Seen {
        self.stop();
        self.seen()
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Seen {
    /// How many connections were answered.
    pub fn total(&self) -> usize {
        self.answers.values().sum()
    }

    /// The servers that answered at an address.
    pub fn servers(&self, at: SocketAddr) -> Vec<&str> {
        let here = self.answers.keys().filter(|(address, _)| *address == at);
        here.map(|(_, server)| server.as_str()).collect()
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Arc<Shared>, targets: &[SocketAddr], pace: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs a few descriptors only");
    let clients = LocalSet::new();
    for number in 0..shared.rounds.len() {
        let to = targets[number % targets.len()];
        clients.spawn_local(client(Arc::clone(shared), number, to, pace));
    }
    runtime.block_on(clients);
}

async fn client(shared: Arc<Shared>, number: usize, to: SocketAddr, pace: Duration) {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let result = match timeout(PATIENCE, once(to)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        {
            let mut seen = shared.seen();
            match result {
                Ok(server) => *seen.answers.entry((to, server)).or_default() += 1,
                Err(error) => seen.failures.push(format!("{to}: {error}")),
            }
        }
        shared.rounds[number].fetch_add(1, Ordering::SeqCst);
    }
}

/// One connection: who answers?
async fn once(to: SocketAddr) -> io::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(to).await?);
    stream.write_all(b"who?\n").await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    match line.split_once(' ') {
        Some((server, _)) => Ok(server.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// How many SYNs a host had to send again. A client waits a second before it does, and the kernel answers a SYN by
/// itself, so each is a packet that was dropped: a failure that a connection hides.
///
/// # Panics
/// If the kernel does not tell.
pub fn syns_sent_again(host: &Host) -> u64 {
    let text = host.enter(|| fs::read_to_string("/proc/thread-self/net/netstat"));
    let text = text.expect("/proc is mounted");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap_or_default().split(' ');
    let values = lines.next().unwrap_or_default().split(' ');
    let found = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans");
    let count = found.and_then(|(_, value)| value.parse().ok());
    count.expect("the kernel counts TCPSynRetrans")
}
