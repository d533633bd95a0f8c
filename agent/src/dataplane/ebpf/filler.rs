//! Makes tables of consistent hashing in a thread of its own, so that no Service waits for them: one takes half a
//! millisecond. I/O.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::Instant;

use aya::Ebpf;
use proxyd_ebpf_common as bpf;
use tracing::{debug, warn};

use super::super::DataplaneError;
use super::layout::Entries;
use super::maglev::{Backends, pieces};
use super::maps::{Map, Put};
use super::tables::{Found, Job, Step, Todo, Uses};
use crate::host::priority::give_way;
use crate::model::{Family, PerFamily};

/// The thread, as seen from those that send it jobs. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Filler {
    uses: PerFamily<Uses>,
    jobs: Sender<Job>,
}

impl Filler {
    /// Takes the maps of tables out of what was loaded, and starts the thread.
    ///
    /// # Errors
    /// That the maps cannot be used, or that no thread could be had.
    pub(super) fn start(loaded: &mut Ebpf) -> Result<Self, DataplaneError> {
        let (jobs, mailbox) = mpsc::channel();
        let worker = Worker {
            pieces: Map::take(loaded, "tables")?,
            backends: Map::take(loaded, "table_backends")?,
            mailbox,
            todo: Todo::default(),
        };
        let thread = thread::Builder::new().name("fill-tables".to_owned());
        thread
            .spawn(move || worker.run())
            .map_err(DataplaneError::Netlink)?;
        Ok(Self {
            uses: PerFamily::from_fn(|_| Uses::default()),
            jobs,
        })
    }

    /// Has the tables made that front ends of a family use, and others removed. Returns at once.
    pub(super) fn set(&mut self, family: Family, entries: &Entries) {
        *self.uses.get_mut(family) = Uses::of(entries);
        self.send(Job::Only(family, entries.tables.clone()));
    }

    /// As [`set`](Self::set), where some front ends have changed.
    pub(super) fn change(&mut self, family: Family, before: &Entries, after: &Entries) {
        let job = self.uses.get_mut(family).change(before, after);
        if !job.is_empty() {
            self.send(job);
        }
    }

    fn send(&self, job: Job) {
        // The thread ends before we do only by a panic, which was printed.
        let _ = self.jobs.send(job);
    }
}

/// The other side is gone.
struct Dropped;

struct Worker {
    pieces: Map<bpf::PieceKey, bpf::Piece>,
    backends: Map<bpf::TableKey, bpf::Destination>,
    mailbox: Receiver<Job>,
    todo: Todo,
}

impl Worker {
    fn run(mut self) {
        give_way();
        while self.work().is_ok() {}
    }

    /// Waits for a job, and does all that there is to do.
    fn work(&mut self) -> Result<(), Dropped> {
        let job = self.mailbox.recv().map_err(|_| Dropped)?;
        self.add(job);
        let (started, mut made, mut removed) = (Instant::now(), 0, 0);
        let mut failed = Vec::new();
        loop {
            match self.mailbox.try_recv() {
                Ok(job) => {
                    self.add(job);
                    continue;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(Dropped),
            }
            let done = match self.todo.next() {
                None => break,
                Some(Step::Make(table, backends)) => {
                    made += 1;
                    self.make(table, &backends)
                }
                Some(Step::Remove(table)) => {
                    removed += 1;
                    self.remove(table)
                }
            };
            failed.extend(done.err());
        }
        if let Some(error) = failed.first() {
            let count = failed.len();
            warn!(
                "clients outside get any back end instead of the same at all nodes, {count} times: {error}"
            );
        }
        if (made, removed) != (0, 0) {
            let seconds = started.elapsed().as_secs_f64();
            debug!("hash tables: {made} made, {removed} removed in {seconds:.6} s");
        }
        Ok(())
    }

    fn add(&mut self, job: Job) {
        let (pieces, backends) = (&self.pieces, &self.backends);
        if let Err(error) = self.todo.add(job, || found(pieces, backends)) {
            warn!("clients outside get any back end instead of the same at all nodes: {error}");
        }
    }

    /// Makes a table, or nothing of it.
    fn make(&mut self, table: bpf::Table, backends: &Backends) -> Result<(), DataplaneError> {
        let written = self.write(table, backends);
        if !matches!(written, Ok(Put::Done)) {
            self.remove(table)?;
        }
        written.map(drop)
    }

    /// Writes a table: its back ends last.
    fn write(&mut self, table: bpf::Table, backends: &Backends) -> Result<Put, DataplaneError> {
        let slots = backends.slots(table.size);
        for (number, piece) in (0..).zip(pieces(&slots)) {
            let key = bpf::PieceKey { table, number };
            if self.pieces.put(&key, Some(piece))? == Put::LeftOut {
                return Ok(Put::LeftOut);
            }
        }
        for (index, backend) in (0..).zip(backends.as_slice()) {
            let key = bpf::TableKey { table, index };
            if self.backends.put(&key, Some(*backend))? == Put::LeftOut {
                return Ok(Put::LeftOut);
            }
        }
        Ok(Put::Done)
    }

    /// Removes what there is of a table: its back ends first, and the last ones before the others, so that what is left by an agent that is
    /// killed is found by the next one.
    fn remove(&mut self, table: bpf::Table) -> Result<(), DataplaneError> {
        let mut indexes = 0..;
        let index = indexes.find(|index| {
            let index = *index;
            !self.backends.has(&bpf::TableKey { table, index })
        });
        for index in (0..index.unwrap_or(0)).rev() {
            self.backends.put(&bpf::TableKey { table, index }, None)?;
        }
        for number in (0..table.size.div_ceil(bpf::PIECE_SLOTS)).rev() {
            self.pieces.put(&bpf::PieceKey { table, number }, None)?;
        }
        Ok(())
    }
}

/// The tables that are there.
fn found(
    pieces: &Map<bpf::PieceKey, bpf::Piece>,
    backends: &Map<bpf::TableKey, bpf::Destination>,
) -> Result<Found, DataplaneError> {
    let tables = pieces
        .keys()?
        .into_iter()
        .map(|key| (key.table, Vec::new()));
    let mut found: Found = tables.collect();
    let backends: BTreeMap<_, _> = backends.read()?;
    for (key, backend) in backends {
        found.entry(key.table).or_default().push(backend);
    }
    Ok(found)
}
