//! Events from a Kubernetes API server: lists and watches of Services, EndpointSlices and the own Node.
//!
//! Uses streaming lists (Kubernetes 1.34; KEP-3157) and the field selector that leaves headless Services out
//! (Kubernetes 1.32), and does without either where the server refuses it.

mod counted;
mod encoding;
mod exchange;
mod follow;
mod pace;
mod trouble;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::client::ClientBuilder;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use self::counted::CountedLayer;
use self::follow::{Asked, Kind, follow};
use self::trouble::explain;
use crate::event::Event;
use crate::http::metrics::Requests;
use crate::model::Parsed;
use crate::model::translate::Objects;
use crate::model::translate::{self, HEADLESS_LABEL, PROXY_NAME_LABEL};

/// The field selector that leaves headless Services out.
const NOT_HEADLESS: &str = "spec.clusterIP!=None";

/// The resource of ServiceCIDRs (Kubernetes 1.33).
const SERVICE_CIDRS: &str = "servicecidrs";

/// See [`Patience::silence`].
const SILENCE: Duration = Duration::from_secs(90);

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

/// Makes a client from flags, or from the service account of the pod. Its requests are counted in `requests`.
///
/// # Errors
/// That nothing says where the API server is, or that what says so cannot be used.
pub async fn client(
    kubeconfig: Option<&Path>,
    master: Option<&http::Uri>,
    requests: &Arc<Requests>,
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
    // Watches give up by themselves, a moment earlier.
    config.read_timeout = Some(SILENCE + Duration::from_secs(10));
    // Watches try again by themselves, and say so.
    config.default_retry = false;
    requests.go_to(
        config
            .cluster_url
            .authority()
            .map_or("", |host| host.as_str()),
    );
    let client = ClientBuilder::try_from(config).map_err(KubeError::Client)?;
    let counted = CountedLayer(Arc::clone(requests));
    Ok(client.with_layer(&counted).build())
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

/// How long things may take with an API server.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long the server may be silent before a request is given up and made anew. A watch hears from the server at
    /// least once a minute (bookmarks), so silence means that the other end is gone without a word, as after a loss of
    /// power.
    pub silence: Duration,
    /// How long a watch has to hold before it is called working. What fails earlier makes the pauses grow.
    pub settled: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: SILENCE,
            settled: Duration::from_secs(5),
        }
    }
}

/// Watches Services, EndpointSlices, ServiceCIDRs and the own Node for as long as events are taken.
pub async fn watch(
    client: Client,
    node_name: String,
    patience: Patience,
    send: impl Fn(Event) -> bool + Clone,
) {
    let services = Asked {
        labels: Some(format!("!{PROXY_NAME_LABEL}")),
        fields: Some(NOT_HEADLESS.to_owned()),
        ..Asked::default()
    };
    let slices = Asked {
        labels: Some(format!("!{HEADLESS_LABEL}")),
        ..Asked::default()
    };
    let own_node = Asked {
        fields: Some(format!("metadata.name={node_name}")),
        ..Asked::default()
    };
    let to_slice = |slice: &EndpointSlice| translate::slice(slice, &node_name);
    futures::join!(
        follow(
            &client,
            services,
            patience,
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
            patience,
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
            patience,
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
            Asked::default(),
            patience,
            send,
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
