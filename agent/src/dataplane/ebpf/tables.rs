//! Which tables of consistent hashing are to be made, and which nobody uses any more.
//!
//! Pure. A table is named by what it holds and never changes, so front ends may name one before it is there, and may go
//! on to another one at any time: where there is none, clients get any back end.

use std::collections::{BTreeMap, BTreeSet};

use proxyd_ebpf_common as bpf;

use super::layout::{Entries, family_of};
use super::maglev::Backends;
use crate::model::Family;

/// What becomes of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// Those of a family are to be these and no others.
    Only(Family, BTreeMap<bpf::Table, Backends>),
    /// Some are new, and some are used no more.
    Change {
        /// Those that are new.
        new: BTreeMap<bpf::Table, Backends>,
        /// Those that nobody uses.
        gone: BTreeSet<bpf::Table>,
    },
}

impl Job {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Change { new, gone } if new.is_empty() && gone.is_empty())
    }
}

/// How many front ends of a family use each table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uses(BTreeMap<bpf::Table, usize>);

impl Uses {
    /// Those of all front ends of a family.
    pub(super) fn of(entries: &Entries) -> Self {
        let mut uses = Self::default();
        for table in used(entries) {
            *uses.0.entry(table).or_default() += 1;
        }
        uses
    }

    /// Some front ends change: what becomes of their tables.
    pub(super) fn change(&mut self, before: &Entries, after: &Entries) -> Job {
        let mut added = Self::of(after);
        let mut removed = Self::of(before);
        let touched: BTreeSet<bpf::Table> =
            added.0.keys().chain(removed.0.keys()).copied().collect();
        let (mut new, mut gone) = (BTreeMap::new(), BTreeSet::new());
        for table in touched {
            let [added, removed] =
                [&mut added, &mut removed].map(|uses| uses.0.remove(&table).unwrap_or(0));
            let was = self.0.remove(&table).unwrap_or(0);
            let is = (was + added).saturating_sub(removed);
            if is > 0 {
                self.0.insert(table, is);
            }
            if let Some(backends) = after.tables.get(&table).filter(|_| was == 0) {
                new.insert(table, backends.clone());
            } else if is == 0 {
                gone.insert(table);
            }
        }
        Job::Change { new, gone }
    }
}

/// The tables that front ends use, once for each.
fn used(entries: &Entries) -> impl Iterator<Item = bpf::Table> {
    let tables = entries.frontends.values().map(|frontend| frontend.table);
    tables.filter(|table| *table != bpf::Table::NONE)
}

/// What is there: tables, with as many of their back ends as are. They come last and go first, so a table that has all of them is
/// whole.
pub(super) type Found = BTreeMap<bpf::Table, Vec<bpf::Destination>>;

/// What is not done yet. Jobs that come faster than they are done become one.
#[derive(Debug, Default)]
pub(super) struct Todo {
    new: BTreeMap<bpf::Table, Backends>,
    gone: BTreeSet<bpf::Table>,
}

/// One step of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A table is made, whatever there is of it.
    Make(bpf::Table, Backends),
    /// What there is of a table is removed.
    Remove(bpf::Table),
}

impl Todo {
    /// Adds a job.
    ///
    /// # Errors
    /// That what is there cannot be told.
    pub(super) fn add<E>(
        &mut self,
        job: Job,
        found: impl FnOnce() -> Result<Found, E>,
    ) -> Result<(), E> {
        match job {
            Job::Only(family, wanted) => self.only(family, wanted, &found()?),
            Job::Change { new, gone } => {
                self.new.retain(|table, _| !gone.contains(table));
                self.gone.retain(|table| !new.contains_key(table));
                self.new.extend(new);
                self.gone.extend(gone);
            }
        }
        Ok(())
    }

    fn only(&mut self, family: Family, wanted: BTreeMap<bpf::Table, Backends>, found: &Found) {
        let is_of = |backends: &[bpf::Destination]| {
            let first = backends.first();
            first.map(|backend| family_of(&backend.address) == family)
        };
        self.new
            .retain(|_, backends| is_of(backends.as_slice()) != Some(true));
        for (table, backends) in found {
            // Of one without back ends, which an agent left that was killed, it is not known whose it is; but not that
            // of another front end, unless it is to be made.
            if is_of(backends).unwrap_or(!self.new.contains_key(table)) {
                self.gone.insert(*table);
            }
        }
        for (table, backends) in wanted {
            self.gone.remove(&table);
            if found
                .get(&table)
                .is_none_or(|found| found != backends.as_slice())
            {
                self.new.insert(table, backends);
            }
        }
    }

    /// What is to be done next: first all that makes room.
    pub(super) fn next(&mut self) -> Option<Step> {
        if let Some(table) = self.gone.pop_first() {
            return Some(Step::Remove(table));
        }
        let (table, backends) = self.new.pop_first()?;
        Some(Step::Make(table, backends))
    }
}
