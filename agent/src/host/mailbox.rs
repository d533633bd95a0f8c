//! The mailbox of a thread that ends stale flows: jobs, in the order of the kernel's commits. I/O: a channel.
//!
//! What the kernel shows may be younger than the newest job: a commit may have been made whose job is still to come. A flow that
//! began by it would be taken for stale by the job before. So each commit is announced before it is made, and has ended when its job is in the
//! mailbox. Who has read flows waits until all commits that were announced by then have ended, and judges by all their jobs:
//! the order is that of cause and effect, and no clock decides.
//!
//! A commit that failed may have been made all the same. Until the family is in sync again, nobody knows which of its flows
//! are stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use crate::model::{Family, PerFamily};
use crate::plan::Flows;

/// How often somebody who waits for a commit looks whether it has ended. Most take less.
const GLANCE: Duration = Duration::from_millis(1);

/// A mailbox, and the end that jobs are sent by.
pub(super) fn mailbox() -> (Outbox, Mailbox) {
    let (sender, receiver) = mpsc::channel();
    let commits = Arc::new(Commits::default());
    let outbox = Outbox {
        jobs: sender,
        commits: Arc::clone(&commits),
    };
    let mailbox = Mailbox {
        jobs: receiver,
        commits,
    };
    (outbox, mailbox)
}

/// How many commits of each family were announced, and how many of those have ended.
#[derive(Debug, Default)]
struct Commits {
    begun: PerFamily<AtomicU64>,
    ended: PerFamily<AtomicU64>,
    /// The last one failed, so that nobody knows which rules there are.
    unknown: PerFamily<AtomicBool>,
}

/// The end that jobs are sent by. One thread has it.
#[derive(Debug)]
pub(super) struct Outbox {
    jobs: Sender<Flows>,
    commits: Arc<Commits>,
}

impl Outbox {
    /// A commit of a family is about to be made. It ends with [`Outbox::end`].
    pub(super) fn begin(&self, family: Family) {
        self.commits
            .begun
            .get(family)
            .fetch_add(1, Ordering::SeqCst);
    }

    /// A commit was made, and leaves these flows in place; `None`: it failed. Returns at once.
    pub(super) fn end(&self, family: Family, job: Option<Flows>) {
        let was_unknown = self.commits.unknown.get(family);
        let was_unknown = was_unknown.swap(job.is_none(), Ordering::SeqCst);
        // Who waits for the family to be known is woken by a job that says nothing.
        if let Some(job) = job.filter(|job| was_unknown || !job.is_empty()) {
            // The other side ends before us only by a panic, which was printed, or where the kernel lacks something.
            let _ = self.jobs.send(job);
        }
        let begun = self.commits.begun.get(family).load(Ordering::SeqCst);
        self.commits
            .ended
            .get(family)
            .store(begun, Ordering::SeqCst);
    }
}

/// The other side is gone.
#[derive(Debug)]
pub(super) struct Dropped;

/// The end where jobs come.
#[derive(Debug)]
pub(super) struct Mailbox {
    jobs: Receiver<Flows>,
    commits: Arc<Commits>,
}

impl Mailbox {
    /// Waits for a job; `None` if none came until then.
    pub(super) fn wait(&self, until: Option<Instant>) -> Result<Option<Flows>, Dropped> {
        let Some(until) = until else {
            return self.jobs.recv().map(Some).map_err(|_| Dropped);
        };
        let left = until.saturating_duration_since(Instant::now());
        match self.jobs.recv_timeout(left) {
            Ok(job) => Ok(Some(job)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Dropped),
        }
    }

    /// Gives the jobs of all commits that were announced before now. Waits for those that are under way.
    pub(super) fn catch_up(&self, mut take: impl FnMut(Flows)) -> Result<(), Dropped> {
        let Commits { begun, ended, .. } = &*self.commits;
        let announced = PerFamily::from_fn(|family| begun.get(family).load(Ordering::SeqCst));
        loop {
            let have_ended = Family::ALL
                .into_iter()
                .all(|family| ended.get(family).load(Ordering::SeqCst) >= *announced.get(family));
            // Their jobs were sent before they ended.
            loop {
                match self.jobs.try_recv() {
                    Ok(job) => take(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Err(Dropped),
                }
            }
            if have_ended {
                return Ok(());
            }
            if let Some(job) = self.wait(Some(Instant::now() + GLANCE))? {
                take(job);
            }
        }
    }

    /// Whether it is known which flows of a family are stale. When it is again, there is a job.
    pub(super) fn is_known(&self, family: Family) -> bool {
        !self.commits.unknown.get(family).load(Ordering::SeqCst)
    }
}
