//! Events from a Kubernetes API server: lists and watches of Services, EndpointSlices and the own Node.
//!
//! Uses streaming lists (Kubernetes 1.34; KEP-3157) and the field selector that leaves headless Services out
//! (Kubernetes 1.32), and does without either where the server refuses it.

mod client;
mod counted;
mod encoding;
mod exchange;
mod follow;
mod pace;
mod server;
mod trouble;

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Resource;
use kube::api::ListParams;
use serde::de::DeserializeOwned;
use tracing::warn;

pub use self::client::{KubeError, KubeconfigFile, client};
use self::follow::{Asked, Kind, follow};
pub use self::server::Api;
use crate::event::Event;
use crate::model::Parsed;
use crate::model::translate::Objects;
use crate::model::translate::{self, HEADLESS_LABEL, PROXY_NAME_LABEL};

/// The field selector that leaves headless Services out.
const NOT_HEADLESS: &str = "spec.clusterIP!=None";

/// The resource of ServiceCIDRs (Kubernetes 1.33).
const SERVICE_CIDRS: &str = "servicecidrs";

/// See [`Patience::silence`].
const SILENCE: Duration = Duration::from_secs(90);

/// Reads everything once, headless Services and their slices too.
///
/// # Errors
/// The list that failed.
pub async fn list_once(api: &Api, node_name: &str) -> Result<Objects, KubeError> {
    let of_node = ListParams::default().fields(&format!("metadata.name={node_name}"));
    let everything = ListParams::default();
    let service_cidrs = async {
        let listed = list(api, SERVICE_CIDRS, &everything).await;
        listed.or_else(|error| match error {
            KubeError::List {
                source: kube::Error::Api(status),
                ..
            } if is_without(SERVICE_CIDRS, &status) => Ok(Vec::new()),
            other => Err(other),
        })
    };
    let (services, slices, nodes, service_cidrs) = futures::try_join!(
        list(api, "services", &everything),
        list(api, "endpointslices", &everything),
        list(api, "nodes", &of_node),
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

async fn list<K>(api: &Api, what: &'static str, params: &ListParams) -> Result<Vec<K>, KubeError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let list = kube::Api::<K>::all(api.client.clone()).list(params).await;
    Ok(list
        .map_err(|source| KubeError::List {
            what,
            at: api.server.at_url() + api.server.advice(),
            source,
        })?
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
    api: impl Into<Api>,
    node_name: String,
    patience: Patience,
    send: impl Fn(Event) -> bool + Clone,
) {
    let api = api.into();
    let services = Asked {
        labels: Some(format!("!{PROXY_NAME_LABEL}")),
        fields: Some(NOT_HEADLESS.to_owned()),
        pages: api.in_pages,
        ..Asked::default()
    };
    let slices = Asked {
        labels: Some(format!("!{HEADLESS_LABEL}")),
        pages: api.in_pages,
        ..Asked::default()
    };
    let own_node = Asked {
        fields: Some(format!("metadata.name={node_name}")),
        pages: api.in_pages,
        ..Asked::default()
    };
    let everything = Asked {
        pages: api.in_pages,
        ..Asked::default()
    };
    let to_slice = |slice: &EndpointSlice| translate::slice(slice, &node_name);
    futures::join!(
        follow(
            &api,
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
            &api,
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
            &api,
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
                listed: |nodes| Event::NodeChanged(nodes.into_iter().find_map(usable)),
                applied: |node| Event::NodeChanged(usable(node)),
                deleted: |_| Event::NodeChanged(None),
            }
        ),
        follow(
            &api,
            everything,
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

/// The Node, unless it cannot be decoded. The engine keeps no complaints about Nodes, so that is said here.
fn usable(node: Parsed<crate::model::Node>) -> Option<crate::model::Node> {
    for complaint in &node.complaints {
        warn!("Node {}: {complaint}", node.name.name());
    }
    node.object
}

/// Whether a server does not have a resource that proxyd can do without, or does not show it: one before 1.33, or
/// one where nobody granted it.
fn is_without(what: &str, status: &kube::core::Status) -> bool {
    what == SERVICE_CIDRS && matches!(status.code, 403 | 404)
}
