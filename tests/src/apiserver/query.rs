//! What a list or a watch asks for: `ListOptions` in the query, parsed into requests that cannot contradict themselves.
//!
//! The rules are those of `apimachinery/pkg/apis/meta/internalversion/validation` and of the table in
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list>.

use std::collections::BTreeMap;
use std::time::Duration;

use super::object::Filter;
use super::resource::{Key, Resource};
use super::selector::{FieldSelector, LabelSelector};
use super::status::Status;

/// The parameters of a query, decoded.
pub(super) type Query = BTreeMap<String, String>;

/// What the server can do, which depends on its version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Features {
    /// `sendInitialEvents`.
    pub(super) streaming_lists: bool,
    /// `spec.clusterIP` and `spec.type` in field selectors of Services.
    pub(super) service_fields: bool,
}

/// A read of a collection.
#[derive(Debug)]
pub(super) enum Read {
    /// The objects as they are.
    List(ListRequest),
    /// Their changes from now on.
    Watch(WatchRequest),
}

/// A list.
#[derive(Debug)]
pub(super) struct ListRequest {
    /// Which objects.
    pub(super) filter: Filter,
    /// As of when.
    pub(super) at: At,
    /// How many in one answer.
    pub(super) limit: Option<usize>,
}

/// The version a list shows.
#[derive(Debug)]
pub(super) enum At {
    /// The current one, which must not be older than this.
    NotOlderThan(u64),
    /// This one.
    Exact(u64),
    /// The next page of a list.
    Next(Continue),
}

/// A watch.
#[derive(Debug)]
pub(super) struct WatchRequest {
    /// Which objects.
    pub(super) filter: Filter,
    /// Where it begins.
    pub(super) start: Start,
    /// Whether the client wants bookmarks.
    pub(super) bookmarks: bool,
    /// How long it lasts.
    pub(super) timeout: Option<Duration>,
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// With what there is, as ADDED, then the changes.
    Everything,
    /// The same for a streaming list: no older than this version, and a bookmark says when all has been told.
    StreamingList(u64),
    /// With the changes after this version.
    After(u64),
    /// With the changes from now on.
    Now,
}

/// A continue token: `version/namespace/name` of the last object told. Version 0 stands for the current state, for
/// clients that go on with a list whose snapshot is gone.
#[derive(Debug)]
pub(super) struct Continue {
    /// The version of the first page.
    pub(super) version: u64,
    /// The last object of the page before.
    pub(super) after: Key,
}

impl Continue {
    /// The token as text, opaque to clients.
    pub(super) fn to_text(&self) -> String {
        format!(
            "{}/{}/{}",
            self.version, self.after.namespace, self.after.name
        )
    }

    fn parse(text: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request(format!("continue key is not valid: {text}"));
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or_else(bad);
        let version = part()?.parse().map_err(|_| bad())?;
        let namespace = part()?;
        Ok(Self {
            version,
            after: Key::new(Some(namespace), part()?),
        })
    }
}

