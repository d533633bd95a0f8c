//! Deletes stale UDP flows beside the agent's work: a thread of its own, with a mailbox.
//!
//! Sending a job never waits. Jobs that come while one is done are merged into it and into the next; after each walk through
//! the table the thread rests for as long as that took, and for a second at least, so it takes half of one core at most. What failed is
//! kept and tried again. The thread ends when the reconciler is dropped, at the next buffer of flows.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::conntrack::{ConntrackError, Counts, Steps, Walk};
use super::priority::give_way;
use crate::model::{Frontend, PerFamily};
use crate::plan::Flows;

/// How the work is spread over time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Before a walk. A packet that the old rules judged is in the table only when it leaves the machine's stack, a moment
    /// after the rules were replaced.
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
    /// How many UDP flows there are.
    pub seen: u64,
    /// How many were stale, and were deleted; `None` in a family that no front end was of.
    pub deleted: PerFamily<Option<u64>>,
}

/// The thread, as seen from those that send it jobs.
#[derive(Debug)]
pub struct Reconciler {
    /// Always there but while it is dropped.
    jobs: Option<Sender<Flows>>,
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
        let (jobs, mailbox) = mpsc::channel();
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

    /// Has the flows deleted that the job says are stale. Returns at once.
    pub fn send(&self, job: Flows) {
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !job.is_empty()) {
            // The thread ends before we do only by a panic, which was printed.
            let _ = jobs.send(job);
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

/// The other side is gone.
struct Dropped;

struct Worker<W, R> {
    mailbox: Receiver<Flows>,
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
        if self.todo.is_empty() {
            self.todo = self.mailbox.recv().map_err(|_| Dropped)?;
        }
        self.rest(self.pace.settle)?;
        let started = Instant::now();
        let mut newer = Flows::default();
        let result = self.walk(&mut newer)?;
        let duration = started.elapsed();
        let pause = duration.max(self.pace.rest);
        match result {
            Ok(Counts { seen, deleted }) => {
                let frontends = self.todo.frontends.len();
                let deleted = PerFamily::from_fn(|family| {
                    let mut families = self.todo.frontends.keys().map(Frontend::family);
                    let is_asked = families.any(|of| of == family);
                    is_asked.then_some(*deleted.get(family))
                });
                self.todo = newer;
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

    fn succeeded(&mut self, report: Report) {
        if self.failure.take().is_some() {
            info!("stale UDP flows can be deleted again");
        }
        let Report {
            duration,
            frontends,
            seen,
            deleted,
        } = report;
        debug!(
            "UDP flows: deleted {} stale ones of {seen}, for {frontends} front ends, in {} µs",
            deleted.v4.unwrap_or(0) + deleted.v6.unwrap_or(0),
            duration.as_micros()
        );
        (self.report)(report);
    }

    fn failed(&mut self, text: String) {
        // The same failure again is no news.
        if self.failure.as_ref() != Some(&text) {
            warn!(
                "UDP clients of changed Services may go on to endpoints that are gone: {text}; trying again"
            );
        }
        self.failure = Some(text);
    }

    /// Deletes the flows that are stale. Jobs that come meanwhile are taken into the one under way, so that no flow is
    /// deleted that a newer job keeps, and into `newer`, which is to be done as a whole.
    fn walk(&mut self, newer: &mut Flows) -> Result<Result<Counts, ConntrackError>, Dropped> {
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
            // Reading takes milliseconds, and what was read may be as new as that.
            self.take_jobs(newer)?;
            match walk.delete_stale(|flow| self.todo.is_stale(flow)) {
                Ok(counts) => total += counts,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Takes the jobs that came into the one under way, and into `newer`.
    fn take_jobs(&mut self, newer: &mut Flows) -> Result<(), Dropped> {
        loop {
            match self.mailbox.try_recv() {
                Ok(job) => {
                    self.todo.merge(job.clone());
                    newer.merge(job);
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Dropped),
            }
        }
    }

    /// Does nothing for a while but taking jobs; tells how many.
    fn rest(&mut self, pause: Duration) -> Result<usize, Dropped> {
        let until = Instant::now() + pause;
        let mut jobs = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.mailbox.recv_timeout(left) {
                Ok(job) => self.todo.merge(job),
                Err(RecvTimeoutError::Timeout) => return Ok(jobs),
                Err(RecvTimeoutError::Disconnected) => return Err(Dropped),
            }
            jobs += 1;
        }
    }

    /// Waits for a job, but not for ever.
    fn wait_to_try_again(&mut self) -> Result<(), Dropped> {
        match self.mailbox.recv_timeout(self.pace.retry) {
            Ok(job) => self.todo.merge(job),
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => return Err(Dropped),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
