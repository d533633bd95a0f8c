//! What a test can make go wrong, and how it is put right again.

use std::time::Duration;

use super::resource::{Resource, Verb};
use super::status::Status;
use super::{ApiServer, Cut};

/// Requests to refuse: those for `resource` and `verb`, or for any.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: u16,
    times: usize,
    resource: Option<Resource>,
    verb: Option<Verb>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// Refuses the next request with an HTTP status.
    pub fn with(status: u16) -> Self {
        Self {
            status,
            times: 1,
            resource: None,
            verb: None,
            retry_after: None,
        }
    }

    /// Refuses this many requests; `usize::MAX` until [`ApiServer::clear_faults`].
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Only requests for a kind.
    #[must_use]
    pub fn on(self, resource: Resource) -> Self {
        Self {
            resource: Some(resource),
            ..self
        }
    }

    /// Only requests of a verb.
    #[must_use]
    pub fn verb(self, verb: Verb) -> Self {
        Self {
            verb: Some(verb),
            ..self
        }
    }

    /// Sends a Retry-After header, in whole seconds.
    #[must_use]
    pub fn retry_after(self, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..self
        }
    }

    fn applies(&self, resource: Option<Resource>, verb: Option<Verb>) -> bool {
        (self.resource.is_none() || self.resource == resource)
            && (self.verb.is_none() || self.verb == verb)
    }
}

/// The faults that wait for requests.
#[derive(Debug, Default)]
pub(super) struct Faults {
    refusals: Vec<Refusal>,
    expired_watches: usize,
    /// How lists break off, and how many more do.
    cut_lists: Option<(Cut, usize)>,
    garbled_events: usize,
    /// How long a watch lasts at most.
    pub(super) watch_life: Option<Duration>,
    /// How long every response waits.
    pub(super) delay: Duration,
}

impl Faults {
    /// The error to answer a request with, if a test asked for one.
    pub(super) fn refuse(
        &mut self,
        resource: Option<Resource>,
        verb: Option<Verb>,
    ) -> Option<Status> {
        let index = self
            .refusals
            .iter()
            .position(|refusal| refusal.applies(resource, verb))?;
        let refusal = &mut self.refusals[index];
        let status = Status::refused(refusal.status, refusal.retry_after);
        refusal.times -= 1;
        if refusal.times == 0 {
            self.refusals.remove(index);
        }
        Some(status)
    }

    /// Whether this watch is to end as one whose version is too old.
    pub(super) fn expire_watch(&mut self) -> bool {
        let expires = self.expired_watches > 0;
        self.expired_watches = self.expired_watches.saturating_sub(1);
        expires
    }

    /// Whether, and how, this list is to break off half-way.
    pub(super) fn cut_list(&mut self) -> Option<Cut> {
        let (cut, times) = self.cut_lists.as_mut().filter(|(_, times)| *times > 0)?;
        *times -= 1;
        Some(*cut)
    }

    /// Whether this event of a watch is to be told by halves.
    pub(super) fn garble_event(&mut self) -> bool {
        let garbles = self.garbled_events > 0;
        self.garbled_events = self.garbled_events.saturating_sub(1);
        garbles
    }
}

impl ApiServer {
    /// Refuses requests to come. Earlier refusals are used up first.
    pub fn refuse(&self, refusal: Refusal) {
        if refusal.times > 0 {
            self.shared.faults().refusals.push(refusal);
        }
    }

    /// Answers the next watches with status 200 and an ERROR event of code 410, as kube-apiserver does when the
    /// version is too old. `Refusal::with(410)` answers with the HTTP status instead.
    pub fn expire_next_watches(&self, times: usize) {
        self.shared.faults().expired_watches = times;
    }

    /// Breaks the next lists off after half of their objects, streaming lists too: [`Cut::Clean`] ends them as if that
    /// was all, [`Cut::Broken`] breaks the connection, [`Cut::HalfLine`] breaks it in the middle of an object.
    pub fn cut_next_lists(&self, cut: Cut, times: usize) {
        self.shared.faults().cut_lists = Some((cut, times));
    }

    /// Writes only half of the lines of the next events, and goes on with the next line.
    pub fn garble_next_events(&self, times: usize) {
        self.shared.faults().garbled_events = times;
    }

    /// Ends every watch to come after this time, in order, whatever it asked for.
    pub fn limit_watches(&self, life: Duration) {
        self.shared.faults().watch_life = Some(life);
    }

    /// Delays every response, by zero for not at all.
    pub fn delay_responses(&self, delay: Duration) {
        self.shared.faults().delay = delay;
    }

    /// Ends every open watch.
    pub fn cut_watches(&self, cut: Cut) {
        self.shared.store().cut(cut);
    }

    /// Lets no byte out of any watch, open or to come, until [`ApiServer::clear_faults`]; then what happened
    /// meanwhile is told. Connections stay open, and timeouts pass unheeded.
    pub fn hang_watches(&self) {
        self.shared.hung.send_replace(true);
    }

    /// Forgets the history: watches and pages of older versions are answered with 410 from now on.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Numbers the objects anew from 1, as a cluster does whose etcd came out of a backup, and breaks every watch.
    pub fn reset_resource_versions(&self) {
        self.shared.store().renumber();
    }

    /// Puts right what can be put right: all is answered, at once and as a whole.
    pub fn clear_faults(&self) {
        *self.shared.faults() = Faults::default();
        self.shared.hung.send_replace(false);
    }
}
