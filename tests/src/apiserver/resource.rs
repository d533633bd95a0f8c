//! The kinds the server keeps, and what the REST paths of the Kubernetes API mean.
//!
//! Pure: strings in, closed types out. Nothing here knows about HTTP beyond the path.

use super::schema::{self, Schema};

/// A kind of object the server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Service.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlices,
    /// `v1` Node.
    Nodes,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidrs,
    /// `events.k8s.io/v1` Event.
    Events,
    /// `v1` Namespace. Objects may be in one that is not there, and stay when it goes: nobody looks after it.
    Namespaces,
}

impl Resource {
    /// Every kind, in the order of discovery.
    pub const ALL: [Resource; 6] = [
        Resource::Services,
        Resource::EndpointSlices,
        Resource::Nodes,
        Resource::ServiceCidrs,
        Resource::Events,
        Resource::Namespaces,
    ];

    /// The API group, empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes | Resource::Namespaces => "",
            Resource::EndpointSlices => "discovery.k8s.io",
            Resource::ServiceCidrs => "networking.k8s.io",
            Resource::Events => "events.k8s.io",
        }
    }

    /// What `apiVersion` says in an object: `v1` or `group/v1`.
    pub fn api_version(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes | Resource::Namespaces => "v1",
            Resource::EndpointSlices => "discovery.k8s.io/v1",
            Resource::ServiceCidrs => "networking.k8s.io/v1",
            Resource::Events => "events.k8s.io/v1",
        }
    }

    /// What `kind` says in an object.
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::EndpointSlices => "EndpointSlice",
            Resource::Nodes => "Node",
            Resource::ServiceCidrs => "ServiceCIDR",
            Resource::Events => "Event",
            Resource::Namespaces => "Namespace",
        }
    }

    /// How its objects are written in protobuf.
    pub(super) fn schema(self) -> Schema {
        match self {
            Resource::Services => schema::SERVICE,
            Resource::EndpointSlices => schema::ENDPOINT_SLICE,
            Resource::Nodes => schema::NODE,
            Resource::ServiceCidrs => schema::SERVICE_CIDR,
            Resource::Events => schema::EVENT,
            Resource::Namespaces => schema::NAMESPACE,
        }
    }

    /// The name in paths: the plural, in lower case.
    pub fn plural(self) -> &'static str {
        match self {
            Resource::Services => "services",
            Resource::EndpointSlices => "endpointslices",
            Resource::Nodes => "nodes",
            Resource::ServiceCidrs => "servicecidrs",
            Resource::Events => "events",
            Resource::Namespaces => "namespaces",
        }
    }

    /// The name in messages: `services`, but `endpointslices.discovery.k8s.io`.
    pub fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// Whether its objects live in namespaces.
    pub fn namespaced(self) -> bool {
        matches!(
            self,
            Resource::Services | Resource::EndpointSlices | Resource::Events
        )
    }

    /// The kind an object says it is.
    pub fn from_type(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.api_version() == api_version && resource.kind() == kind)
    }

    fn from_path(group: &str, plural: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.group() == group && resource.plural() == plural)
    }
}

/// What a client does, in the words of Kubernetes' authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the verbs of the Kubernetes API")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/healthz`, `/readyz`, `/livez`.
    Health,
    /// A document that describes the server; see [`super::discovery`].
    Document(String),
    /// All objects of a kind, or those of one namespace.
    Collection(Resource, Option<String>),
    /// One object.
    Object(Resource, Key),
    /// Something the server does not have.
    Unknown,
}

impl Route {
    /// Reads a path such as `/api/v1/namespaces/default/services/web`.
    pub(super) fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            ["healthz" | "readyz" | "livez", ..] => Route::Health,
            ["version"]
            | ["api" | "apis"]
            | ["api", "v1"]
            | ["apis", _]
            | ["apis", _, "v1"]
            | ["openapi", ..] => Route::Document(format!("/{}", parts.join("/"))),
            ["api", "v1", rest @ ..] => Self::in_group("", rest),
            ["apis", group, "v1", rest @ ..] => Self::in_group(group, rest),
            _ => Route::Unknown,
        }
    }

    /// The kind of objects a path is about.
    pub(super) fn resource(&self) -> Option<Resource> {
        match self {
            Route::Collection(resource, _) | Route::Object(resource, _) => Some(*resource),
            _ => None,
        }
    }

    fn in_group(group: &str, rest: &[&str]) -> Self {
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
            ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
            [plural] => (None, *plural, None),
            [plural, name] => (None, *plural, Some(*name)),
            _ => return Route::Unknown,
        };
        let Some(resource) = Resource::from_path(group, plural) else {
            return Route::Unknown;
        };
        match (resource.namespaced(), namespace, name) {
            (false, Some(_), _) | (true, None, Some(_)) => Route::Unknown,
            (_, namespace, None) => Route::Collection(resource, namespace.map(str::to_owned)),
            (_, namespace, Some(name)) => Route::Object(resource, Key::new(namespace, name)),
        }
    }
}

/// The name of an object within its kind. Sorted as etcd sorts: by namespace, then by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Key {
    /// Empty for objects of the cluster.
    pub(super) namespace: Box<str>,
    /// `metadata.name`.
    pub(super) name: Box<str>,
}

impl Key {
    /// The key of an object of a namespace, or of the cluster.
    pub(super) fn new(namespace: Option<&str>, name: &str) -> Self {
        Self {
            namespace: namespace.unwrap_or_default().into(),
            name: name.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_and_objects() {
        let web = Key::new(Some("default"), "web");
        for (path, route) in [
            ("/readyz", Route::Health),
            ("/api/v1", Route::Document("/api/v1".to_owned())),
            (
                "/api/v1/services",
                Route::Collection(Resource::Services, None),
            ),
            (
                "/api/v1/namespaces/default/services",
                Route::Collection(Resource::Services, Some("default".to_owned())),
            ),
            (
                "/api/v1/namespaces/default/services/web",
                Route::Object(Resource::Services, web),
            ),
            (
                "/api/v1/nodes/n1",
                Route::Object(Resource::Nodes, Key::new(None, "n1")),
            ),
            (
                "/apis/discovery.k8s.io/v1/endpointslices",
                Route::Collection(Resource::EndpointSlices, None),
            ),
            ("/api/v1/endpointslices", Route::Unknown),
            ("/api/v1/namespaces/default/nodes", Route::Unknown),
            (
                "/api/v1/namespaces/default/services/web/status",
                Route::Unknown,
            ),
        ] {
            assert_eq!(Route::parse(path), route, "{path}");
        }
    }
}
