//! What a sync did, for the log and for those who end flows.
//!
//! Pure.

use std::collections::BTreeSet;
use std::fmt;

use crate::dataplane::Restored;
use crate::diff::Delta;
use crate::model::{Frontend, ObjectName, Snapshot};
use crate::plan::Flows;

/// The most front ends that are named; others are counted.
const MOST_NAMED: usize = 5;

/// What a sync of one family did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Whether the kernel was read back and everything compared.
    pub full: bool,
    /// Whether everything was planned, not only what changes touched. So it is if `full`.
    pub planned_all: bool,
    /// How many keys changed, with what was put back where others changed it.
    pub changes: usize,
    /// The front ends that these are of; nothing if `full`.
    pub changed: Changed,
    /// The tracked flows that the change leaves in place; others of the same front ends are stale.
    pub tracked: Flows,
    /// The same of balanced sockets of TCP; nothing if those are left to end by themselves.
    pub tcp: Flows,
}

/// Front ends that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// The first ones, each with the Service that has it now.
    named: Vec<(Frontend, Option<ObjectName>)>,
    count: usize,
}

impl Changed {
    /// Those of a delta, and those that were put back.
    pub(super) fn of(snapshot: &Snapshot, delta: &Delta, restored: Option<&Restored>) -> Self {
        let rules = delta.rules.iter().map(|change| change.key);
        let backends = delta.backends.iter().map(|change| change.key.frontend);
        let restored = restored.and_then(|restored| restored.frontends.as_ref());
        let restored = restored.into_iter().flatten().copied();
        let frontends: BTreeSet<Frontend> = rules.chain(backends).chain(restored).collect();
        let named = frontends.iter().take(MOST_NAMED).map(|frontend| {
            let owner = snapshot.owner(*frontend);
            (*frontend, owner.map(|(service, _)| service.name.clone()))
        });
        Self {
            named: named.collect(),
            count: frontends.len(),
        }
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (frontend, owner)) in self.named.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{frontend}")?;
            if let Some(owner) = owner {
                write!(f, " ({owner})")?;
            }
        }
        match self.count - self.named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for Synced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.changes == 1 { "" } else { "s" };
        write!(f, "{} change{plural}", self.changes)?;
        if self.changed.count > 0 {
            write!(f, " of {}", self.changed)?;
        }
        if self.full {
            f.write_str(" after reading everything back")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::{Held, diff};
    use crate::model::{Family, Scope};
    use crate::plan;
    use crate::testing::{endpoint, plan_config, service, slice};

    #[test]
    fn a_sync_names_the_first_front_ends_that_changed() {
        let mut snapshot = Snapshot::default();
        let synced = |snapshot: &Snapshot| {
            let desired = plan::tables(snapshot, &plan_config(), Family::V4, &Scope::All);
            let delta = diff(&Held::default(), &desired, &Scope::All);
            let changed = Changed::of(snapshot, &delta, None);
            let changes = delta.len();
            Synced {
                changed,
                changes,
                ..Synced::default()
            }
        };
        assert_eq!(synced(&snapshot).to_string(), "0 changes");
        snapshot.put_service(service("web", &["10.96.0.1"]));
        snapshot.put_slice(slice("web-1", "web", &[endpoint("10.1.0.1")]));
        let text = "3 changes of 10.96.0.1:80 tcp (default/web)";
        assert_eq!(synced(&snapshot).to_string(), text);
        for i in 2..=7 {
            snapshot.put_service(service(&format!("s{i}"), &[&format!("10.96.0.{i}")]));
        }
        assert_eq!(
            synced(&snapshot).to_string(),
            "15 changes of 10.96.0.1:80 tcp (default/web), 10.96.0.2:80 tcp (default/s2), \
             10.96.0.3:80 tcp (default/s3), 10.96.0.4:80 tcp (default/s4), 10.96.0.5:80 tcp (default/s5) and 2 more"
        );
    }
}
