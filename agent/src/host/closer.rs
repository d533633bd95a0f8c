//! Closes sockets whose endpoints are gone, beside the agent's work: a thread of its own, with a mailbox. I/O.
//!
//! A socket that was balanced when it connected talks to its endpoint for as long as it is open, since nothing stands
//! between them. The programs remember whom a socket called (`dataplane/ebpf/peers`), a job says which flows of changed front
//! ends go on, and the rest is closed: so never a socket that called the endpoint itself. Those sockets are in the namespaces of
//! pods, which the thread enters one by one.
//!
//! Sending a job never waits. Jobs are merged; after each look the thread rests for as long as that took, and for a
//! second at least. It looks twice, since a socket may have been about to connect. What is not found by then is gone.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::namespaces;
use super::priority::give_way;
use super::sock_diag::{SockDiag, SockDiagError};
use crate::dataplane::DataplaneError;
use crate::dataplane::ebpf::Places;
use crate::dataplane::ebpf::peer::{Called, of_sockets, questions};
use crate::dataplane::ebpf::peers::Peers;
use crate::plan::Flows;

/// Before the first look after a rest: a socket that a program sent to a back end is connected a moment later.
const SETTLE: Duration = Duration::from_millis(10);

/// Between looks, at least.
const REST: Duration = Duration::from_secs(1);

/// How often a job is looked after.
const LOOKS: usize = 2;

/// The thread, as seen from those that send it jobs. It ends when this is dropped.
#[derive(Debug)]
pub struct Closer {
    jobs: Sender<Flows>,
}

/// Why sockets may be left.
#[derive(Debug, thiserror::Error)]
enum CloserError {
    #[error(transparent)]
    Maps(#[from] DataplaneError),
    #[error(transparent)]
    Sockets(#[from] SockDiagError),
    #[error(
        "a network namespace cannot be entered, for which it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE: {0}"
    )]
    Namespaces(#[from] io::Error),
}

struct Worker {
    mailbox: Receiver<Flows>,
    places: Places,
    /// What no socket was found for at the last look.
    missing: Called,
    /// The trouble that was told of.
    told: BTreeSet<String>,
}

/// This kernel cannot do it.
struct Unsupported;

impl Closer {
    /// Starts the thread, for programs that keep their maps there.
    ///
    /// # Errors
    /// That the machine has no thread left.
    pub fn start(places: &Places) -> io::Result<Self> {
        let (jobs, mailbox) = mpsc::channel();
        let worker = Worker {
            mailbox,
            places: places.clone(),
            missing: Called::new(),
            told: BTreeSet::new(),
        };
        let thread = thread::Builder::new().name("close-sockets".to_owned());
        thread.spawn(move || worker.run())?;
        Ok(Self { jobs })
    }

    /// Has the sockets closed whose flows are stale. Returns at once.
    pub fn send(&self, job: Flows) {
        if !job.is_empty() {
            // The thread has ended where the kernel cannot close sockets, which was said.
            let _ = self.jobs.send(of_sockets(job));
        }
    }
}

impl Worker {
    fn run(mut self) {
        give_way();
        let mut due = Instant::now();
        while let Ok(mut todo) = self.mailbox.recv() {
            due = due.max(Instant::now() + SETTLE);
            let mut looks = LOOKS;
            while looks > 0 {
                let pause = due.saturating_duration_since(Instant::now());
                match self.mailbox.recv_timeout(pause) {
                    Ok(newer) => {
                        todo.merge(newer);
                        looks = LOOKS;
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        looks -= 1;
                        let started = Instant::now();
                        if self.look(&todo).is_err() {
                            return;
                        }
                        due = Instant::now() + started.elapsed().max(REST);
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// Looks once. Each trouble is told once.
    fn look(&mut self, flows: &Flows) -> Result<(), Unsupported> {
        let Err(error) = self.close(flows) else {
            return Ok(());
        };
        let text = error.to_string();
        if !self.told.contains(&text) {
            warn!("clients with connected sockets may keep endpoints that are gone: {text}");
            self.told.insert(text);
        }
        match error {
            CloserError::Sockets(SockDiagError::Unsupported) => Err(Unsupported),
            _ => Ok(()),
        }
    }

    /// Closes the sockets whose flows are stale, and forgets them. Trouble with one is told when all were tried.
    fn close(&mut self, flows: &Flows) -> Result<(), CloserError> {
        let started = Instant::now();
        let mut peers = Peers::open(&self.places, flows)?;
        let stale = peers.stale(flows)?;
        if stale.is_empty() {
            self.missing.clear();
            return Ok(());
        }
        let mut left = stale.clone();
        let mut trouble = None;
        let visited = namespaces::visit(|| {
            match close_here(&mut left) {
                Ok(()) => {}
                Err(error @ SockDiagError::Unsupported) => {
                    trouble = Some(error.into());
                    return ControlFlow::Break(());
                }
                Err(error) => trouble = trouble.take().or(Some(error.into())),
            }
            if left.is_empty() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        debug!(
            "sockets: closed {} of {} to endpoints that are gone, in {} namespaces, in {} µs",
            stale.len() - left.len(),
            stale.len(),
            visited.count,
            started.elapsed().as_micros()
        );
        // One that is nowhere twice is closed, not connected, or where nobody may look.
        let is_over = |peer| {
            let is_gone = trouble.is_none() && self.missing.contains_key(peer);
            is_gone || !left.contains_key(peer)
        };
        for (peer, called) in stale.iter().filter(|(peer, _)| is_over(peer)) {
            peers.forget(peer, *called)?;
        }
        let refused = visited.refused.filter(|_| !left.is_empty());
        self.missing = left;
        let trouble = trouble.or(refused.map(CloserError::Namespaces));
        trouble.map_or(Ok(()), Err)
    }
}

/// Closes those of the sockets that are in the calling thread's namespace, and takes them out. Trouble with one is
/// told when all were tried.
fn close_here(left: &mut Called) -> Result<(), SockDiagError> {
    let mut sockets = SockDiag::open()?;
    let mut result = Ok(());
    for question in questions(left.keys()) {
        let found = sockets.connected(&question, |peer| left.contains_key(peer))?;
        for connected in &found {
            match sockets.close(connected) {
                Ok(()) => drop(left.remove(&connected.peer)),
                Err(error @ SockDiagError::Unsupported) => return Err(error),
                Err(error) => result = result.and(Err(error)),
            }
        }
    }
    result
}
