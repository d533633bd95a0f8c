//! Events from a Kubernetes API server: lists and watches of Services, EndpointSlices and the own Node.
//!
//! Uses streaming lists (Kubernetes 1.34; KEP-3157) and the field selector that leaves headless Services out
//! (Kubernetes 1.32), and does without either where the server refuses it.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{
    self, DefaultBackoff, Error as WatchError, InitialListStrategy, watcher,
};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use crate::event::Event;
use crate::model::translate::Objects;
use crate::model::translate::{self, HEADLESS_LABEL, PROXY_NAME_LABEL};
use crate::model::{ObjectName, Parsed};

/// The field selector that leaves headless Services out.
const NOT_HEADLESS: &str = "spec.clusterIP!=None";

/// The resource of ServiceCIDRs (Kubernetes 1.33).
const SERVICE_CIDRS: &str = "servicecidrs";

/// How long the API server may be silent before a request is given up and made anew.
const SILENCE: Duration = Duration::from_secs(90);

/// The longest pause between attempts, should the backoff ever end.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// Nothing says where it is.
    #[error(
        "no cluster to watch: give --kubeconfig FILE, --master URL or --manifests PATH, or run in a pod with \
         a service account ({0})"
    )]
    NoCluster(#[source] InClusterError),
    /// The kubeconfig cannot be used.
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// No client could be made of the settings.
    #[error("connecting to the API server: {0}")]
    Client(#[source] kube::Error),
    /// A list failed.
    #[error("listing {what}: {}", explain(what, source))]
    List {
        /// What was listed.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
}

/// Makes a client from flags, or from the service account of the pod.
///
/// # Errors
/// That nothing says where the API server is, or that what says so cannot be used.
pub async fn client(
    kubeconfig: Option<&Path>,
    master: Option<&http::Uri>,
) -> Result<Client, KubeError> {
    let mut config = match (kubeconfig, master) {
        (Some(path), _) => {
            let error = |source| KubeError::Kubeconfig {
                path: path.display().to_string(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(error)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(error)?
        }
        (None, Some(url)) => kube::Config::new(url.clone()),
        (None, None) => kube::Config::incluster().map_err(KubeError::NoCluster)?,
    };
    if let Some(url) = master {
        config.cluster_url = url.clone();
    }
    // A watch hears from the server at least once a minute (bookmarks), so silence means that the other end is
    // gone without a word, as after a loss of power.
    config.read_timeout = Some(SILENCE);
    // Watches try again by themselves, and say so.
    config.default_retry = false;
    Client::try_from(config).map_err(KubeError::Client)
}

/// Reads everything once, headless Services and their slices too.
///
/// # Errors
/// The list that failed.
pub async fn list_once(client: &Client, node_name: &str) -> Result<Objects, KubeError> {
    let of_node = ListParams::default().fields(&format!("metadata.name={node_name}"));
    let everything = ListParams::default();
    let service_cidrs = async {
        let listed = list(client, SERVICE_CIDRS, &everything).await;
        listed.or_else(|error| match error {
            KubeError::List {
                source: kube::Error::Api(status),
                ..
            } if is_without(SERVICE_CIDRS, &status) => Ok(Vec::new()),
            other => Err(other),
        })
    };
    let (services, slices, nodes, service_cidrs) = futures::try_join!(
        list(client, "services", &everything),
        list(client, "endpointslices", &everything),
        list(client, "nodes", &of_node),
        service_cidrs,
    )?;
    Ok(Objects {
        services,
        slices,
        nodes,
        service_cidrs,
        endpoints: Vec::new(),
    })
}

async fn list<K>(
    client: &Client,
    what: &'static str,
    params: &ListParams,
) -> Result<Vec<K>, KubeError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let list = Api::<K>::all(client.clone()).list(params).await;
    Ok(list
        .map_err(|source| KubeError::List { what, source })?
        .items)
}

/// Watches Services, EndpointSlices and the own Node for as long as events are taken.
pub async fn watch(client: Client, node_name: String, send: impl Fn(Event) -> bool + Clone) {
    let not_others = format!("!{PROXY_NAME_LABEL}");
    let services = watcher::Config::default()
        .labels(&not_others)
        .fields(NOT_HEADLESS);
    let not_headless = format!("!{HEADLESS_LABEL}");
    let slices = watcher::Config::default().labels(&not_headless);
    let own_node = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
    let to_slice = |slice: &EndpointSlice| translate::slice(slice, &node_name);
    futures::join!(
        follow(
            &client,
            services,
            send.clone(),
            Kind {
                what: "services",
                translate: |service: &Service| translate::service(service),
                listed: Event::ServicesListed,
                applied: Event::ServiceApplied,
                deleted: Event::ServiceDeleted,
            }
        ),
        follow(
            &client,
            slices,
            send.clone(),
            Kind {
                what: "endpointslices",
                translate: to_slice,
                listed: Event::SlicesListed,
                applied: Event::SliceApplied,
                deleted: Event::SliceDeleted,
            }
        ),
        follow(
            &client,
            own_node,
            send.clone(),
            Kind {
                what: "nodes",
                translate: |node: &Node| Parsed {
                    name: translate::name_of(&node.metadata),
                    object: Some(translate::node(node)),
                    complaints: Vec::new(),
                    trigger: None,
                },
                listed: |nodes| Event::NodeChanged(nodes.into_iter().find_map(|node| node.object)),
                applied: |node| Event::NodeChanged(node.object),
                deleted: |_| Event::NodeChanged(None),
            }
        ),
        follow(
            &client,
            watcher::Config::default(),
            send.clone(),
            Kind {
                what: SERVICE_CIDRS,
                translate: |cidr: &ServiceCIDR| translate::service_cidr(cidr),
                listed: Event::ServiceCidrsListed,
                applied: Event::ServiceCidrApplied,
                deleted: Event::ServiceCidrDeleted,
            }
        ),
    );
}

/// Whether a server does not have a resource that proxyd can do without, or does not show it: one before 1.33, or
/// one where nobody granted it.
fn is_without(what: &str, status: &kube::core::Status) -> bool {
    what == SERVICE_CIDRS && matches!(status.code, 403 | 404)
}

/// How the objects of one kind become events.
struct Kind<T, F> {
    what: &'static str,
    translate: F,
    listed: fn(Vec<Parsed<T>>) -> Event,
    applied: fn(Parsed<T>) -> Event,
    deleted: fn(ObjectName) -> Event,
}

/// Watches one kind until events are no longer taken, asking for less where the server refuses something.
async fn follow<K, T, F>(
    client: &Client,
    config: watcher::Config,
    send: impl Fn(Event) -> bool,
    kind: Kind<T, F>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(&K) -> Parsed<T>,
{
    let mut config = config.streaming_lists();
    while let Some(less) = follow_with(client, &config, &send, &kind).await {
        info!(
            "{}: the API server is an older one; asking it for less",
            kind.what
        );
        config = less;
    }
}

/// Watches one kind until events are no longer taken, or until the server refuses what `config` asks for:
/// then returns what to ask for instead.
async fn follow_with<K, T, F>(
    client: &Client,
    config: &watcher::Config,
    send: impl Fn(Event) -> bool,
    kind: &Kind<T, F>,
) -> Option<watcher::Config>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(&K) -> Parsed<T>,
{
    let events = watcher(Api::<K>::all(client.clone()), config.clone());
    let mut events = std::pin::pin!(events);
    let mut listed = Vec::new();
    let mut failing = false;
    let mut backoff = DefaultBackoff::default();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if let Some(less) = asking_for_less(config, &error) {
                    return Some(less);
                }
                if let Some(status) = refusal(&error)
                    && is_without(kind.what, status)
                {
                    info!(
                        "the API server shows no {} ({}); addresses of theirs that no Service has are not dropped",
                        kind.what, status.message
                    );
                    send((kind.listed)(Vec::new()));
                    return None;
                }
                // Said once until it works again.
                if !std::mem::replace(&mut failing, true) {
                    warn!(
                        "watching {}: {}; trying again",
                        kind.what,
                        explain_watch(kind.what, &error)
                    );
                }
                tokio::time::sleep(backoff.next().unwrap_or(LONGEST_PAUSE)).await;
                continue;
            }
        };
        // The beginning of a list comes before the server is asked, and says nothing of it.
        if !matches!(event, watcher::Event::Init) {
            backoff.reset();
            if std::mem::take(&mut failing) {
                info!("watching {} again", kind.what);
            }
        }
        let taken = match event {
            watcher::Event::Init => {
                listed = Vec::new();
                true
            }
            watcher::Event::InitApply(object) => {
                listed.push((kind.translate)(&object));
                true
            }
            watcher::Event::InitDone => send((kind.listed)(std::mem::take(&mut listed))),
            watcher::Event::Apply(object) => send((kind.applied)((kind.translate)(&object))),
            watcher::Event::Delete(object) => {
                send((kind.deleted)(translate::name_of(object.meta())))
            }
        };
        if !taken {
            break;
        }
    }
    None
}

/// What to ask an older server for, if that is why it refused: 422 Invalid comes from one without streaming
/// lists, 400 Bad Request from one that cannot select Services by ClusterIP.
fn asking_for_less(config: &watcher::Config, error: &WatchError) -> Option<watcher::Config> {
    let code = refusal(error)?.code;
    let mut less = config.clone();
    if code == 422 && config.initial_list_strategy == InitialListStrategy::StreamingList {
        less.initial_list_strategy = InitialListStrategy::ListWatch;
    } else if code == 400 && config.field_selector.as_deref() == Some(NOT_HEADLESS) {
        less.field_selector = None;
    } else {
        return None;
    }
    Some(less)
}

/// The server's refusal to list or to begin a watch.
fn refusal(error: &WatchError) -> Option<&kube::core::Status> {
    match error {
        WatchError::InitialListFailed(kube::Error::Api(status))
        | WatchError::WatchStartFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

fn explain_watch(what: &str, error: &WatchError) -> String {
    match error {
        WatchError::InitialListFailed(error)
        | WatchError::WatchStartFailed(error)
        | WatchError::WatchFailed(error) => explain(what, error),
        WatchError::WatchError(status) => {
            format!("the API server ended the watch: {}", status.message)
        }
        WatchError::NoResourceVersion => error.to_string(),
    }
}

/// What went wrong, and what to do about it.
fn explain(what: &str, error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        let mut text = format!("no answer from the API server: {error}");
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text += &format!(": {cause_text}");
            }
            source = cause.source();
        }
        return text;
    };
    let message = &status.message;
    match status.code {
        401 => format!(
            "the API server does not know the caller ({message}); check the token or certificate"
        ),
        403 => {
            format!("not allowed ({message}); grant the verbs list and watch on {what} to proxyd")
        }
        code => format!("the API server answered {code} ({message})"),
    }
}
