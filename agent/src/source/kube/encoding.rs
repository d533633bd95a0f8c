//! What an API server says, in either of its encodings: events of a watch, pages of a list, and refusals.
//!
//! Protobuf where the server has it: half the bytes, and a fraction of the work for either side. Which of the two an
//! answer is in is said by its `Content-Type`. Pure: bytes in, objects out. An object that cannot be decoded is an
//! error of that object alone; what it is wrapped in has to be right.

use std::fmt::Debug;
use std::ops::Range;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::Resource;
use kube::core::{Status, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::trouble::Trouble;
use crate::model::translate::{name_of, wire};
use crate::model::{Complaint, ObjectName};

/// The media type of Kubernetes' protobuf; a watch adds a parameter to it.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// No event of a watch is longer: etcd takes no object over 1.5 MB.
pub(super) const MAX_FRAME_BYTES: usize = 16 << 20;

/// The annotation of the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// The length in front of an event in protobuf: four bytes, the highest first (`LengthDelimitedFramer`).
const FRAME_HEADER_BYTES: usize = 4;

/// A kind of object that is read in both encodings.
pub(super) trait Object:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + wire::Message
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + wire::Message
{
}

/// How an answer is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// JSON; a watch is lines of it.
    Json,
    /// Kubernetes' protobuf; a watch is messages behind their lengths.
    Protobuf,
}

/// An object as it came.
#[derive(Debug)]
pub(super) struct Received<K> {
    /// Its name.
    pub(super) name: ObjectName,
    /// Its version, empty if it has none.
    pub(super) version: String,
    /// The object, or why it cannot be decoded.
    pub(super) object: Result<K, Complaint>,
}

/// What a watch says.
#[derive(Debug)]
pub(super) enum Said<K> {
    /// There is a new object.
    Added(Received<K>),
    /// An object has changed.
    Modified(Received<K>),
    /// An object is gone; its version is that of the deletion.
    Deleted {
        /// Its name.
        name: ObjectName,
        /// Its version, empty if it has none.
        version: String,
    },
    /// All that happened up to this version was said.
    Bookmark {
        /// The version.
        version: String,
        /// Whether these were the initial events of a streaming list.
        ends_list: bool,
    },
    /// The watch is over, for this reason.
    Error(Box<Status>),
}

/// Part of a list.
#[derive(Debug)]
pub(super) struct Page<K> {
    /// Its objects.
    pub(super) items: Vec<Received<K>>,
    /// The version of the list.
    pub(super) version: String,
    /// The token of the next page, if there is one.
    pub(super) next: Option<String>,
}

impl Encoding {
    /// What to ask for: the best first, or JSON alone.
    pub(super) fn accepted(json_only: bool) -> HeaderValue {
        HeaderValue::from_static(match json_only {
            true => "application/json",
            false => "application/vnd.kubernetes.protobuf,application/json",
        })
    }

    /// The encoding of an answer. What does not say that it is protobuf is read as JSON.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let said = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        match said.is_some_and(|said| said.starts_with(PROTOBUF.as_bytes())) {
            true => Self::Protobuf,
            false => Self::Json,
        }
    }

    /// Where the first event of a watch is in these bytes, and behind it, where the next begins; none if it has not
    /// come as a whole. No line ends in the first `searched` bytes.
    ///
    /// # Errors
    /// That it is longer than any event.
    pub(super) fn frame(
        self,
        bytes: &[u8],
        searched: usize,
    ) -> Result<Option<(Range<usize>, usize)>, Trouble> {
        match self {
            Self::Json => {
                let end = bytes[searched..].iter().position(|&byte| byte == b'\n');
                match end {
                    Some(length) => Ok(Some((0..searched + length, searched + length + 1))),
                    None if bytes.len() > MAX_FRAME_BYTES => {
                        Err(Trouble::unreadable("a line without end"))
                    }
                    None => Ok(None),
                }
            }
            Self::Protobuf => {
                let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
                    return Ok(None);
                };
                let length = u32::from_be_bytes(*header) as usize;
                if length > MAX_FRAME_BYTES {
                    return Err(Trouble::unreadable(format!("an event of {length} bytes")));
                }
                let end = FRAME_HEADER_BYTES + length;
                Ok((rest.len() >= length).then_some((FRAME_HEADER_BYTES..end, end)))
            }
        }
    }

    /// Reads an event of a watch.
    ///
    /// # Errors
    /// That it is none.
    pub(super) fn event<K: Object>(self, frame: &[u8]) -> Result<Said<K>, Trouble> {
        match self {
            Self::Json => json_event(frame),
            Self::Protobuf => protobuf_event(frame).map_err(Trouble::unreadable)?,
        }
    }

    /// Reads a page of a list.
    ///
    /// # Errors
    /// That it is none.
    pub(super) fn page<K: Object>(self, body: &[u8]) -> Result<Page<K>, Trouble> {
        let (metadata, items) = match self {
            Self::Json => json_page(body).map_err(Trouble::unreadable)?,
            Self::Protobuf => {
                let page = wire::page(body).map_err(Trouble::unreadable)?;
                let items = page.items.into_iter().map(Received::from_wire).collect();
                (page.metadata, items)
            }
        };
        Ok(Page {
            items,
            version: metadata.resource_version.unwrap_or_default(),
            next: metadata.continue_.filter(|token| !token.is_empty()),
        })
    }

    /// Reads why a request was refused; none if it does not say so in the API's way.
    pub(super) fn status(self, body: &[u8]) -> Option<Status> {
        match self {
            Self::Json => serde_json::from_slice(body).ok(),
            Self::Protobuf => wire::status(body).ok().map(status),
        }
    }
}

