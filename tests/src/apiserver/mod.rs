//! An HTTP API server that does what kube-apiserver does, as far as a service proxy can tell.
//!
//! It keeps Services, EndpointSlices, Nodes, ServiceCIDRs and Events in memory and speaks the REST protocol of Kubernetes for
//! them, and for Namespaces: get, list with paging and selectors, watch with bookmarks and streaming lists, create, update, merge-patch
//! and delete. Tests also make it fail on demand; see the methods in [`faults`]. `tests/tests/apiserver.rs` is its
//! specification, and runs against a real kube-apiserver where there is one.
//!
//! It does not authenticate, default or validate anything, and allocates nothing but ClusterIPs where a test says from
//! where. It answers in JSON or in protobuf, as the client prefers, unless a test wants JSON alone.
//!
//! [`faults`]: Refusal

mod discovery;
mod encoding;
mod faults;
mod http;
mod object;
mod protobuf;
mod query;
mod resource;
mod schema;
mod selector;
mod serving;
mod status;
mod store;
mod watch;
mod write;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::Value;

use self::resource::Key;
use self::serving::Serving;
use self::store::Store;

pub use self::encoding::Encoding;
pub use self::faults::Refusal;
pub use self::resource::{Resource, Verb};
pub use self::store::Cut;

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where [`ApiServer::start_with`] listens; port 0 for any free port.
    pub listen: SocketAddr,
    /// How often watches that allow bookmarks get one. kube-apiserver: every minute.
    pub bookmark_interval: Duration,
    /// Whether watches may ask for `sendInitialEvents`, as since Kubernetes 1.34; before, it is 422 Invalid.
    pub streaming_lists: bool,
    /// Whether Services can be selected by `spec.clusterIP` and `spec.type`.
    pub service_field_selectors: bool,
    /// Whether clients that prefer protobuf get it.
    pub protobuf: bool,
    /// How many writes the history holds before it forgets the first.
    pub history: usize,
    /// Where Services that say no ClusterIP get one from; nowhere by default.
    pub service_cidr: Option<Ipv4Net>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            bookmark_interval: Duration::from_secs(60),
            streaming_lists: true,
            service_field_selectors: true,
            protobuf: true,
            history: 100_000,
            service_cidr: None,
        }
    }
}

impl Options {
    /// As by default, with protobuf or without.
    pub fn speaking(protobuf: bool) -> Self {
        Self {
            protobuf,
            ..Self::default()
        }
    }
}

/// A request the server has received, whatever it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// The HTTP method.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// What the client did, if it was about objects.
    pub verb: Option<Verb>,
    /// The kind it was about.
    pub resource: Option<Resource>,
    /// What it is answered in; nothing if the client reads neither.
    pub encoding: Option<Encoding>,
    /// The parameters of the query, decoded.
    pub query: BTreeMap<String, String>,
}

/// A running server. Dropping it closes its port and all connections.
///
/// The methods that write panic with the server's message when it would refuse: they are for tests.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    serving: Mutex<Option<Serving>>,
}

/// What the threads of a server share. No lock is held while another is taken.
#[derive(Debug)]
struct Shared {
    options: Options,
    store: Mutex<Store>,
    faults: Mutex<faults::Faults>,
    log: Mutex<Vec<LoggedRequest>>,
    hung: tokio::sync::watch::Sender<bool>,
}

impl ApiServer {
    /// Starts a server on a free port of the loopback address.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// Starts a server on `options.listen`.
    pub fn start_with(options: Options) -> Self {
        let listener = TcpListener::bind(options.listen).expect("the address is free");
        Self::serve_on(listener, options)
    }

