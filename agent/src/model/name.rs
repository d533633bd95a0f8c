//! Names of Kubernetes objects: `namespace/name`.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// The namespace and name of an object; cheap to copy. Objects without a namespace have an empty one.
///
/// Orders by namespace, then name, as `kubectl get -A` does.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// Joins a namespace and a name. Neither can hold a `/` in Kubernetes; one that does is kept as it
    /// is and only prints oddly.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The namespace; empty for an object of the whole cluster.
    pub fn namespace(&self) -> &str {
        self.split().0
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.split().cmp(&other.split())
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_prefix('/').unwrap_or(&self.0))
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
