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

/// Repairs that are further apart than this have nothing to do with each other.
const BURST: Duration = Duration::from_secs(10);

/// How many repairs of a burst are made at once. Who goes on undoing them is fought a tenth of the time only.
const PROMPT_REPAIRS: u32 = 10;

/// How much longer the pause after one of many repairs is than the repair.
const REST: u32 = 9;

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
    /// When the last change of a burst was heard of.
    heard: Option<Uptime>,
    /// How many repairs were made in this burst.
    made: u32,
    /// Before this, none is made.
    rest_until: Uptime,
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
        let rest = if repairs.pending {
            repairs.rest_until
        } else {
            Uptime::default()
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
        let begun = clock();
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
                repairs.made(family, synced, begun, now);
            }
            Err(error) => retry.note(family, error, now, self.seed),
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
        let is_new = self.heard.is_none_or(|heard| heard.until(now) > BURST);
        self.heard = Some(now);
        self.pending = true;
        if is_new {
            self.made = 0;
            warn!("{family}: {by} changed the rules of proxyd; putting them right");
        }
    }

    fn made(&mut self, family: Family, synced: &Synced, begun: Uptime, now: Uptime) {
        if !std::mem::take(&mut self.pending) {
            return;
        }
        self.made += 1;
        if self.made == 1 {
            info!("{family}: put right what others changed: {synced}");
        }
        if self.made >= PROMPT_REPAIRS {
            self.rest_until = now.after(begun.until(now) * REST);
        }
        if self.made == PROMPT_REPAIRS {
            warn!(
                "{family}: someone goes on changing the rules of proxyd (is another proxyd, kube-proxy or firewall at work?); \
                 putting them right more seldom"
            );
        }
    }
}

#[cfg(test)]
mod tests;
