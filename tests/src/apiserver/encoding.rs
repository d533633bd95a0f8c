//! The encodings that the server speaks, and how an answer is put together in each.

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use serde_json::{Value, json};

use super::protobuf;
use super::resource::Resource;
use super::schema::{LIST_META, STATUS, Schema};
use super::status::Status;

/// The media type of Kubernetes' protobuf.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// An encoding of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JSON; a watch is lines of it.
    Json,
    /// Kubernetes' protobuf; a watch is messages behind their lengths.
    Protobuf,
}

impl Encoding {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Json, Self::Protobuf];

    /// The first encoding that a client accepts for what it asks for by `as`, or for the object itself if that is
    /// nothing. A client that says nothing accepts JSON.
    pub(super) fn accepted(
        headers: &HeaderMap,
        form: Option<&str>,
        offered: &[Self],
    ) -> Option<Self> {
        let mut ranges = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .peekable();
        if ranges.peek().is_none() {
            return form.is_none().then_some(Self::Json);
        }
        ranges.find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let encoding = match parts.next()? {
                "application/json" | "application/*" | "*/*" => Self::Json,
                PROTOBUF => Self::Protobuf,
                _ => return None,
            };
            let is_wanted = parts.find_map(|part| part.strip_prefix("as=")) == form;
            (is_wanted && offered.contains(&encoding)).then_some(encoding)
        })
    }

    /// The `Content-Type` of an object, a list or an error.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The `Content-Type` of a watch.
    pub(super) fn stream_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// An event of a watch: a line `{"type":…,"object":…}`, or a message behind its length.
    pub(super) fn frame(self, kind: &str, object: &[u8]) -> Bytes {
        match self {
            Self::Json => {
                let mut line = Vec::with_capacity(object.len() + 32);
                line.extend_from_slice(b"{\"type\":\"");
                line.extend_from_slice(kind.as_bytes());
                line.extend_from_slice(b"\",\"object\":");
                line.extend_from_slice(object);
                line.extend_from_slice(b"}\n");
                line.into()
            }
            Self::Protobuf => protobuf::frame(kind, object).into(),
        }
    }

    /// Half of a frame, which ends where a frame should.
    pub(super) fn half(self, frame: &[u8]) -> Bytes {
        match self {
            Self::Json => [&frame[..frame.len() / 2], b"\n"].concat().into(),
            // The length in front is of the half.
            Self::Protobuf => protobuf::framed(&frame[4..frame.len() / 2]).into(),
        }
    }

    /// An object of a kind that the server keeps.
    pub(super) fn of_resource(self, resource: Resource, object: &Value) -> Bytes {
        self.of_kind(
            (resource.api_version(), resource.kind()),
            resource.schema(),
            object,
        )
    }

    /// A `Status` as JSON, encoded.
    pub(super) fn of_status(self, status: &Value) -> Bytes {
        self.of_kind(("v1", "Status"), STATUS, status)
    }

    fn of_kind(self, (version, kind): (&str, &str), schema: Schema, object: &Value) -> Bytes {
        match self {
            Self::Json => object.to_string().into(),
            Self::Protobuf => {
                protobuf::wrap(version, kind, &protobuf::encode(schema, object)).into()
            }
        }
    }

    /// The frame that ends a watch whose version is too old, or that fails once its options were accepted.
    pub(super) fn error_frame(self, status: &Status) -> Bytes {
        self.frame("ERROR", &self.of_status(&status.to_json()))
    }
}

/// The message of a list of wrapped objects; `metadata` is its `ListMeta` as JSON.
pub(super) fn protobuf_list<'a>(
    resource: Resource,
    metadata: &Value,
    items: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut list = protobuf::begin_list(&protobuf::encode(LIST_META, metadata));
    for item in items {
        protobuf::add_item(&mut list, item);
    }
    let kind = format!("{}List", resource.kind());
    protobuf::wrap(resource.api_version(), &kind, &list)
}

/// The beginning of a list in JSON, up to its items.
pub(super) fn json_list_head(resource: Resource, metadata: &Value) -> Vec<u8> {
    let kind = json!(format!("{}List", resource.kind()));
    let version = json!(resource.api_version());
    format!("{{\"kind\":{kind},\"apiVersion\":{version},\"metadata\":{metadata},\"items\":[").into()
}

/// Makes tests of functions that take the [`Options`](crate::apiserver::Options) of a server: each runs once where that
/// speaks JSON alone, and once where it speaks protobuf to who prefers it.
#[macro_export]
macro_rules! in_both_encodings {
    (async $($name:ident,)*) => {
        mod json {
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name($crate::apiserver::Options::speaking(false)).await;
            })*
        }

        mod protobuf {
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name($crate::apiserver::Options::speaking(true)).await;
            })*
        }
    };
    ($($name:ident,)*) => {
        mod json {
            $(#[test]
            fn $name() {
                super::$name($crate::apiserver::Options::speaking(false));
            })*
        }

        mod protobuf {
            $(#[test]
            fn $name() {
                super::$name($crate::apiserver::Options::speaking(true));
            })*
        }
    };
}
