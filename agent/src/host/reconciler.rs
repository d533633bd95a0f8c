//! Deletes stale flows beside the agent's work: a thread of its own, with a mailbox.
//!
//! A walk judges what it has read when the jobs of all commits are there that may have brought it about (`mailbox`), and leaves alone
//! the flows of a family whose rules are not known.
//! Sending a job never waits. Jobs that come while one is done are merged into it and into the next; after each walk through
//! the table the thread rests for as long as that took, and for a second at least, so it takes half of one core at most. What failed is
//! kept and tried again. The thread ends when the reconciler is dropped, at the next buffer of flows.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{MembarrierCommand, membarrier};
use tracing::{debug, info, warn};

use super::conntrack::{ConntrackError, Counts, Steps, Walk};
use super::mailbox::{Dropped, Mailbox, Outbox, mailbox};
use super::priority::give_way;
use crate::model::{Family, PerFamily};
use crate::plan::{Flow, Flows};

/// How the work is spread over time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Before a walk. A packet that the old rules judged is in the table only when it leaves the machine's stack. The kernel tells when all
    /// are that it is forwarding ([`settle`]); a datagram that a process of this machine sends may take a moment longer.
    settle: Duration,
    /// After a walk, at least. The kernel walks through empty parts of the table without a break, 24 ms for 262,144
    /// places, and nothing else runs on that core.
    rest: Duration,
    /// After a failure, if no job comes.
    retry: Duration,
}

const PACE: Pace = Pace {
    settle: Duration::from_millis(10),
    rest: Duration::from_secs(1),
    retry: Duration::from_secs(30),
};

/// What a walk through the table did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How long it took.
    pub duration: Duration,
    /// For how many front ends it was.
    pub frontends: usize,
    /// How many flows of UDP there are, and of those that nobody has answered.
    pub seen: u64,
    /// How many were stale, and were deleted; `None` in a family that no front end was of.
    pub deleted: PerFamily<Option<u64>>,
}

/// The thread, as seen from those that send it jobs.
#[derive(Debug)]
pub struct Reconciler {
    /// Always there but while it is dropped.
    jobs: Option<Outbox>,
    thread: Option<JoinHandle<()>>,
}

impl Reconciler {
    /// Starts the thread. It works in the network namespace of the calling thread, and calls `report` after each
    /// walk through the table.
    ///
    /// # Errors
    /// That the machine has no thread left.
    pub fn start(report: impl FnMut(Report) + Send + 'static) -> io::Result<Self> {
        Self::start_with(Walk::start, report, PACE)
    }

    /// As [`start`](Self::start), with walks and pauses of the caller's choice.
    fn start_with<S: Steps>(
        walk: impl FnMut() -> Result<S, ConntrackError> + Send + 'static,
        report: impl FnMut(Report) + Send + 'static,
        pace: Pace,
    ) -> io::Result<Self> {
        let (jobs, mailbox) = mailbox();
        let worker = Worker {
            mailbox,
            todo: Flows::default(),
            start_walk: walk,
            report,
            pace,
            failure: None,
        };
        let thread = thread::Builder::new().name("stale-flows".to_owned());
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread.spawn(move || worker.run())?),
        })
    }

    /// A commit of a family is about to be made. Until it has ended, nothing is deleted that it may have brought about.
    pub fn begin(&self, family: Family) {
        if let Some(jobs) = &self.jobs {
            jobs.begin(family);
        }
    }

    /// A commit was made: has the flows deleted that the job says are stale. `None`: it failed. Returns at once.
    pub fn end(&self, family: Family, job: Option<Flows>) {
        if let Some(jobs) = &self.jobs {
            jobs.end(family, job);
        }
    }
}

