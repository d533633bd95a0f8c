//! Forgets clients in a thread of its own, so that no rule waits for it: the map of choices may be large. I/O.
//!
//! The kernel forgets each client when its time is over, so one that was seen may be gone when it is to be removed. The
//! kernel then refuses the whole transaction; so these are small, and what is refused is tried in halves.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use super::super::DataplaneError;
use super::forget::Forgotten;
use super::netlink::Connection;
use crate::model::Family;

/// How many clients are forgotten in one transaction.
const CHUNK: usize = 256;

/// How long to wait before a job is done again: after a failure, and once after it was done, since a packet may have been
/// under way to the old endpoint, which is remembered when it leaves.
const AGAIN: Duration = Duration::from_secs(1);

/// Whom the kernel forgets sooner than this is left to it: one that is gone when it is to be removed costs a transaction.
const SOON: Duration = Duration::from_secs(1);

/// The thread, as seen from those that send it jobs. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Forgetter {
    jobs: Sender<Job>,
    port: u32,
}

#[derive(Debug)]
struct Job {
    family: Family,
    forgotten: Forgotten,
    /// When it is done next.
    due: Instant,
    /// Whether it was done once.
    is_second: bool,
}

impl Forgetter {
    /// Starts the thread, which works in the network namespace of the calling one.
    ///
    /// # Errors
    /// That no socket or thread could be had.
    pub(super) fn start() -> Result<Self, DataplaneError> {
        let mut connection = Connection::open()?;
        let port = connection.port()?;
        let (jobs, mailbox) = mpsc::channel();
        let thread = thread::Builder::new().name("forget".to_owned());
        thread
            .spawn(move || work(&mut connection, &mailbox))
            .map_err(DataplaneError::Netlink)?;
        Ok(Self { jobs, port })
    }

    /// The port of its socket, by which the kernel tells its commits from those of others.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Has choices forgotten. Returns at once.
    pub(super) fn send(&self, family: Family, forgotten: Forgotten) {
        if !forgotten.is_empty() {
            let job = Job {
                family,
                forgotten,
                due: Instant::now(),
                is_second: false,
            };
            // The thread ends before we do only by a panic, which was printed.
            let _ = self.jobs.send(job);
        }
    }
}

/// Does jobs until nobody can send any more.
fn work(connection: &mut Connection, mailbox: &Receiver<Job>) {
    let mut todo: Vec<Job> = Vec::new();
    let mut is_failing = false;
    loop {
        let next = match todo.iter().map(|job| job.due).min() {
            None => mailbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => mailbox.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match next {
            Ok(job) => todo.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        todo.extend(mailbox.try_iter());
        let now = Instant::now();
        let (mut due, later): (Vec<Job>, _) = todo.into_iter().partition(|job| job.due <= now);
        todo = later;
        let result = Family::ALL.map(|family| {
            let of_family = due.iter().filter(|job| job.family == family);
            let jobs: Vec<&Forgotten> = of_family.map(|job| &job.forgotten).collect();
            forget(connection, family, &jobs)
        });
        match result.into_iter().collect::<Result<Vec<()>, _>>() {
            Ok(_) => {
                is_failing = false;
                due.retain_mut(|job| !std::mem::replace(&mut job.is_second, true));
            }
            // Said once until it works again.
            Err(error) if !std::mem::replace(&mut is_failing, true) => {
                warn!("clients may keep endpoints that are gone: {error}; trying again");
            }
            Err(_) => {}
        }
        due.iter_mut()
            .for_each(|job| job.due = Instant::now() + AGAIN);
        todo.extend(due);
    }
}

/// Forgets what the jobs of one family say, in one go through the map.
fn forget(
    connection: &mut Connection,
    family: Family,
    jobs: &[&Forgotten],
) -> Result<(), DataplaneError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let choices = connection.choices(family)?.into_iter();
    let stale = choices.filter(|choice| jobs.iter().any(|job| job.contains(choice)));
    let stay = stale.filter(|choice| choice.left > SOON);
    let keys: Vec<Vec<u8>> = stay.map(|choice| choice.key).collect();
    keys.chunks(CHUNK)
        .try_for_each(|chunk| forget_those_left(connection, family, chunk))
}

/// Forgets clients some of whom may be gone: where the kernel refuses all of them for that, each half is tried.
fn forget_those_left(
    connection: &mut Connection,
    family: Family,
    keys: &[Vec<u8>],
) -> Result<(), DataplaneError> {
    if connection.forget(family, keys)? || keys.len() == 1 {
        return Ok(());
    }
    let (first, second) = keys.split_at(keys.len() / 2);
    forget_those_left(connection, family, first)?;
    forget_those_left(connection, family, second)
}