impl Read {
    /// Parses the query of a read of `resource`, in one namespace or in all.
    pub(super) fn parse(
        resource: Resource,
        namespace: Option<String>,
        query: &Query,
        features: Features,
    ) -> Result<Self, Status> {
        let text = |name: &str| {
            query
                .get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let filter = Filter {
            namespace,
            labels: LabelSelector::parse(text("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(
                text("fieldSelector").unwrap_or_default(),
                resource,
                features.service_fields,
            )?,
        };
        let causes = if is_watch(query) {
            watch_rules(query, features)
        } else {
            list_rules(query)
        };
        if !causes.is_empty() {
            return Err(Status::invalid(("ListOptions.meta.k8s.io", ""), &causes));
        }
        let version = text("resourceVersion").map(parse_version).transpose()?;
        if is_watch(query) {
            let start = match (flag(query, "sendInitialEvents"), version) {
                (Some(true), version) => Start::StreamingList(version.unwrap_or(0)),
                (Some(false), None | Some(0)) => Start::Now,
                (None, None | Some(0)) => Start::Everything,
                (_, Some(version)) => Start::After(version),
            };
            let timeout = number(query, "timeoutSeconds")?.filter(|seconds| *seconds > 0);
            let bookmarks = flag(query, "allowWatchBookmarks") == Some(true);
            let timeout = timeout.map(Duration::from_secs);
            return Ok(Read::Watch(WatchRequest {
                filter,
                start,
                bookmarks,
                timeout,
            }));
        }
        let limit = number(query, "limit")?.filter(|limit| *limit > 0);
        let at = match (text("continue"), version, text("resourceVersionMatch")) {
            (Some(_), Some(1..), _) => {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            (Some(token), ..) => At::Next(Continue::parse(token)?),
            (None, Some(version), Some("Exact")) => At::Exact(version),
            // A limit without a match means exactly this version, for the sake of old clients.
            (None, Some(version @ 1..), None) if limit.is_some() => At::Exact(version),
            (None, version, _) => At::NotOlderThan(version.unwrap_or(0)),
        };
        // The watch cache, which answers resourceVersion=0, does not page.
        let cached = version == Some(0) && !matches!(at, At::Next(_));
        let limit = limit
            .filter(|_| !cached)
            .and_then(|limit| usize::try_from(limit).ok());
        Ok(Read::List(ListRequest { filter, at, limit }))
    }
}

/// Whether the query asks for a watch.
pub(super) fn is_watch(query: &Query) -> bool {
    flag(query, "watch") == Some(true)
}

fn list_rules(query: &Query) -> Vec<String> {
    let mut causes = Vec::new();
    let text = |name: &str| query.get(name).map_or("", String::as_str);
    let matching = text("resourceVersionMatch");
    if !matching.is_empty() {
        let field = "resourceVersionMatch";
        if text("resourceVersion").is_empty() {
            causes.push(forbidden(
                field,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !text("continue").is_empty() {
            causes.push(forbidden(
                field,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            causes.push(unsupported_match(
                matching,
                "\"Exact\", \"NotOlderThan\", \"\"",
            ));
        }
        if matching == "Exact" && text("resourceVersion") == "0" {
            let rule = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            causes.push(forbidden(field, rule));
        }
    }
    if query.contains_key("sendInitialEvents") {
        causes.push(forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for list",
        ));
    }
    causes
}

fn watch_rules(query: &Query, features: Features) -> Vec<String> {
    let mut causes = Vec::new();
    let text = |name: &str| query.get(name).map_or("", String::as_str);
    let matching = text("resourceVersionMatch");
    let field = "resourceVersionMatch";
    let initial_events = query.contains_key("sendInitialEvents");
    if initial_events && matching != "NotOlderThan" {
        causes.push(forbidden(
            field,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if initial_events && !features.streaming_lists {
        let rule =
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        causes.push(forbidden("sendInitialEvents", rule));
    }
    if !matching.is_empty() {
        if !initial_events {
            let rule =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            causes.push(forbidden(field, rule));
        }
        if matching != "NotOlderThan" {
            causes.push(unsupported_match(matching, "\"NotOlderThan\""));
        }
        if !text("continue").is_empty() {
            causes.push(forbidden(
                field,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
    }
    causes
}

fn forbidden(field: &str, rule: &str) -> String {
    format!("{field}: Forbidden: {rule}")
}

fn unsupported_match(value: &str, supported: &str) -> String {
    format!("resourceVersionMatch: Unsupported value: \"{value}\": supported values: {supported}")
}

/// Booleans as the server reads them: only `false` and `0` are false, an empty value is true
/// (`runtime.Convert_Slice_string_To_bool`).
fn flag(query: &Query, name: &str) -> Option<bool> {
    query
        .get(name)
        .map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
}

fn number(query: &Query, name: &str) -> Result<Option<u64>, Status> {
    let Some(text) = query.get(name).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| Status::bad_request(format!("{name}: not a number: {text}")))
}

fn parse_version(text: &str) -> Result<u64, Status> {
    text.parse()
        .map_err(|_| Status::bad_request(format!("invalid resource version: {text}")))
}
