//! Text → API objects. Pure: a file's text in, objects and complaints out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kinds;
use crate::model::ObjectName;
use crate::model::translate::{Objects, name_of};

/// A document, or an object of one, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    file: PathBuf,
    place: Option<Place>,
    message: String,
    consequence: Consequence,
}

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consequence {
    /// What it is about is skipped.
    Skipped,
    /// What the file held before stays in force.
    KeptBefore,
    /// The object is taken all the same.
    Taken,
}

/// Where in a file: documents and the items of a List count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    document: usize,
    item: Option<usize>,
    object: Option<String>,
}

/// An object that matters, and where it was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    place: Place,
    pub(super) object: Object,
}

/// What a text holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The objects that matter.
    pub(super) found: Vec<Found>,
    /// What is wrong with the rest.
    pub(super) errors: Vec<ManifestError>,
    /// How many documents it has that are not empty.
    pub(super) documents: usize,
    /// How many objects there are of kinds that do not matter.
    pub(super) others: BTreeMap<String, usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    Service(Box<core::Service>),
    Slice(Box<discovery::EndpointSlice>),
    Endpoints(Box<core::Endpoints>),
    Node(Box<core::Node>),
    ServiceCidr(Box<networking::ServiceCIDR>),
}

impl ManifestError {
    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        Self::new(file, None, format!("cannot be read: {error}"))
    }

    fn new(file: &Path, place: Option<Place>, message: String) -> Self {
        Self {
            file: file.to_owned(),
            place,
            message,
            consequence: Consequence::Skipped,
        }
    }

    /// What is no error, but should be known.
    pub(super) fn hint(file: &Path, message: impl Into<String>) -> Self {
        Self {
            consequence: Consequence::Taken,
            ..Self::new(file, None, message.into())
        }
    }

    /// The file that it is about.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Says that what the file held before stays in force.
    pub(super) fn note_kept(&mut self) {
        if self.is_refusal() {
            self.consequence = Consequence::KeptBefore;
        }
    }

    /// Whether something was refused; else it is only a hint.
    pub fn is_refusal(&self) -> bool {
        self.consequence != Consequence::Taken
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.file))?;
        if let Some(place) = &self.place {
            write!(f, "{place}")?;
        }
        write!(f, ": {}", self.message)?;
        if self.consequence == Consequence::KeptBefore {
            f.write_str("; objects that this file held before stay in force until it is mended")?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ", document {}", self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        self.object
            .as_ref()
            .map_or(Ok(()), |object| write!(f, ", {object}"))
    }
}

/// Whether a path stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file's name for people.
fn shown(file: &Path) -> String {
    if is_stdin(file) {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

/// Parses a file's text.
pub(super) fn file(file: &Path, text: &str) -> Contents {
    let mut contents = Contents::default();
    for (index, value) in documents(text).enumerate() {
        let place = Place {
            document: index + 1,
            item: None,
            object: None,
        };
        match value {
            Ok(Value::Null) => continue,
            Ok(value) => contents.take(file, place, value),
            Err(message) => contents.refuse(file, place, message),
        }
        contents.documents += 1;
    }
    contents
}

/// The documents of a text. Separated as kubectl does it, so that a bad one does not cost those behind it; each
/// holds JSON values if it begins with a brace or bracket, else YAML.
fn documents(text: &str) -> impl Iterator<Item = Result<Value, String>> {
    let mut starts: Vec<usize> = vec![0];
    let lines = text.match_indices("\n---").map(|(at, _)| at + 1);
    starts.extend(lines.filter(|at| {
        let rest = &text[at + 3..];
        // Directives such as %YAML belong to the document behind their separator.
        let has_directive = text[..*at]
            .trim_end()
            .lines()
            .next_back()
            .is_some_and(|line| line.starts_with('%'));
        (rest.is_empty() || rest.starts_with(['\n', '\r', ' ', '\t'])) && !has_directive
    }));
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([text.len()]).collect();
    let documents = starts
        .into_iter()
        .zip(ends)
        .map(|(start, end)| &text[start..end]);
    // A text that begins with a separator has nothing before it.
    let documents = documents.filter(|document| !document.trim().is_empty());
    documents.flat_map(move |document| {
        let bare = document
            .strip_prefix("---")
            .unwrap_or(document)
            .trim_start();
        // A brace may begin YAML in flow style, too.
        let values = if bare.starts_with(['{', '[']) {
            json(bare)
        } else {
            Vec::new()
        };
        if !values.is_empty() && (values.iter().all(Result::is_ok) || bare.starts_with("{\"")) {
            return values;
        }
        // Only an error pays for the lines before it, by which it tells the line in the file.
        let value = yaml(document).or_else(|_| {
            let before = document.as_ptr().addr() - text.as_ptr().addr();
            let lines = text[..before].matches('\n').count();
            yaml(&("\n".repeat(lines) + document))
        });
        vec![value]
    })
}

/// One or more JSON values.
fn json(text: &str) -> Vec<Result<Value, String>> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    values
        .map(|value| value.map_err(|error| format!("not valid JSON: {error}")))
        .collect()
}

fn yaml(document: &str) -> Result<Value, String> {
    // The limits guard against hostile input; these files are the operator's own, and large.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_reader_input_bytes: None,
        },
    };
    serde_saphyr::from_str_with_options(document, options)
        .map_err(|error| format!("not valid YAML: {error}"))
}

