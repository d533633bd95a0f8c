//! What is wrong with the objects of one kind: logged once, and counted.
//!
//! Pure but for the log. An object is reported again only when what is wrong with it changes.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use crate::model::{Complaint, ObjectName, Parsed};

/// The complaints about the objects of one kind.
#[derive(Debug)]
pub(crate) struct Complaints {
    kind: &'static str,
    known: BTreeMap<ObjectName, Vec<Complaint>>,
}

impl Complaints {
    /// No complaints yet about objects of this kind.
    pub(crate) fn about(kind: &'static str) -> Self {
        Self {
            kind,
            known: BTreeMap::new(),
        }
    }

    /// How many objects have a field that is not served.
    pub(crate) fn count(&self) -> usize {
        self.known.len()
    }

    /// The objects of a complete list of which something can be served.
    pub(crate) fn sift_list<T>(&mut self, list: Vec<Parsed<T>>) -> Vec<T> {
        let listed: BTreeSet<_> = list.iter().map(|parsed| parsed.name.clone()).collect();
        self.known.retain(|name, _| listed.contains(name));
        list.into_iter()
            .filter_map(|parsed| self.sift(parsed).ok())
            .collect()
    }

    /// The object if anything of it can be served, else its name.
    pub(crate) fn sift<T>(&mut self, parsed: Parsed<T>) -> Result<T, ObjectName> {
        let Parsed {
            name,
            object,
            complaints,
            trigger: _,
        } = parsed;
        if complaints.is_empty() {
            self.known.remove(&name);
        } else if self.known.get(&name) != Some(&complaints) {
            for complaint in &complaints {
                warn!("{} {name}: {complaint}", self.kind);
            }
            self.known.insert(name.clone(), complaints);
        }
        object.ok_or(name)
    }

    /// The object is gone.
    pub(crate) fn forget(&mut self, name: &ObjectName) {
        self.known.remove(name);
    }
}
