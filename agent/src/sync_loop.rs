//! The loop that owns the engine: takes messages, syncs, and tries again what failed.
//!
//! No change waits for a timer: the first event is synced at once, and those that come meanwhile go together
//! into the next sync. It blocks, since talking to the kernel does. What it does is told to others by a
//! [`Publisher`].

mod publish;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::dataplane::Dataplane;
use crate::engine::Engine;
use crate::event::Event;
use crate::host::memory;
use crate::host::reconciler::Reconciler;
use crate::model::{Family, PerFamily};
pub(crate) use publish::Publisher;

/// The first pause after a failed sync; it doubles with each failure in a row.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest pause after a failed sync.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What the loop takes.
pub(crate) enum Message {
    /// An event, and when it came.
    Event(Event, Instant),
    /// The signal that ends the agent.
    Stop(&'static str),
    /// A source ended, which none should while the agent runs, and how.
    SourceEnded(String),
}

/// Why the loop ended.
pub(crate) enum Ended {
    /// A signal asked for it.
    Signal(&'static str),
    /// A source is gone, and with it the news that it would have sent.
    SourceEnded(String),
}

/// The engine, the kernel behind it, and what is to be tried again.
pub(crate) struct SyncLoop<'a> {
    engine: Engine,
    dataplane: &'a mut dyn Dataplane,
    publisher: Publisher,
    flows: Reconciler,
    retries: PerFamily<Retry>,
    started: Instant,
    was_in_sync: bool,
    /// A family was read back and compared as a whole, which takes memory.
    was_full: bool,
}

/// When and how a family that failed is tried again.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    failures: u32,
    reported: String,
}

impl<'a> SyncLoop<'a> {
    /// A loop that has done nothing yet. `started` is when the program did.
    pub(crate) fn new(
        engine: Engine,
        dataplane: &'a mut dyn Dataplane,
        publisher: Publisher,
        flows: Reconciler,
        started: Instant,
    ) -> Self {
        Self {
            engine,
            dataplane,
            publisher,
            flows,
            retries: PerFamily::default(),
            started,
            was_in_sync: false,
            was_full: false,
        }
    }

    /// Runs until a message says to stop; returns why.
    pub(crate) fn run(mut self, messages: &Receiver<Message>) -> Ended {
        loop {
            let first = match self.next_retry() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let first = match first {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    return Ended::SourceEnded("every source ended".to_owned());
                }
            };
            let mut oldest = Instant::now();
            let mut is_news = false;
            for message in first.into_iter().chain(messages.try_iter()) {
                match message {
                    Message::Event(event, came) => {
                        oldest = oldest.min(came);
                        is_news = true;
                        self.publisher.event(&event, self.engine.snapshot());
                        self.engine.handle(event);
                    }
                    Message::Stop(signal) => return Ended::Signal(signal),
                    Message::SourceEnded(how) => return Ended::SourceEnded(how),
                }
            }
            self.publisher.node(self.engine.snapshot());
            let now = Instant::now();
            for family in Family::ALL {
                if !self.engine.is_due(family) {
                    continue;
                }
                self.publisher.queued(family, oldest, is_news);
                if self.retries.get(family).at.is_none_or(|at| at <= now) {
                    self.sync(family, oldest);
                }
            }
            if self.engine.is_ready() && self.next_retry().is_none() {
                self.publisher.all_synced(&mut self.engine);
                self.report_first_sync();
                if std::mem::take(&mut self.was_full) {
                    memory::give_back();
                }
            }
        }
    }

    fn next_retry(&self) -> Option<Instant> {
        Family::ALL
            .into_iter()
            .filter_map(|family| self.retries.get(family).at)
            .min()
    }

    /// Syncs one family, and notes when to try again if that fails. `oldest` is when the first of the events
    /// that it carries came.
    fn sync(&mut self, family: Family, oldest: Instant) {
        let begun = Instant::now();
        let result = self.engine.sync(family, self.dataplane);
        let retry = self.retries.get_mut(family);
        match result {
            Ok(synced) => {
                self.publisher
                    .synced(family, &synced, begun.elapsed(), &self.engine);
                self.was_full |= synced.full;
                if synced.full || synced.changes > 0 {
                    debug!(
                        "{family}: {synced}, {} µs after the event",
                        oldest.elapsed().as_micros()
                    );
                }
                if retry.failures > 0 {
                    info!("{family}: in sync again after {} failures", retry.failures);
                }
                *retry = Retry::default();
                self.flows.send(synced.udp);
            }
            Err(error) => {
                self.publisher.sync_failed(family);
                let pause = FIRST_RETRY
                    .saturating_mul(1 << retry.failures.min(16))
                    .min(LONGEST_RETRY);
                retry.at = Some(Instant::now() + pause);
                retry.failures += 1;
                let text = error.to_string();
                // The same failure again is no news.
                if text != retry.reported {
                    // The other family goes on without this one.
                    warn!("{family}: the rules are not in sync: {text}; trying again");
                    retry.reported = text;
                }
            }
        }
    }

    fn report_first_sync(&mut self) {
        if std::mem::replace(&mut self.was_in_sync, true) {
            return;
        }
        let notes = match self.engine.complaint_count() {
            0 => String::new(),
            count => format!("; objects with a part that is not served: {count}"),
        };
        info!(
            "in sync {} ms after the start: {} Services{notes}",
            self.started.elapsed().as_millis(),
            self.engine.snapshot().service_count(),
        );
    }
}
