//! Closes sockets whose endpoints are gone, beside the agent's work: a thread of its own, with a mailbox. I/O.
//!
//! A socket that was balanced when it connected talks to its endpoint for as long as it is open, since nothing stands
//! between them. The programs remember whom a socket called (`dataplane/ebpf/peers`), a job says which flows of changed front
//! ends go on, and the rest is closed: so never a socket that called the endpoint itself. Those sockets are in the namespaces of
//! pods, which the thread enters one by one.
//!
//! What the programs remember is judged when the jobs of all commits are there that may have brought it about (`mailbox`).
//! Sending a job never waits. Jobs are merged; after each look the thread rests for as long as that took, and for a
//! second at least. It looks twice, since a socket may have been about to connect. What is not found by then is gone.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::mailbox::{Dropped, Mailbox, Outbox, mailbox};
use super::namespaces;
use super::priority::give_way;
use super::sock_diag::{SockDiag, SockDiagError};
use crate::dataplane::DataplaneError;
use crate::dataplane::ebpf::Places;
use crate::dataplane::ebpf::peer::{Called, of_sockets, questions};
use crate::dataplane::ebpf::peers::Peers;
use crate::model::Family;
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
    jobs: Outbox,
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
    mailbox: Mailbox,
    places: Places,
    /// What no socket was found for at the last look.
    missing: Called,
    /// The trouble that was told of.
    told: BTreeSet<String>,
}

/// This kernel cannot do it, or nobody wants it any more.
struct Over;

impl Closer {
    /// Starts the thread, for programs that keep their maps there.
    ///
    /// # Errors
    /// That the machine has no thread left.
    pub fn start(places: &Places) -> io::Result<Self> {
        let (jobs, mailbox) = mailbox();
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

    /// A commit of a family is about to be made. Until it has ended, nothing is closed that it may have brought about.
    pub fn begin(&self, family: Family) {
        self.jobs.begin(family);
    }

    /// A commit was made: has the sockets closed whose flows are stale. `None`: it failed. Returns at once.
    pub fn end(&self, family: Family, job: Option<Flows>) {
        self.jobs.end(family, job.map(of_sockets));
    }
}

impl Worker {
    fn run(mut self) {
        give_way();
        let mut todo = Flows::default();
        let mut due = Instant::now();
        let mut looks = 0;
        loop {
            let is_workable = |family| todo.has_family(family) && self.mailbox.is_known(family);
            let has_work = looks > 0 && Family::ALL.into_iter().any(is_workable);
            let Ok(job) = self.mailbox.wait(has_work.then_some(due)) else {
                return;
            };
            if let Some(newer) = job {
                if todo.is_empty() {
                    due = due.max(Instant::now() + SETTLE);
                }
                todo.merge(newer);
                looks = LOOKS;
                continue;
            }
            let started = Instant::now();
            match self.look(&mut todo) {
                Ok(true) => looks = LOOKS,
                Ok(false) => looks -= 1,
                Err(Over) => return,
            }
            due = Instant::now() + started.elapsed().max(REST);
            if looks == 0 {
                // The rest is looked after when it is known what goes on.
                todo.retain(|family| !self.mailbox.is_known(family));
                looks = if todo.is_empty() { 0 } else { LOOKS };
            }
        }
    }

    /// Looks once, and tells whether jobs came meanwhile. Each trouble is told once.
    fn look(&mut self, todo: &mut Flows) -> Result<bool, Over> {
        let mut has_newer = false;
        let result = self.close(todo, &mut has_newer)?;
        let Err(error) = result else {
            return Ok(has_newer);
        };
        let text = error.to_string();
        if !self.told.contains(&text) {
            warn!("clients with connected sockets may keep endpoints that are gone: {text}");
            self.told.insert(text);
        }
        match error {
            CloserError::Sockets(SockDiagError::Unsupported) => Err(Over),
            _ => Ok(has_newer),
        }
    }

    /// Closes the sockets whose flows are stale, and forgets them. Trouble with one is told when all were tried.
    fn close(
        &mut self,
        todo: &mut Flows,
        has_newer: &mut bool,
    ) -> Result<Result<(), CloserError>, Over> {
        let started = Instant::now();
        let opened = Peers::open(&self.places, todo).and_then(|peers| Ok((peers.called()?, peers)));
        let (mut stale, peers) = match opened {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error.into())),
        };
        // What was read may be as new as the last commit.
        let caught_up = self.mailbox.catch_up(|job| {
            todo.merge(job);
            *has_newer = true;
        });
        caught_up.map_err(|Dropped| Over)?;
        stale.retain(|peer, called| {
            self.mailbox.is_known(Family::of(called.ip())) && peer.is_stale(*called, todo)
        });
        Ok(self.close_all(peers, stale, started))
    }

    /// Closes these sockets, and forgets them.
    fn close_all(
        &mut self,
        mut peers: Peers,
        stale: Called,
        started: Instant,
    ) -> Result<(), CloserError> {
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
