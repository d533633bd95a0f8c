//! `--metrics-bind-address`: metrics for Prometheus, and what the agent is and runs with for people.
//!
//! Meant for the node itself or for those who may see everything: `/configz` tells the whole configuration. What
//! changes something, the verbosity of the log, is served only where `--profiling` says so, as in kube-proxy.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, Router};
use serde_json::Value;

use super::metrics::{Check, Exposition, Format, Metrics};
use super::{NO_SNIFF, zpages};
use crate::logging::Verbosity;
use crate::version;

/// The port of kube-proxy.
pub const DEFAULT_PORT: u16 = 10249;

/// The paths that every server has.
const PATHS: [&str; 8] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/statusz",
    "/version",
];

/// The verbosity of the log.
const VERBOSITY_PATH: &str = "/debug/flags/v";

/// What the server tells, and what it may change.
#[derive(Debug)]
pub struct Told {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The answer of `/proxyMode`.
    pub mode: &'static str,
    /// The answer of `/configz`, which kube-proxy has under the key `kubeproxy.config.k8s.io`.
    pub config: Value,
    /// The flags and their values, for `/flagz`.
    pub flags: Vec<(String, String)>,
    /// Sets how much is logged; none where that is not served.
    pub verbosity: Option<Verbosity>,
}

#[derive(Debug)]
struct Shared {
    exposition: Exposition,
    slis: Exposition,
    told: Told,
}

/// Answers `/metrics`, `/metrics/slis`, `/healthz` (that this server runs, nothing more), and the paths that tell of
/// the agent.
pub fn router(told: Told) -> Router {
    let sets_verbosity = told.verbosity.is_some();
    let shared = Shared {
        exposition: Exposition::new(told.metrics.clone()),
        slis: Exposition::slis(told.metrics.clone()),
        told,
    };
    let router = Router::new()
        .route("/metrics", any(metrics_text))
        .route("/metrics/slis", any(slis))
        .route("/healthz", any(ping))
        .route("/proxyMode", any(proxy_mode))
        .route("/configz", any(configz))
        .route("/version", any(|| async { Json(version::INFO) }))
        .route("/flagz", any(flagz))
        .route("/statusz", any(statusz));
    let router = if sets_verbosity {
        router.route(VERBOSITY_PATH, any(set_verbosity))
    } else {
        router
    };
    router.with_state(Arc::new(shared))
}

type Asked = State<Arc<Shared>>;

async fn metrics_text(State(shared): Asked, request: HeaderMap) -> Response {
    exposed(&shared.exposition, &request)
}

/// DELETE begins to count anew, as in Kubernetes.
async fn slis(State(shared): Asked, method: Method, request: HeaderMap) -> Response {
    if method == Method::DELETE {
        shared.told.metrics.reset_slis();
        return ([NO_SNIFF], "metrics reset\n").into_response();
    }
    exposed(&shared.slis, &request)
}

fn exposed(exposition: &Exposition, request: &HeaderMap) -> Response {
    let accept = request.get_all(ACCEPT).into_iter();
    let format = Format::accepted(accept.filter_map(|value| value.to_str().ok()));
    let headers = [(CONTENT_TYPE, format.content_type())];
    (headers, exposition.text(format)).into_response()
}

async fn ping(State(shared): Asked) -> Response {
    shared.told.metrics.checked(Check::Ping, true);
    ([NO_SNIFF], "ok").into_response()
}

async fn proxy_mode(State(shared): Asked) -> Response {
    ([NO_SNIFF], shared.told.mode).into_response()
}

async fn configz(State(shared): Asked) -> Response {
    ([NO_SNIFF], Json(shared.told.config.clone())).into_response()
}

async fn flagz(State(shared): Asked, request: HeaderMap) -> Response {
    zpages::flags(&request, &shared.told.flags)
}

async fn statusz(request: HeaderMap) -> Response {
    zpages::status(&request, &PATHS)
}

/// Words and codes are those of `k8s.io/apiserver/pkg/server/routes` and `k8s.io/component-base/logs`.
async fn set_verbosity(State(shared): Asked, method: Method, body: String) -> Response {
    let answer = |code: StatusCode, text: String| (code, [NO_SNIFF], text + "\n").into_response();
    let Some(verbosity) = shared
        .told
        .verbosity
        .as_ref()
        .filter(|_| method == Method::PUT)
    else {
        let refusal = "unsupported http method".to_owned();
        return answer(StatusCode::NOT_ACCEPTABLE, refusal);
    };
    match verbosity.set(&body) {
        Ok(()) => {
            tracing::info!("{VERBOSITY_PATH}: the log has verbosity {body} from now on");
            let text = format!("successfully set klog.logging.verbosity to {body}");
            answer(StatusCode::OK, text)
        }
        Err(error) => {
            let text = format!("failed set klog.logging.verbosity {body}: {error}");
            answer(StatusCode::BAD_REQUEST, text)
        }
    }
}

#[cfg(test)]
mod tests;
