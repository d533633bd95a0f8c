//! What translation makes of an API object: the part that can be served, and what is wrong with the rest.

use std::fmt;

use jiff::Timestamp;

use super::{Family, ObjectName};

/// An API object after translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    /// Its namespace and name.
    pub name: ObjectName,
    /// What is to be served of it; nothing if the data plane has no part in it (headless, ExternalName,
    /// FQDN endpoints, …) or if nothing of it can be served.
    pub object: Option<T>,
    /// What could not be served, and why.
    pub complaints: Vec<Complaint>,
    /// When what made the object as it is came about, if it says so: EndpointSlices do.
    pub trigger: Option<Trigger>,
}

/// When the change of a Service or a pod came about that an EndpointSlice follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    /// The family of the slice.
    pub family: Family,
    /// The moment, by the clock of who wrote the slice.
    pub at: Timestamp,
}

impl<T> Parsed<T> {
    /// An object that the data plane has no part in.
    pub(crate) fn ignored(name: ObjectName) -> Self {
        Self {
            name,
            object: None,
            complaints: Vec::new(),
            trigger: None,
        }
    }
}

/// One field of an object that costs itself, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The field, as a path such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong and what follows.
    pub reason: String,
}

impl Complaint {
    /// A field that is wrong.
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}
