//! One version of one object, as the bytes that every list and every watch share.
//!
//! An object is parsed when it is written and serialized once in each encoding. What selectors ask about is kept beside
//! the bytes, so no read ever parses JSON.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use serde_json::{Value, json};

use super::encoding::Encoding;
use super::protobuf;
use super::resource::{Key, Resource};
use super::selector::{FieldSelector, LabelSelector};

/// A version of an object.
#[derive(Debug)]
pub(super) struct Object {
    /// Its name within its kind.
    pub(super) key: Key,
    /// `metadata.resourceVersion`.
    pub(super) version: u64,
    /// The object as JSON.
    pub(super) json: Bytes,
    /// The object as a message of its kind.
    pub(super) protobuf: Bytes,
    resource: Resource,
    labels: BTreeMap<String, String>,
    fields: Vec<(&'static str, String)>,
}

impl Object {
    /// Takes a complete object, and writes the resource version into it.
    pub(super) fn new(resource: Resource, key: Key, version: u64, mut value: Value) -> Self {
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        let labels = value["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten();
        let labels = labels
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let fields = match resource {
            Resource::Services => vec![
                ("spec.clusterIP", text(&value["spec"]["clusterIP"])),
                ("spec.type", text(&value["spec"]["type"])),
            ],
            Resource::Nodes => {
                let unschedulable = value["spec"]["unschedulable"].as_bool().unwrap_or_default();
                vec![("spec.unschedulable", unschedulable.to_string())]
            }
            Resource::EndpointSlices
            | Resource::ServiceCidrs
            | Resource::Events
            | Resource::Namespaces => Vec::new(),
        };
        Self {
            key,
            version,
            json: value.to_string().into(),
            protobuf: protobuf::encode(resource.schema(), &value).into(),
            resource,
            labels,
            fields,
        }
    }

    /// The object as a tree.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the server serialized it")
    }

    /// The object as it is sent by itself.
    pub(super) fn alone(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Json => self.json.clone(),
            Encoding::Protobuf => {
                let (version, kind) = (self.resource.api_version(), self.resource.kind());
                protobuf::wrap(version, kind, &self.protobuf).into()
            }
        }
    }

    /// The frame that tells a watch of this object.
    pub(super) fn frame(&self, change: Change, encoding: Encoding) -> Bytes {
        encoding.frame(change.name(), &self.alone(encoding))
    }
}

/// Which objects a client wants to see.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// One namespace, or all.
    pub(super) namespace: Option<String>,
    /// `labelSelector`.
    pub(super) labels: LabelSelector,
    /// `fieldSelector`.
    pub(super) fields: FieldSelector,
}

impl Filter {
    /// Whether the client sees this object.
    pub(super) fn matches(&self, object: &Object) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|namespace| namespace == &*object.key.namespace)
            && self.labels.matches(&object.labels)
            && self.fields.matches(&object.key, &object.fields)
    }
}

/// The `type` of a watch event about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// A write: what the object was and what it is. The frames that tell watches of it are made once and shared.
#[derive(Debug)]
pub(super) struct Event {
    /// The kind of the object.
    pub(super) resource: Resource,
    /// The resource version the write made.
    pub(super) version: u64,
    /// What was there before; nothing for a creation.
    pub(super) before: Option<Arc<Object>>,
    /// What is there now; nothing for a deletion.
    pub(super) after: Option<Arc<Object>>,
    frames: [[OnceLock<Bytes>; 3]; 2],
}

impl Event {
    /// A write that made `version`.
    pub(super) fn new(
        resource: Resource,
        version: u64,
        before: Option<Arc<Object>>,
        after: Option<Arc<Object>>,
    ) -> Self {
        Self {
            resource,
            version,
            before,
            after,
            frames: Default::default(),
        }
    }

    /// The frame for a watch with this filter, or none. An object that starts to match was added as far as the client
    /// can see, one that stops was deleted (cacheWatcher.convertToWatchEvent in apiserver's storage/cacher).
    pub(super) fn frame_for(&self, filter: &Filter, encoding: Encoding) -> Option<Bytes> {
        let seen = |object: &Option<Arc<Object>>| {
            object.as_ref().is_some_and(|object| filter.matches(object))
        };
        match (seen(&self.before), seen(&self.after)) {
            (false, false) => None,
            (false, true) => Some(self.frame(Change::Added, encoding)),
            (true, true) => Some(self.frame(Change::Modified, encoding)),
            (true, false) => Some(self.frame(Change::Deleted, encoding)),
        }
    }

    fn frame(&self, change: Change, encoding: Encoding) -> Bytes {
        let make = || match (change, &self.before, &self.after) {
            // What the client knew last, with the version of the write that took it away.
            (Change::Deleted, Some(before), _) => Object::new(
                self.resource,
                before.key.clone(),
                self.version,
                before.value(),
            )
            .frame(change, encoding),
            (_, _, Some(after)) => after.frame(change, encoding),
            _ => unreachable!("a deletion has a before, anything else an after"),
        };
        let frames = &self.frames[encoding as usize];
        frames[change as usize].get_or_init(make).clone()
    }
}

/// A bookmark: everything up to `version` has been told. The last of the initial events carries an annotation.
pub(super) fn bookmark(
    resource: Resource,
    encoding: Encoding,
    version: u64,
    ends_initial_events: bool,
) -> Bytes {
    let mut metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
    if ends_initial_events {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    let object = json!({ "kind": resource.kind(), "apiVersion": resource.api_version(), "metadata": metadata });
    encoding.frame("BOOKMARK", &encoding.of_resource(resource, &object))
}
