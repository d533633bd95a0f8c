//! The objects, their history and who watches them: what etcd and the watch cache are to kube-apiserver.
//!
//! One counter numbers every write of every kind. The history can be undone, so lists of old versions, and the pages
//! of a list, are consistent until the history is compacted. No I/O here; a watch is the receiving end of a channel.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use ipnet::{Ipv4AddrRange, Ipv4Net};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::object::{Event, Object};
use super::query::{At, Continue, ListRequest, Start};
use super::resource::{Key, Resource};
use super::status::Status;
use super::write;

/// What a watch is told.
#[derive(Debug, Clone)]
pub(super) enum Signal {
    /// Something was written.
    Event(Arc<Event>),
    /// The stream ends, in one of these ways.
    Cut(Cut),
}

/// How watches are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The stream ends as it does after its timeout.
    Clean,
    /// The connection breaks.
    Broken,
    /// The connection breaks in the middle of a line.
    HalfLine,
}

/// The answer to a list.
#[derive(Debug)]
pub(super) struct Page {
    /// The version of the list.
    pub(super) version: u64,
    /// The objects of this page.
    pub(super) objects: Vec<Arc<Object>>,
    /// The token of the next page.
    pub(super) next: Option<Continue>,
    /// How many come after this page; only known without selectors.
    pub(super) remaining: Option<usize>,
}

/// The beginning of a watch.
#[derive(Debug)]
pub(super) struct Subscription {
    /// What to tell first, as ADDED.
    pub(super) initial: Vec<Arc<Object>>,
    /// The version up to which nothing is told beyond `initial`.
    pub(super) version: u64,
    /// What comes then.
    pub(super) signals: mpsc::UnboundedReceiver<Signal>,
}

/// The state of the server.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    compacted: u64,
    next_uid: u64,
    cluster_ips: Option<Ipv4AddrRange>,
    objects: BTreeMap<Resource, BTreeMap<Key, Arc<Object>>>,
    history: VecDeque<Arc<Event>>,
    history_limit: usize,
    watches: Vec<(Resource, mpsc::UnboundedSender<Signal>)>,
}

impl Store {
    /// An empty store that remembers this many writes, and gives Services addresses of this network.
    pub(super) fn new(history_limit: usize, service_cidr: Option<Ipv4Net>) -> Self {
        Self {
            version: 1,
            compacted: 0,
            next_uid: 0,
            cluster_ips: service_cidr.map(|network| network.hosts()),
            objects: Resource::ALL
                .into_iter()
                .map(|resource| (resource, BTreeMap::new()))
                .collect(),
            history: VecDeque::new(),
            history_limit,
            watches: Vec::new(),
        }
    }

    /// The version of the last write.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many watches are open.
    pub(super) fn watches(&self) -> usize {
        self.watches
            .iter()
            .filter(|(_, watch)| !watch.is_closed())
            .count()
    }

    /// One object.
    pub(super) fn get(&self, resource: Resource, key: &Key) -> Result<Arc<Object>, Status> {
        self.objects[&resource]
            .get(key)
            .cloned()
            .ok_or_else(|| Status::not_found(resource, key))
    }

    /// Every object of a kind.
    pub(super) fn all(&self, resource: Resource) -> Vec<Arc<Object>> {
        self.objects[&resource].values().cloned().collect()
    }