impl Contents {
    fn refuse(&mut self, file: &Path, place: Place, message: String) {
        let error = ManifestError::new(file, Some(place), message);
        self.errors.push(error);
    }

    /// Takes the objects that a value stands for.
    fn take(&mut self, file: &Path, place: Place, value: Value) {
        let text = |key: &str| {
            let value = value.get(key).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let (api, kind) = (text("apiVersion"), text("kind"));
        let place = Place {
            object: described(&kind, &value),
            ..place
        };
        if kind.is_empty() {
            let message = "not a Kubernetes object: `kind` is missing".to_owned();
            return self.refuse(file, place, message);
        }
        if kind.ends_with("List") && (kind == "List" || value.get("items").is_some()) {
            return self.take_list(file, &place, [&api, &kind], value);
        }
        let mut ignored = Vec::new();
        let ignored_fields = &mut ignored;
        let object = match (api.as_str(), kind.as_str()) {
            ("v1", "Service") => typed(value, ignored_fields).map(Object::Service),
            ("v1", "Endpoints") => typed(value, ignored_fields).map(Object::Endpoints),
            ("v1", "Node") => typed(value, ignored_fields).map(Object::Node),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                typed(value, ignored_fields).map(Object::Slice)
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                typed(value, ignored_fields).map(Object::ServiceCidr)
            }
            _ => match kinds::misspelt(&api, &kind) {
                Some(message) => Err(message),
                None => {
                    *self.others.entry(kind).or_default() += 1;
                    return;
                }
            },
        };
        self.errors.extend(ignored.into_iter().map(|field| {
            let message = format!("{field}: not a known field; it is ignored");
            ManifestError {
                place: Some(place.clone()),
                ..ManifestError::hint(file, message)
            }
        }));
        match object.and_then(Object::named) {
            Ok(object) => self.found.push(Found { place, object }),
            Err(message) => self.refuse(file, place, message),
        }
    }

    /// Takes the items of a list, which has this `apiVersion` and kind.
    fn take_list(&mut self, file: &Path, place: &Place, [api, kind]: [&str; 2], mut list: Value) {
        let items = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            // So Go writes a list without any.
            Some(Value::Null) => Vec::new(),
            Some(_) | None => {
                let message = "items: not a list of objects".to_owned();
                return self.refuse(file, place.clone(), message);
            }
        };
        for (index, mut item) in items.into_iter().enumerate() {
            // The API itself leaves out what the list's kind says already.
            if let (Value::Object(item), Some(kind)) = (&mut item, kind.strip_suffix("List"))
                && !kind.is_empty()
            {
                item.entry("kind").or_insert_with(|| kind.into());
                item.entry("apiVersion").or_insert_with(|| api.into());
            }
            let place = Place {
                item: Some(index + 1),
                object: None,
                ..place.clone()
            };
            self.take(file, place, item);
        }
    }
}