fn protobuf_event<K: Object>(frame: &[u8]) -> Result<Result<Said<K>, Trouble>, wire::Undecodable> {
    let event = wire::watch_event(frame)?;
    Ok(Ok(match event.kind {
        b"ADDED" => Said::Added(Received::from_wire(event.object)),
        b"MODIFIED" => Said::Modified(Received::from_wire(event.object)),
        b"DELETED" => {
            let metadata = wire::metadata(event.object);
            Said::Deleted {
                name: name_of(&metadata),
                version: metadata.resource_version.unwrap_or_default(),
            }
        }
        b"BOOKMARK" => {
            let metadata = wire::metadata(event.object);
            let annotations = metadata.annotations.unwrap_or_default();
            Said::Bookmark {
                version: metadata.resource_version.unwrap_or_default(),
                ends_list: annotations.contains_key(INITIAL_EVENTS_END),
            }
        }
        b"ERROR" => Said::Error(Box::new(status(wire::decode(event.object)?))),
        other => {
            let other = String::from_utf8_lossy(other);
            return Ok(Err(Trouble::unreadable(format!(
                "an event of type {other:?}"
            ))));
        }
    }))
}

/// The fields of a status that anybody looks at.
fn status(status: meta::Status) -> Status {
    let code = status.code.and_then(|code| u16::try_from(code).ok());
    let details = status.details.unwrap_or_default();
    let retry_after = details.retry_after_seconds;
    let retry_after = retry_after.and_then(|seconds| u32::try_from(seconds).ok());
    let mut read = Status::failure(
        &status.message.unwrap_or_default(),
        &status.reason.unwrap_or_default(),
    )
    .with_code(code.unwrap_or_default());
    read.details = retry_after.map(|retry_after_seconds| kube::core::response::StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds,
    });
    read
}

fn json_event<K: Object>(line: &[u8]) -> Result<Said<K>, Trouble> {
    match serde_json::from_slice(line) {
        Ok(WatchEvent::Added(object)) => Ok(Said::Added(Received::whole(object))),
        Ok(WatchEvent::Modified(object)) => Ok(Said::Modified(Received::whole(object))),
        Ok(WatchEvent::Deleted(object)) => Ok(deleted(object.meta())),
        Ok(WatchEvent::Bookmark(bookmark)) => Ok(Said::Bookmark {
            version: bookmark.metadata.resource_version,
            ends_list: bookmark
                .metadata
                .annotations
                .contains_key(INITIAL_EVENTS_END),
        }),
        Ok(WatchEvent::Error(status)) => Ok(Said::Error(status)),
        // The line may be right and its object wrong.
        Err(error) => match serde_json::from_slice(line) {
            Ok(WatchEvent::Added(value)) => Ok(Said::Added(Received::from_json(value))),
            Ok(WatchEvent::Modified(value)) => Ok(Said::Modified(Received::from_json(value))),
            Ok(WatchEvent::Deleted(value)) => Ok(deleted(&json_metadata(&value))),
            _ => Err(Trouble::unreadable(error)),
        },
    }
}

fn deleted<K>(metadata: &meta::ObjectMeta) -> Said<K> {
    Said::Deleted {
        name: name_of(metadata),
        version: metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// A list whose objects are looked at one by one, since one of them may be wrong.
#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: meta::ListMeta,
    items: Option<Vec<T>>,
}

fn json_page<K: Object>(body: &[u8]) -> serde_json::Result<(meta::ListMeta, Vec<Received<K>>)> {
    let whole: serde_json::Result<List<K>> = serde_json::from_slice(body);
    if let Ok(page) = whole {
        let items = page.items.into_iter().flatten().map(Received::whole);
        return Ok((page.metadata, items.collect()));
    }
    let page: List<Value> = serde_json::from_slice(body)?;
    let items = page.items.into_iter().flatten().map(Received::from_json);
    Ok((page.metadata, items.collect()))
}

impl<K: Object> Received<K> {
    fn whole(object: K) -> Self {
        let metadata = object.meta();
        Self {
            name: name_of(metadata),
            version: metadata.resource_version.clone().unwrap_or_default(),
            object: Ok(object),
        }
    }

    fn broken(metadata: &meta::ObjectMeta, why: Complaint) -> Self {
        Self {
            name: name_of(metadata),
            version: metadata.resource_version.clone().unwrap_or_default(),
            object: Err(why),
        }
    }

    fn from_wire(object: &[u8]) -> Self {
        match wire::decode(object) {
            Ok(object) => Self::whole(object),
            Err(error) => Self::broken(&wire::metadata(object), error.complaint()),
        }
    }

    fn from_json(value: Value) -> Self {
        let metadata = json_metadata(&value);
        match serde_path_to_error::deserialize(value) {
            Ok(object) => Self::whole(object),
            Err(error) => {
                let field = error.path().to_string();
                let reason = format!("{}; the object is skipped", error.inner());
                Self::broken(&metadata, Complaint::new(field, reason))
            }
        }
    }
}

/// The name and the version of an object that may be none, as far as they are there.
fn json_metadata(value: &Value) -> meta::ObjectMeta {
    let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
    meta::ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..meta::ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
