//! Names of Kubernetes objects: `namespace/name`.

use std::fmt;
use std::sync::Arc;

/// Stands between namespace and name: neither holds one, and it is less than any other letter, so that comparing
/// the whole text compares the namespaces first. (A `/` would not do: `a-b` would come before `a`.)
const SEPARATOR: char = '\0';

/// The namespace and name of an object; cheap to copy. Objects without a namespace have an empty one.
///
/// Orders by namespace, then name, as `kubectl get -A` does. Names are keys of large ordered maps, so they are compared as
/// they are and never taken apart for that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// Joins a namespace and a name. Neither can hold a NUL in Kubernetes; one that does is kept as it
    /// is and only prints oddly.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}{SEPARATOR}{name}").into())
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
        self.0.split_once(SEPARATOR).unwrap_or(("", &self.0))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.split() {
            ("", name) => f.write_str(name),
            (namespace, name) => write!(f, "{namespace}/{name}"),
        }
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_compared_before_names() {
        let names = [
            ("", "z"),
            ("a", "b"),
            ("a", "b-c"),
            ("a", "b.c"),
            ("a", "ba"),
            ("a-b", "a"),
            ("a.b", "a"),
            ("ab", "a"),
        ];
        let sorted = names.map(|(namespace, name)| ObjectName::new(namespace, name));
        assert!(sorted.is_sorted(), "{sorted:?}");
        for (object, (namespace, name)) in sorted.iter().zip(names) {
            assert_eq!((object.namespace(), object.name()), (namespace, name));
        }
        assert_eq!(sorted[0].to_string(), "z");
        assert_eq!(sorted[5].to_string(), "a-b/a");
    }
}