    /// Starts a server on a bound socket, which may come from another network namespace.
    pub fn serve_on(listener: TcpListener, options: Options) -> Self {
        let address = listener.local_addr().expect("the socket is bound");
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(options.history, options.service_cidr)),
            faults: Mutex::default(),
            log: Mutex::default(),
            hung: tokio::sync::watch::Sender::new(false),
            options,
        });
        let serving = Serving::start(listener, shared.clone());
        Self {
            shared,
            address,
            serving: Mutex::new(Some(serving)),
        }
    }

    /// Stops listening and closes every connection; the objects stay.
    pub fn stop(&self) {
        *self.serving() = None;
    }

    /// Listens again on the same port, from the network namespace of the calling thread.
    pub fn resume(&self) {
        self.resume_on(TcpListener::bind(self.address).expect("the port is still free"));
    }

    /// Listens again on a socket bound to the same address, made in the network namespace of the server.
    pub fn resume_on(&self, listener: TcpListener) {
        *self.serving() = Some(Serving::start(listener, self.shared.clone()));
    }

    /// The server without its socket, for a test that brings its own transport, or its own clock.
    pub fn router(&self) -> axum::Router {
        serving::router(self.shared.clone())
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the server, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The text of a kubeconfig file for this server.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&format!("server: {}", self.url()), "{}")
    }

    /// Creates an object; `apiVersion` and `kind` say where. Returns its resource version.
    #[track_caller]
    pub fn create(&self, object: &impl Serialize) -> u64 {
        let (resource, key, value) = placed(object);
        let created = self.shared.store().create(resource, key, value);
        created
            .unwrap_or_else(|status| panic!("{}", status.message))
            .version
    }

    /// Replaces an object, at its resource version if it has one. Returns its new resource version.
    #[track_caller]
    pub fn update(&self, object: &impl Serialize) -> u64 {
        let (resource, key, value) = placed(object);
        let updated = self.shared.store().replace(resource, &key, value);
        updated
            .unwrap_or_else(|status| panic!("{}", status.message))
            .version
    }

    /// Deletes an object; the namespace is empty for objects of the cluster. Returns the resource version of the
    /// deletion.
    #[track_caller]
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> u64 {
        let mut store = self.shared.store();
        let deleted = store.delete(resource, &Key::new(Some(namespace), name));
        let version = store.version();
        drop(store);
        deleted.unwrap_or_else(|status| panic!("{}", status.message));
        version
    }

    /// Every object of a kind, by name.
    pub fn objects(&self, resource: Resource) -> Vec<Value> {
        let objects = self.shared.store().all(resource);
        objects.iter().map(|object| object.value()).collect()
    }

    /// The resource version of the last write.
    pub fn resource_version(&self) -> u64 {
        self.shared.store().version()
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.shared.store().watches()
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.log().clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.log().clear();
    }

    fn serving(&self) -> MutexGuard<'_, Option<Serving>> {
        self.serving.lock().expect(NOT_POISONED)
    }
}

impl Shared {
    /// The encodings that clients can have.
    fn encodings(&self) -> &'static [Encoding] {
        match self.options.protobuf {
            true => &Encoding::ALL,
            false => &[Encoding::Json],
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect(NOT_POISONED)
    }

    fn faults(&self) -> MutexGuard<'_, faults::Faults> {
        self.faults.lock().expect(NOT_POISONED)
    }

    fn log(&self) -> MutexGuard<'_, Vec<LoggedRequest>> {
        self.log.lock().expect(NOT_POISONED)
    }
}

/// An object as a message of its kind, without what it travels in; nothing for kinds that the server does not keep.
pub fn in_protobuf(object: &Value) -> Option<Vec<u8>> {
    Some(protobuf::encode(kind_of(object)?.schema(), object))
}

/// The JSON, as Go writes it, of a message of the kind that `object` is of; nothing if it is damaged.
pub fn out_of_protobuf(object: &Value, message: &[u8]) -> Option<Value> {
    protobuf::decode(kind_of(object)?.schema(), message)
}

fn kind_of(object: &Value) -> Option<Resource> {
    Resource::from_type(object["apiVersion"].as_str()?, object["kind"].as_str()?)
}

const NOT_POISONED: &str = "nothing panics while it holds the lock";

/// The text of a kubeconfig file; `cluster` and `user` are YAML for the entries of that name.
pub(crate) fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         contexts:\n- name: test\n  context: {{cluster: test, user: test}}\n\
         clusters:\n- name: test\n  cluster:\n    {cluster}\n\
         users:\n- name: test\n  user: {user}\n"
    )
}

#[track_caller]
fn placed(object: &impl Serialize) -> (Resource, Key, Value) {
    let value = serde_json::to_value(object).expect("API objects serialize");
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let resource = Resource::from_type(text("apiVersion"), text("kind"));
    let resource =
        resource.unwrap_or_else(|| panic!("not a kind the server keeps: {}", text("kind")));
    let placed = write::place(resource, None, value);
    let (key, value) = placed.unwrap_or_else(|status| panic!("{}", status.message));
    (resource, key, value)
}
