//! What objects travel in: the magic number and `runtime.Unknown`, events of a watch, pages of a list, and errors.
//!
//! Their field numbers are those of `runtime/generated.proto` and `meta/v1/generated.proto` in k8s.io/apimachinery.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status, StatusDetails};

use super::{Fields, Message, Undecodable, Value, decode};

/// What comes before every object that says of which type it is
/// (`protoEncodingPrefix` in apimachinery's `serializer/protobuf`).
const MAGIC: &[u8] = b"k8s\0";

/// An event of a watch. Its object is still encoded, so that one that cannot be decoded costs itself alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchEvent<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`, as bytes.
    pub kind: &'a [u8],
    /// The object, or the [`Status`] of an error.
    pub object: &'a [u8],
}

/// A page of a list. Its objects are still encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<'a> {
    /// Its version, and the token of the next page.
    pub metadata: ListMeta,
    /// The objects.
    pub items: Vec<&'a [u8]>,
}

/// Reads an event of a watch: a `WatchEvent` whose object is encoded as one that says of which type it is.
///
/// # Errors
/// That it is none.
pub fn watch_event(bytes: &[u8]) -> Result<WatchEvent<'_>, Undecodable> {
    let (mut kind, mut object) = (None, None);
    for field in Fields::of(bytes) {
        match field? {
            (1, value) => kind = Some(value.bytes("type")?),
            // A `RawExtension`, whose one field holds the bytes.
            (2, value) => object = bytes_of(1, value.bytes("object")?).map_err(in_object)?,
            _ => {}
        }
    }
    let kind = kind.ok_or(Undecodable::new("is missing").within("type"))?;
    let object = object.ok_or(Undecodable::new("is missing").within("object"))?;
    let object = unwrap(object).map_err(in_object)?;
    Ok(WatchEvent { kind, object })
}

/// Reads a page of a list, of whatever kind its objects are.
///
/// # Errors
/// That it is none.
pub fn page(bytes: &[u8]) -> Result<Page<'_>, Undecodable> {
    let mut page = Page {
        metadata: ListMeta::default(),
        items: Vec::new(),
    };
    for field in Fields::of(unwrap(bytes)?) {
        match field? {
            (1, value) => value.message("metadata", &mut page.metadata)?,
            (2, value) => page.items.push(value.bytes("items")?),
            _ => {}
        }
    }
    Ok(page)
}

/// Reads the answer to a request that was refused.
///
/// # Errors
/// That it is no [`Status`].
pub fn status(bytes: &[u8]) -> Result<Status, Undecodable> {
    decode(unwrap(bytes)?)
}

/// The object in a `runtime.Unknown` behind the magic number.
fn unwrap(bytes: &[u8]) -> Result<&[u8], Undecodable> {
    let foreign = || Undecodable::new("does not begin as Kubernetes' protobuf does");
    let unknown = bytes.strip_prefix(MAGIC).ok_or_else(foreign)?;
    Ok(bytes_of(2, unknown)?.unwrap_or_default())
}

/// The field of a message that holds bytes; the last of them if there are several.
fn bytes_of(wanted: u64, message: &[u8]) -> Result<Option<&[u8]>, Undecodable> {
    let mut found = None;
    for field in Fields::of(message) {
        let (number, value) = field?;
        if number == wanted {
            found = Some(value.bytes("raw")?);
        }
    }
    Ok(found)
}

fn in_object(error: Undecodable) -> Undecodable {
    error.within("object")
}

impl Message for ListMeta {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            2 => self.resource_version = value.text_if_any("resourceVersion")?,
            3 => self.continue_ = value.text_if_any("continue")?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for Status {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            3 => self.message = value.text_if_any("message")?,
            4 => self.reason = value.text_if_any("reason")?,
            5 => value.message("details", self.details.get_or_insert_default())?,
            6 => self.code = Some(value.number("code")?),
            _ => {}
        }
        Ok(())
    }
}

impl Message for StatusDetails {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        if number == 5 {
            self.retry_after_seconds = Some(value.number("retryAfterSeconds")?);
        }
        Ok(())
    }
}
