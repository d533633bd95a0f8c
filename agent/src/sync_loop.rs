//! The loop that drives the [`Machine`]: takes messages, and does what the machine says, when it says so.
//!
//! It blocks, since talking to the kernel does. What it does is told to others by a [`Publisher`].

mod publish;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tracing::{debug, info};

use crate::dataplane::Dataplane;
use crate::engine::Synced;
use crate::event::Event;
use crate::host::closer::Closer;
use crate::host::memory;
use crate::host::reconciler::Reconciler;
use crate::http::Clock;
use crate::machine::Machine;
use crate::model::Family;
use crate::status::Uptime;
pub(crate) use publish::Publisher;

/// How long after lines about objects the next ones are logged. What changed and changed back meanwhile is none.
const TELLING_PAUSE: Duration = Duration::from_secs(1);

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

/// The threads that end flows whose endpoints are gone.
pub(crate) struct Draining {
    /// Those that are tracked.
    pub(crate) tracked: Reconciler,
    /// Sockets, where those are balanced.
    pub(crate) sockets: Option<Closer>,
}

/// The machine, the kernel behind it, and who is told.
pub(crate) struct SyncLoop<'a> {
    machine: Machine,
    dataplane: &'a mut dyn Dataplane,
    publisher: Publisher,
    draining: Draining,
    clock: Clock,
    was_in_sync: bool,
    /// A family was read back and compared as a whole, which takes memory.
    was_full: bool,
    /// Before this, nothing about objects is logged.
    quiet_until: Uptime,
}

impl Draining {
    /// A family is about to be synced. What begins by the new rules is not to be judged by what was known before.
    fn begin(&self, family: Family) {
        self.tracked.begin(family);
        if let Some(sockets) = &self.sockets {
            sockets.begin(family);
        }
    }

    /// A family was synced: has the flows ended that the change did not leave in place. `None`: that failed. Returns at once.
    fn end(&self, family: Family, synced: Option<&Synced>) {
        if let Some(sockets) = &self.sockets {
            let job = synced.map(|Synced { tracked, tcp, .. }| {
                let mut job = tcp.clone();
                job.merge(tracked.clone());
                job
            });
            sockets.end(family, job);
        }
        self.tracked
            .end(family, synced.map(|synced| synced.tracked.clone()));
    }
}

impl<'a> SyncLoop<'a> {
    /// A loop that has done nothing yet. `clock` shows how long the program has been running.
    pub(crate) fn new(
        machine: Machine,
        dataplane: &'a mut dyn Dataplane,
        publisher: Publisher,
        draining: Draining,
        clock: Clock,
    ) -> Self {
        Self {
            machine,
            dataplane,
            publisher,
            draining,
            clock,
            was_in_sync: false,
            was_full: false,
            quiet_until: Uptime::default(),
        }
    }

    /// Runs until a message says to stop; returns why.
    pub(crate) fn run(mut self, messages: &Receiver<Message>) -> Ended {
        let ended = self.run_on(messages);
        self.machine.engine_mut().tell();
        ended
    }

    fn run_on(&mut self, messages: &Receiver<Message>) -> Ended {
        loop {
            let telling = self
                .machine
                .engine()
                .has_to_tell()
                .then_some(self.quiet_until);
            let wake_at = self.machine.wake_at().into_iter().chain(telling).min();
            let first = match wake_at {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => messages.recv_timeout(self.clock.now().until(at)),
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
                        let snapshot = self.machine.engine().snapshot();
                        self.publisher.event(&event, snapshot);
                        self.machine.handle(event, self.clock.now());
                    }
                    Message::Stop(signal) => return Ended::Signal(signal),
                    Message::SourceEnded(how) => return Ended::SourceEnded(how),
                }
            }
            self.publisher.node(self.machine.engine().snapshot());
            for family in Family::ALL {
                let Some(due) = self.machine.due_at(family) else {
                    continue;
                };
                self.publisher.queued(family, oldest, is_news);
                if due <= self.clock.now() {
                    self.sync(family, oldest);
                }
            }
            self.publisher.refused(&self.machine.engine().refused());
            self.tell();
            if self.machine.is_settled() {
                self.publisher.all_synced(self.machine.engine_mut());
                self.report_first_sync();
                if std::mem::take(&mut self.was_full) {
                    memory::give_back();
                }
            }
        }
    }

    /// Syncs one family. `oldest` is when the first of the events that it carries came.
    fn sync(&mut self, family: Family, oldest: Instant) {
        let begun = Instant::now();
        let clock = self.clock;
        self.draining.begin(family);
        let result = self.machine.sync(family, self.dataplane, &|| clock.now());
        self.draining.end(family, result.as_ref().ok());
        let Ok(synced) = result else {
            self.publisher.sync_failed(family);
            return;
        };
        let engine = self.machine.engine();
        self.publisher
            .synced(family, &synced, begun.elapsed(), engine);
        self.was_full |= synced.full;
        if synced.full || synced.changes > 0 {
            debug!(
                "{family}: {synced}, {} µs after the event",
                oldest.elapsed().as_micros()
            );
        }
    }

    /// Logs what is wrong with objects, not too often.
    fn tell(&mut self) {
        let now = self.clock.now();
        let engine = self.machine.engine_mut();
        if engine.has_to_tell() && now >= self.quiet_until {
            engine.tell();
            self.quiet_until = now.after(TELLING_PAUSE);
        }
    }

    fn report_first_sync(&mut self) {
        if std::mem::replace(&mut self.was_in_sync, true) {
            return;
        }
        let engine = self.machine.engine();
        let [objects @ .., (_, unread)] = engine.refused();
        let refused: usize = objects.iter().map(|(_, count)| count).sum();
        let mut notes = match refused {
            0 => String::new(),
            count => format!("; objects with a part that is not served: {count}"),
        };
        if unread > 0 {
            notes += &format!("; documents and objects that could not be read: {unread}");
        }
        let services = match engine.snapshot().service_count() {
            1 => "1 Service".to_owned(),
            count => format!("{count} Services"),
        };
        info!(
            "in sync {} ms after the start: {services}{notes}",
            self.clock.now().0.as_millis(),
        );
    }
}