impl Drop for Reconciler {
    fn drop(&mut self) {
        self.jobs = None;
        // A panic of the thread was printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Worker<W, R> {
    mailbox: Mailbox,
    /// The jobs that are not done yet, as one.
    todo: Flows,
    start_walk: W,
    report: R,
    pace: Pace,
    /// The last failure, if the last walk failed.
    failure: Option<String>,
}

impl<S, W, R> Worker<W, R>
where
    S: Steps,
    W: FnMut() -> Result<S, ConntrackError>,
    R: FnMut(Report),
{
    fn run(mut self) {
        give_way();
        while self.work().is_ok() {}
    }

    /// Waits for a job, does it, and rests.
    fn work(&mut self) -> Result<(), Dropped> {
        while !self.is_workable() {
            let job = self.mailbox.wait(None)?;
            self.todo.merge(job.unwrap_or_default());
        }
        self.rest(self.pace.settle)?;
        settle();
        let started = Instant::now();
        // What is to be done by the next walk: what came during this one, and what nobody knows now.
        let mut newer = Flows::default();
        let mut unknown = PerFamily::default();
        let result = self.walk(&mut newer, &mut unknown)?;
        let duration = started.elapsed();
        let pause = duration.max(self.pace.rest);
        match result {
            Ok(Counts { seen, deleted }) => {
                let frontends = self.todo.count();
                let deleted = PerFamily::from_fn(|family| {
                    let is_asked = self.todo.has_family(family) && !unknown.get(family);
                    is_asked.then_some(*deleted.get(family))
                });
                self.todo.retain(|family| *unknown.get(family));
                self.todo.merge(newer);
                self.succeeded(Report {
                    duration,
                    frontends,
                    seen,
                    deleted,
                });
                self.rest(pause)?;
            }
            Err(error) => {
                self.failed(error.to_string());
                if self.rest(pause)? == 0 {
                    self.wait_to_try_again()?;
                }
            }
        }
        Ok(())
    }

    /// Whether there is something to do in a family whose rules are known.
    fn is_workable(&self) -> bool {
        let mut families = Family::ALL.into_iter();
        families.any(|family| self.todo.has_family(family) && self.mailbox.is_known(family))
    }

    fn succeeded(&mut self, report: Report) {
        if self.failure.take().is_some() {
            info!("stale flows can be deleted again");
        }
        let Report {
            duration,
            frontends,
            seen,
            deleted,
        } = report;
        debug!(
            "tracked flows: deleted {} stale ones of {seen}, for {frontends} front ends, in {} µs",
            deleted.v4.unwrap_or(0) + deleted.v6.unwrap_or(0),
            duration.as_micros()
        );
        (self.report)(report);
    }

    fn failed(&mut self, text: String) {
        // The same failure again is no news.
        if self.failure.as_ref() != Some(&text) {
            warn!(
                "clients of changed Services may go on to where no endpoint is: {text}; trying again"
            );
        }
        self.failure = Some(text);
    }

    /// Deletes the flows that are stale. Jobs that come meanwhile are taken into the one under way, so that no flow is
    /// deleted that a newer job keeps, and into `newer`, which is to be done as a whole. Flows of families that are
    /// `unknown` for a part of the walk are left alone.
    fn walk(
        &mut self,
        newer: &mut Flows,
        unknown: &mut PerFamily<bool>,
    ) -> Result<Result<Counts, ConntrackError>, Dropped> {
        let mut walk = match (self.start_walk)() {
            Ok(walk) => walk,
            Err(error) => return Ok(Err(error)),
        };
        let mut total = Counts::default();
        loop {
            match walk.read() {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(total)),
                Err(error) => return Ok(Err(error)),
            }
            // What was read may be as new as the last commit.
            let todo = &mut self.todo;
            self.mailbox.catch_up(|job| {
                todo.merge(job.clone());
                newer.merge(job);
            })?;
            for family in Family::ALL {
                *unknown.get_mut(family) |= !self.mailbox.is_known(family);
            }
            let is_stale = |flow: &Flow| {
                let family = Family::of(flow.destination.ip());
                !unknown.get(family) && self.todo.is_stale(flow)
            };
            match walk.delete_stale(is_stale) {
                Ok(counts) => total += counts,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Does nothing for a while but taking jobs; tells how many.
    fn rest(&mut self, pause: Duration) -> Result<usize, Dropped> {
        let until = Instant::now() + pause;
        let mut jobs = 0;
        while let Some(job) = self.mailbox.wait(Some(until))? {
            self.todo.merge(job);
            jobs += 1;
        }
        Ok(jobs)
    }

    /// Waits for a job, but not for ever.
    fn wait_to_try_again(&mut self) -> Result<(), Dropped> {
        let until = Instant::now().checked_add(self.pace.retry);
        if let Some(job) = self.mailbox.wait(until)? {
            self.todo.merge(job);
        }
        Ok(())
    }
}

/// Waits until every packet that the kernel is forwarding by earlier rules has passed them all: those are read in a section of RCU, and this waits until
/// all that have begun are over (kernel/sched/membarrier.c). Where the kernel does not do that, time alone has to do.
fn settle() {
    let _ = membarrier(MembarrierCommand::Global);
}

#[cfg(test)]
mod tests;
