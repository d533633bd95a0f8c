//! What is wrong with the objects of one kind: counted, and logged once.
//!
//! Pure but for the log. An object is reported again only when what is wrong with it changes, and once more when all of
//! it is served. The owner of an object decides how often and how much it is wrong, so the log is bounded.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use crate::model::{Complaint, ObjectName, Parsed};
use crate::telling::Telling;

/// The most objects that are named at a time; others are counted.
const MOST_OBJECTS: usize = 20;

/// The most complaints about one object that are logged; others are counted.
const MOST_COMPLAINTS: usize = 5;

/// The complaints about the objects of one kind.
#[derive(Debug)]
pub(crate) struct Complaints {
    kind: &'static str,
    known: BTreeMap<ObjectName, Vec<Complaint>>,
    /// Objects that are gone since this was last told.
    gone: BTreeSet<ObjectName>,
    telling: Telling<ObjectName, Vec<Complaint>>,
}

impl Complaints {
    /// No complaints yet about objects of this kind.
    pub(crate) fn about(kind: &'static str) -> Self {
        Self {
            kind,
            known: BTreeMap::new(),
            gone: BTreeSet::new(),
            telling: Telling::default(),
        }
    }

    /// The kind of object.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// How many objects have a field that is not served.
    pub(crate) fn count(&self) -> usize {
        self.known.len()
    }

    /// The objects of a complete list of which something can be served.
    pub(crate) fn sift_list<T>(&mut self, list: Vec<Parsed<T>>) -> Vec<T> {
        let listed: BTreeSet<_> = list.iter().map(|parsed| parsed.name.clone()).collect();
        let gone = self.known.keys().filter(|name| !listed.contains(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.forget(&name);
        }
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
            if self.known.remove(&name).is_some() {
                self.note(&name);
            }
        } else if self.known.get(&name) != Some(&complaints) {
            self.known.insert(name.clone(), complaints);
            self.note(&name);
        }
        object.ok_or(name)
    }

    /// The object is gone.
    pub(crate) fn forget(&mut self, name: &ObjectName) {
        if self.known.remove(name).is_some() {
            self.note(name);
            self.gone.insert(name.clone());
        }
    }

    /// Whether there is something to log.
    pub(crate) fn has_news(&self) -> bool {
        self.telling.has_news()
    }

    /// Logs what changed since this was last called.
    pub(crate) fn tell(&mut self) {
        let news = self.telling.take(
            |name| self.known.get(name).cloned(),
            |told, now| told == now,
        );
        let gone = std::mem::take(&mut self.gone);
        let kind = self.kind;
        for (name, complaints) in news.new.iter().take(MOST_OBJECTS) {
            for complaint in complaints.iter().take(MOST_COMPLAINTS) {
                warn!("{kind} {name}: {complaint}");
            }
            if let more @ 1.. = complaints.len().saturating_sub(MOST_COMPLAINTS) {
                warn!("{kind} {name}: {more} more fields are wrong");
            }
        }
        if let more @ 1.. = news.new.len().saturating_sub(MOST_OBJECTS) {
            warn!(
                "objects of kind {kind} with a part that is not served: {more} more (proxyd --dry-run names all)"
            );
        }
        let mended = news.over.iter().filter(|(name, _)| !gone.contains(name));
        let mended: Vec<_> = mended.map(|(name, _)| name).collect();
        for name in mended.iter().take(MOST_OBJECTS) {
            info!("{kind} {name}: mended, all of it is served");
        }
        if let more @ 1.. = mended.len().saturating_sub(MOST_OBJECTS) {
            info!("objects of kind {kind} that are mended: {more} more");
        }
    }

    fn note(&mut self, name: &ObjectName) {
        self.gone.remove(name);
        self.telling.note(name.clone());
    }
}
