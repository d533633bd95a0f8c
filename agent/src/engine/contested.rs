//! Front ends that several Services claim: which of them has it, and which do not get it.
//!
//! Pure but for the log.

use std::collections::BTreeMap;

use tracing::warn;

use crate::model::{Frontend, ObjectName, Snapshot, Touched};
use crate::telling::Telling;

/// The most front ends, and the most Services of one, that are named at a time; others are counted.
const MOST_NAMED: usize = 20;

/// Front ends with several claimants, the one that has it first.
#[derive(Debug, Default)]
pub(super) struct Contested {
    claimants: BTreeMap<Frontend, Vec<ObjectName>>,
    telling: Telling<Frontend, Vec<ObjectName>>,
}

impl Contested {
    /// Takes note of who claims what a change touched.
    pub(super) fn update(&mut self, snapshot: &Snapshot, touched: &Touched) {
        for frontend in &touched.frontends {
            let claimants: Vec<_> = snapshot.claimants(*frontend).cloned().collect();
            if claimants.len() < 2 {
                if self.claimants.remove(frontend).is_some() {
                    self.telling.note(*frontend);
                }
            } else if self.claimants.get(frontend) != Some(&claimants) {
                self.claimants.insert(*frontend, claimants);
                self.telling.note(*frontend);
            }
        }
    }

    /// Whether there is something to log.
    pub(super) fn has_news(&self) -> bool {
        self.telling.has_news()
    }

    /// Logs what changed since this was last called.
    pub(super) fn tell(&mut self, snapshot: &Snapshot) {
        let current = |frontend: &Frontend| self.claimants.get(frontend).cloned();
        let news = self.telling.take(current, |told, now| told == now);
        for (frontend, claimants) in news.new.iter().take(MOST_NAMED) {
            let [has, losers @ ..] = claimants.as_slice() else {
                continue;
            };
            let named = losers.iter().take(MOST_NAMED).map(ToString::to_string);
            let mut named = named.collect::<Vec<_>>().join(", ");
            if let more @ 1.. = losers.len().saturating_sub(MOST_NAMED) {
                named += &format!(" and {more} more");
            }
            let why = snapshot.precedence(*frontend);
            warn!(
                "{frontend} is claimed by several Services; {has} has it, since {why}; not served there: {named}"
            );
        }
        if let more @ 1.. = news.new.len().saturating_sub(MOST_NAMED) {
            warn!("and {more} more front ends that several Services claim");
        }
    }
}
