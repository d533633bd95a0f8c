//! Decides when the engine syncs: at once, after a pause where the kernel refused, and seldom where someone keeps
//! undoing what is put right.
//!
//! Pure: events go in, the data plane is told batches, and time is what the caller's clock says. The sync loop gives it
//! the real one; `simulation` gives it a virtual one and a kernel that refuses and forgets.
//!
//! No change waits for a timer: the first is synced at once, and those that come while a batch is in flight go together
//! into the next.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tracing::{info, warn};

use crate::dataplane::{Dataplane, DataplaneError};
use crate::engine::{Engine, Synced};
use crate::event::Event;
use crate::model::{Family, PerFamily};
use crate::status::Uptime;

/// The first pause after a failed sync; it doubles with each failure in a row. Each pause is longer by up to itself, by
/// chance, so that the nodes of a cluster do not all try at one time.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);

/// Where the pauses after failed syncs stop growing; chance may double it.
pub const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Who changes the rules sooner than this after they were put right goes on doing so.
const BURST: Duration = Duration::from_secs(10);

/// How many repairs of a burst are made at once.
const PROMPT_REPAIRS: u32 = 10;

/// The pause after the last of those; it doubles with each repair that is undone too.
const FIRST_REST: Duration = Duration::from_secs(1);

/// Where the pauses between repairs stop growing.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How often it is said who goes on changing the rules.
const NAMED_AGAIN: Duration = Duration::from_secs(60);

/// The engine, and when each family may be synced.
#[derive(Debug)]
pub struct Machine {
    engine: Engine,
    retries: PerFamily<Retry>,
    repairs: PerFamily<Repairs>,
    seed: u64,
}

/// When and how a family that failed is tried again.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Uptime>,
    pauses: Option<ExponentialBackoff>,
    failures: u32,
    reported: String,
}

/// What others do to the rules, and when that may be put right again.
#[derive(Debug, Default)]
struct Repairs {
    /// Something was changed that has not been looked at.
    pending: bool,
    /// When a change was heard of last, or put right.
    last: Option<Uptime>,
    /// How many repairs were made in this burst, or tried.
    made: u32,
    /// It was said that one was made.
    told: bool,
    /// The pause after the last one.
    rest: Duration,
    /// Before this, none is made.
    rest_until: Uptime,
    /// Before this, none is made though the cluster has changed, and what is written then is put right on the way.
    rest_of_changes: Uptime,
    /// When it was said who changes the rules.
    named: Uptime,
}

impl Machine {
    /// A machine that has done nothing yet. `seed` is where chance comes from.
    pub fn new(engine: Engine, seed: u64) -> Self {
        Self {
            engine,
            retries: PerFamily::default(),
            repairs: PerFamily::default(),
            seed,
        }
    }

    /// The state that it drives.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The state that it drives, for what is taken out of it.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Takes note of an event that came at `now`.
    pub fn handle(&mut self, event: Event, now: Uptime) {
        if let Event::KernelChanged { family, by } = &event {
            self.repairs.get_mut(*family).hear(*family, by, now);
        }
        self.engine.handle(event);
    }

    /// Whether a family has something to write, though it may have to wait.
    pub fn is_due(&self, family: Family) -> bool {
        self.engine.is_due(family)
    }

    /// When a family may be synced: in the past for at once; `None` if it has nothing to write.
    pub fn due_at(&self, family: Family) -> Option<Uptime> {
        let retry = self.retries.get(family).at.unwrap_or_default();
        let repairs = self.repairs.get(family);
        let rest = match repairs.pending {
            false => Uptime::default(),
            true if self.engine.has_news(family) => repairs.rest_of_changes,
            true => repairs.rest_until,
        };
        self.is_due(family).then_some(retry.max(rest))
    }

    /// When something is to be done that no event asks for.
    pub fn wake_at(&self) -> Option<Uptime> {
        Family::ALL
            .into_iter()
            .filter_map(|family| self.due_at(family))
            .min()
    }