/// `Kind namespace/name`, as far as it is there.
fn described(kind: &str, value: &Value) -> Option<String> {
    let metadata = value.get("metadata")?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str);
    let namespace = text("namespace")
        .map(|namespace| format!("{namespace}/"))
        .unwrap_or_default();
    Some(format!("{kind} {namespace}{}", text("name")?))
}

/// The object that a value stands for; notes the fields that it has no place for.
fn typed<T: DeserializeOwned>(value: Value, ignored: &mut Vec<String>) -> Result<T, String> {
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(tracked, |path| ignored.push(field(&path.to_string())));
    result.map_err(|error| format!("{}: {error}", track.path()))
}

/// A path as Kubernetes writes it: `spec.ports[0].name` for `spec.?.ports.?.0.name`.
fn field(path: &str) -> String {
    let segments = path.split('.').filter(|segment| *segment != "?");
    segments.fold(String::new(), |path, segment| {
        if segment.bytes().all(|byte| byte.is_ascii_digit()) {
            format!("{path}[{segment}]")
        } else if path.is_empty() {
            segment.to_owned()
        } else {
            format!("{path}.{segment}")
        }
    })
}

impl Object {
    /// The object with its namespace filled in as kubectl does; an error if it has no name.
    fn named(mut self) -> Result<Self, String> {
        let (metadata, namespaced): (&mut ObjectMeta, _) = match &mut self {
            Self::Service(object) => (&mut object.metadata, true),
            Self::Slice(object) => (&mut object.metadata, true),
            Self::Endpoints(object) => (&mut object.metadata, true),
            Self::Node(object) => (&mut object.metadata, false),
            Self::ServiceCidr(object) => (&mut object.metadata, false),
        };
        if metadata.name.as_ref().is_none_or(String::is_empty) {
            return Err("metadata.name: missing".to_owned());
        }
        if namespaced {
            metadata
                .namespace
                .get_or_insert_with(|| "default".to_owned());
        }
        Ok(self)
    }

    pub(super) fn key(&self) -> (&'static str, ObjectName) {
        match self {
            Self::Service(object) => ("Service", name_of(&object.metadata)),
            Self::Slice(object) => ("EndpointSlice", name_of(&object.metadata)),
            Self::Endpoints(object) => ("Endpoints", name_of(&object.metadata)),
            Self::Node(object) => ("Node", name_of(&object.metadata)),
            Self::ServiceCidr(object) => ("ServiceCIDR", name_of(&object.metadata)),
        }
    }
}

/// Adds what a file held before and is missing now; tells whether there was anything.
pub(super) fn keep_missing(found: &mut Vec<Found>, before: Vec<Found>) -> bool {
    let now: BTreeSet<_> = found.iter().map(|found| found.object.key()).collect();
    let missing = before
        .into_iter()
        .filter(|before| !now.contains(&before.object.key()));
    let count = found.len();
    found.extend(missing);
    found.len() > count
}

/// Gathers what the files hold. Of two objects with one name the first counts, and the other is an error.
pub(super) fn collect(
    files: &BTreeMap<PathBuf, Vec<Found>>,
    errors: &mut Vec<ManifestError>,
) -> Objects {
    let mut objects = Objects::default();
    let mut first: BTreeMap<_, &Path> = BTreeMap::new();
    for (file, found) in files {
        for Found { place, object } in found {
            if let Some(other) = first.get(&object.key()) {
                let message = format!(
                    "defined already in {}; this one is skipped",
                    other.display()
                );
                errors.push(ManifestError::new(file, Some(place.clone()), message));
                continue;
            }
            first.insert(object.key(), file);
            match object.clone() {
                Object::Service(object) => objects.services.push(*object),
                Object::Slice(object) => objects.slices.push(*object),
                Object::Endpoints(object) => objects.endpoints.push(*object),
                Object::Node(object) => objects.nodes.push(*object),
                Object::ServiceCidr(object) => objects.service_cidrs.push(*object),
            }
        }
    }
    objects
}

#[cfg(test)]
mod tests;