    /// Adds an object; `value` has its metadata.
    pub(super) fn create(
        &mut self,
        resource: Resource,
        key: Key,
        mut value: Value,
    ) -> Result<Arc<Object>, Status> {
        if self.objects[&resource].contains_key(&key) {
            return Err(Status::already_exists(resource, &key));
        }
        self.next_uid += 1;
        value["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.next_uid));
        // The API has whole seconds.
        let now =
            Timestamp::from_second(Timestamp::now().as_second()).expect("the clock is in range");
        value["metadata"]["creationTimestamp"] = json!(Time(now));
        if resource == Resource::Services
            && let Some(free) = &mut self.cluster_ips
        {
            write::allocate(&mut value, free)?;
        }
        let object = Arc::new(Object::new(resource, key, self.version + 1, value));
        self.commit(resource, None, Some(object.clone()));
        Ok(object)
    }

    /// Replaces an object. A resource version in `value` must be that of the object; a write that changes nothing
    /// makes no version, as in etcd3's `GuaranteedUpdate`.
    pub(super) fn replace(
        &mut self,
        resource: Resource,
        key: &Key,
        mut value: Value,
    ) -> Result<Arc<Object>, Status> {
        let before = self.get(resource, key)?;
        let old = before.value();
        match value["metadata"]["resourceVersion"].as_str() {
            None | Some("") => {}
            Some(version) if version == before.version.to_string() => {}
            Some(_) => return Err(Status::conflict(resource, key)),
        }
        for kept in ["uid", "creationTimestamp", "resourceVersion"] {
            value["metadata"][kept] = old["metadata"][kept].clone();
        }
        if value == old {
            return Ok(before);
        }
        let after = Arc::new(Object::new(resource, key.clone(), self.version + 1, value));
        self.commit(resource, Some(before), Some(after.clone()));
        Ok(after)
    }

    /// Removes an object, and returns what it was.
    pub(super) fn delete(&mut self, resource: Resource, key: &Key) -> Result<Arc<Object>, Status> {
        let before = self.get(resource, key)?;
        self.commit(resource, Some(before.clone()), None);
        Ok(before)
    }

    /// A page of a list.
    pub(super) fn list(&self, resource: Resource, request: &ListRequest) -> Result<Page, Status> {
        let (version, after) = match &request.at {
            At::NotOlderThan(version) if *version > self.version => {
                return Err(Status::too_large_resource_version(*version, self.version));
            }
            At::NotOlderThan(_) => (self.version, None),
            At::Exact(version) => (*version, None),
            At::Next(Continue { version: 0, after }) => (self.version, Some(after)),
            At::Next(Continue { version, after }) => (*version, Some(after)),
        };
        let snapshot = self
            .snapshot(resource, version)
            .map_err(|status| match after {
                Some(after) if status.code == 410 => expired_page(after),
                _ => status,
            })?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = snapshot
            .range::<Key, _>((start, Bound::Unbounded))
            .map(|(_, object)| *object);
        let mut matching = rest.filter(|object| request.filter.matches(object));
        let limit = request.limit.unwrap_or(usize::MAX);
        let objects: Vec<_> = matching.by_ref().take(limit).cloned().collect();
        let remaining = matching.count();
        let last = objects.last().filter(|_| remaining > 0);
        let next = last.map(|last| Continue {
            version,
            after: last.key.clone(),
        });
        let selects = !(request.filter.labels.is_empty() && request.filter.fields.is_empty());
        let remaining = Some(remaining).filter(|remaining| *remaining > 0 && !selects);
        Ok(Page {
            version,
            objects,
            next,
            remaining,
        })
    }

    /// Begins a watch.
    pub(super) fn watch(
        &mut self,
        resource: Resource,
        start: Start,
    ) -> Result<Subscription, Status> {
        let (sender, signals) = mpsc::unbounded_channel();
        let everything = || self.objects[&resource].values().cloned().collect();
        let (initial, version) = match start {
            Start::StreamingList(version) if version > self.version => {
                return Err(Status::too_large_resource_version(version, self.version));
            }
            Start::StreamingList(_) | Start::Everything => (everything(), self.version),
            Start::Now => (Vec::new(), self.version),
            Start::After(version) if version < self.compacted => return Err(self.too_old(version)),
            Start::After(version) => {
                let first = self
                    .history
                    .partition_point(|event| event.version <= version);
                for event in self
                    .history
                    .range(first..)
                    .filter(|event| event.resource == resource)
                {
                    sender
                        .send(Signal::Event(event.clone()))
                        .expect("the receiver is on the stack");
                }
                (Vec::new(), version)
            }
        };
        self.watches.push((resource, sender));
        Ok(Subscription {
            initial,
            version,
            signals,
        })
    }

    /// Ends every watch.
    pub(super) fn cut(&mut self, cut: Cut) {
        for (_, watch) in self.watches.drain(..) {
            // One whose client has left needs no cut.
            let _ = watch.send(Signal::Cut(cut));
        }
    }

    /// Forgets the history.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    /// Numbers the objects anew from 1, as a cluster does whose etcd came out of a backup. Ends every watch.
    pub(super) fn renumber(&mut self) {
        self.cut(Cut::Broken);
        self.version = 1;
        for (resource, objects) in &mut self.objects {
            for (key, object) in objects {
                self.version += 1;
                *object = Arc::new(Object::new(
                    *resource,
                    key.clone(),
                    self.version,
                    object.value(),
                ));
            }
        }
        self.compact();
    }

    fn commit(
        &mut self,
        resource: Resource,
        before: Option<Arc<Object>>,
        after: Option<Arc<Object>>,
    ) {
        self.version += 1;
        let objects = self
            .objects
            .get_mut(&resource)
            .expect("every kind has a map");
        match (&before, &after) {
            (_, Some(after)) => objects.insert(after.key.clone(), after.clone()),
            (Some(before), None) => objects.remove(&before.key),
            (None, None) => unreachable!("a write has a before or an after"),
        };
        let event = Arc::new(Event::new(resource, self.version, before, after));
        self.watches
            .retain(|(watched, watch)| match watched == &resource {
                true => watch.send(Signal::Event(event.clone())).is_ok(),
                false => !watch.is_closed(),
            });
        self.history.push_back(event);
        if self.history.len() > self.history_limit {
            let forgotten = self.history.pop_front().expect("longer than its limit");
            self.compacted = forgotten.version;
        }
    }

    /// The objects as they were at a version: what is there now with the later writes undone.
    fn snapshot(
        &self,
        resource: Resource,
        version: u64,
    ) -> Result<BTreeMap<&Key, &Arc<Object>>, Status> {
        if version > self.version {
            return Err(Status::too_large_resource_version(version, self.version));
        }
        if version < self.compacted {
            return Err(self.too_old(version));
        }
        let mut objects: BTreeMap<_, _> = self.objects[&resource].iter().collect();
        let later = self
            .history
            .iter()
            .rev()
            .take_while(|event| event.version > version);
        for event in later.filter(|event| event.resource == resource) {
            match (&event.before, &event.after) {
                (Some(before), _) => objects.insert(&before.key, before),
                (None, Some(after)) => objects.remove(&after.key),
                (None, None) => unreachable!("a write has a before or an after"),
            };
        }
        Ok(objects)
    }

    fn too_old(&self, version: u64) -> Status {
        Status::expired(format!(
            "too old resource version: {version} ({})",
            self.compacted
        ))
    }
}

/// The answer to a token whose snapshot is gone: an error, with a token that goes on from the current state.
fn expired_page(after: &Key) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of \
         the results. Continuing with the provided token results in an inconsistent list - objects that were \
         created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.continue_token = Some(
        Continue {
            version: 0,
            after: after.clone(),
        }
        .to_text(),
    );
    status
}