    /// Whether all that is known is in the kernel.
    pub fn is_settled(&self) -> bool {
        self.engine.is_ready() && self.wake_at().is_none()
    }

    /// Syncs one family now, and notes when to try again if that fails.
    ///
    /// # Errors
    /// Why the kernel does not hold what it should; it is tried again at [`Machine::wake_at`].
    pub fn sync(
        &mut self,
        family: Family,
        dataplane: &mut dyn Dataplane,
        clock: &dyn Fn() -> Uptime,
    ) -> Result<Synced, DataplaneError> {
        let result = self.engine.sync(family, dataplane);
        let now = clock();
        let retry = self.retries.get_mut(family);
        match &result {
            Ok(synced) => {
                if retry.failures > 0 {
                    info!("{family}: in sync again after {} failures", retry.failures);
                }
                *retry = Retry::default();
                let repairs = self.repairs.get_mut(family);
                repairs.made(family, synced, now);
            }
            Err(error) => {
                retry.note(family, error, now, self.seed);
                self.repairs.get_mut(family).failed(family, now);
            }
        }
        result
    }
}

impl Retry {
    fn note(&mut self, family: Family, error: &DataplaneError, now: Uptime, seed: u64) {
        let pauses = self.pauses.get_or_insert_with(|| {
            ExponentialBuilder::new()
                .with_min_delay(FIRST_RETRY)
                .with_max_delay(LONGEST_RETRY)
                .without_max_times()
                .with_jitter()
                // The families are not to be in step either.
                .with_jitter_seed(seed ^ (family as u64))
                .build()
        });
        self.at = Some(now.after(pauses.next().unwrap_or(LONGEST_RETRY)));
        self.failures += 1;
        let text = error.to_string();
        // The same failure again is no news.
        if text != self.reported {
            // The other family goes on without this one.
            warn!("{family}: the rules are not in sync: {text}; trying again");
            self.reported = text;
        }
    }
}

impl Repairs {
    fn hear(&mut self, family: Family, by: &str, now: Uptime) {
        let is_new = !self.pending && self.last.is_none_or(|last| last.until(now) > BURST);
        self.last = Some(now);
        self.pending = true;
        if is_new {
            *self = Self {
                last: self.last,
                pending: true,
                named: now,
                ..Self::default()
            };
            warn!("{family}: {by} changed the rules of proxyd; putting them right");
        } else if self.named.until(now) >= NAMED_AGAIN {
            self.named = now;
            warn!(
                "{family}: {by} goes on changing the rules of proxyd, which were put right {} times and are wrong in between; \
                 find out what it is, and end it",
                self.made
            );
        }
    }

    fn made(&mut self, family: Family, synced: &Synced, now: Uptime) {
        if !std::mem::take(&mut self.pending) {
            return;
        }
        if !std::mem::replace(&mut self.told, true) {
            info!("{family}: put right what others changed: {synced}");
        }
        self.count(family, now);
    }

    /// Takes note of a repair that failed: it may have been made, and undone before it was read back.
    fn failed(&mut self, family: Family, now: Uptime) {
        if self.pending {
            self.count(family, now);
        }
    }

    fn count(&mut self, family: Family, now: Uptime) {
        self.made += 1;
        self.last = Some(now);
        if self.made >= PROMPT_REPAIRS {
            self.rest = (self.rest * 2).clamp(FIRST_REST, LONGEST_REST);
            self.rest_until = now.after(self.rest);
            self.rest_of_changes = now.after(FIRST_REST);
        }
        if self.made == PROMPT_REPAIRS {
            warn!(
                "{family}: someone goes on changing the rules of proxyd (is another proxyd, kube-proxy or firewall at work?); \
                 putting them right once a second at most, and less and less often"
            );
        }
    }
}

#[cfg(test)]
mod tests;
