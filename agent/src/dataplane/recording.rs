//! A data plane for tests: holds the tables itself, records what was committed, and refuses what the kernel
//! would refuse.

use crate::diff::{Change, Delta, Held, between};
use crate::model::{Family, PerFamily};
use crate::plan::Tables;

use super::{Dataplane, DataplaneError, Restored};

/// What stands in for the kernel.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// What it holds.
    pub(crate) held: PerFamily<Held>,
    /// Every delta that was committed, in order.
    pub(crate) committed: Vec<(Family, Delta)>,
    /// How often it was read back.
    pub(crate) resyncs: usize,
    /// How often what others changed was put back.
    pub(crate) restores: usize,
    /// How many of the next commits it refuses.
    pub(crate) refuse_next: usize,
}

impl Dataplane for Recording {
    fn resync(&mut self, family: Family, _desired: &Tables) -> Result<Held, DataplaneError> {
        self.resyncs += 1;
        Ok(self.held.get(family).clone())
    }

    fn apply(&mut self, family: Family, _held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        if self.refuse_next > 0 {
            self.refuse_next -= 1;
            return Err(refused("no memory"));
        }
        let held = self.held.get_mut(family);
        check(&delta.rules, |key| {
            held.entries.get(key).and_then(|entry| entry.verdict)
        })?;
        check(&delta.backends, |slot| held.backend(*slot))?;
        check(&delta.members, |key| {
            held.members.contains(key).then_some(())
        })?;
        held.apply(delta);
        self.committed.push((family, delta.clone()));
        Ok(())
    }

    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError> {
        self.restores += 1;
        if self.refuse_next > 0 {
            self.refuse_next -= 1;
            return Err(refused("no memory"));
        }
        let delta = between(self.held.get(family), held);
        self.held.get_mut(family).apply(&delta);
        Ok(Restored {
            changes: delta.len(),
            frontends: Some(delta.frontends().collect()),
        })
    }

    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError> {
        *self.held.get_mut(family) = Held::default();
        Ok(())
    }
}

/// The kernel refuses to remove what is not there, and to add what is there with another value.
fn check<K, V: PartialEq + Copy>(
    changes: &[Change<K, V>],
    now: impl Fn(&K) -> Option<V>,
) -> Result<(), DataplaneError> {
    let wrong = changes
        .iter()
        .any(|change| now(&change.key) != change.from || change.from == change.to);
    if wrong {
        Err(refused("no such element, or it exists"))
    } else {
        Ok(())
    }
}

fn refused(what: &str) -> DataplaneError {
    DataplaneError::Refused {
        what: "a change".to_owned(),
        source: std::io::Error::other(what.to_owned()),
    }
}
