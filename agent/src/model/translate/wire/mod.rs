//! Kubernetes' protobuf encoding → API types, as far as [`translate`](super) reads them.
//!
//! Field numbers are those of `generated.proto` in k8s.io/api and k8s.io/apimachinery, which never change. Fields that
//! nothing here reads are stepped over, not decoded: most of an object (managed fields, conditions, a Node's images)
//! costs the length that is read of it. Whoever makes `translate` read another field adds it here too; the property
//! test `wild::json_and_protobuf_give_the_same_model` compares the two encodings.
//!
//! What is decoded is what Go's JSON of the same object holds: texts that are empty are absent where JSON leaves them
//! out, and bytes that are no UTF-8 become U+FFFD. An object that cannot be decoded is an [`Undecodable`], which names
//! the field; nothing here panics, whatever the bytes.

mod envelope;
mod metadata;
mod node;
mod reader;
mod service;
mod service_cidr;
mod slice;

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use envelope::{Page, WatchEvent, page, status, watch_event};
use reader::Fields;
pub use reader::Value;

use crate::model::Complaint;

/// A message, put together field by field.
pub trait Message: Default {
    /// Takes a field. One that is not read is left alone.
    ///
    /// # Errors
    /// That it cannot be decoded.
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable>;

    /// Takes the fields of an encoded message.
    ///
    /// # Errors
    /// The field that cannot be decoded. What came before it was taken.
    fn merge(&mut self, bytes: &[u8]) -> Result<(), Undecodable> {
        for field in Fields::of(bytes) {
            let (number, value) = field?;
            self.take(number, value)?;
        }
        Ok(())
    }
}

/// Decodes a message.
///
/// # Errors
/// The field that cannot be decoded.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, Undecodable> {
    let mut message = M::default();
    message.merge(bytes)?;
    Ok(message)
}

/// The metadata of an object of any kind, as far as it can be read, for the name of one that cannot be decoded.
pub fn metadata(object: &[u8]) -> ObjectMeta {
    let mut found = AnyObject::default();
    // What was read before an error is kept.
    let _ = found.merge(object);
    found.metadata
}

/// What objects of every kind have.
#[derive(Debug, Default)]
struct AnyObject {
    metadata: ObjectMeta,
}

impl Message for AnyObject {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("metadata", &mut self.metadata),
            _ => Ok(()),
        }
    }
}

/// Why bytes are not the message that they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// The field as a path, empty for the message itself.
    field: String,
    reason: &'static str,
}

impl Undecodable {
    fn new(reason: &'static str) -> Self {
        Self {
            field: String::new(),
            reason,
        }
    }

    /// Puts the name of the field in front that the message is the value of.
    fn within(mut self, field: &str) -> Self {
        let separator = if self.field.is_empty() { "" } else { "." };
        self.field = format!("{field}{separator}{}", self.field);
        self
    }

    /// What it means for the object.
    pub fn complaint(self) -> Complaint {
        let field = match self.field.as_str() {
            "" => "object".to_owned(),
            _ => self.field,
        };
        Complaint::new(field, format!("{}; the object is skipped", self.reason))
    }
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(self.reason),
            field => write!(f, "{field}: {}", self.reason),
        }
    }
}

impl std::error::Error for Undecodable {}

#[cfg(test)]
mod tests;
