//! `--metrics-bind-address`: metrics for Prometheus, and what the agent runs with for people.
//!
//! Meant for the node itself or for those who may see everything: `/configz` tells the whole configuration.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, Router};
use serde_json::Value;

use super::NO_SNIFF;
use super::metrics::{Exposition, Format, Metrics};

/// The port of kube-proxy.
pub const DEFAULT_PORT: u16 = 10249;

/// What the server tells.
#[derive(Debug)]
struct Shared {
    exposition: Exposition,
    mode: &'static str,
    config: Value,
}

/// Answers `/metrics`, `/healthz` (that this server runs, nothing more), `/proxyMode` with `mode`, and `/configz`
/// with `config`, which kube-proxy has under the key `kubeproxy.config.k8s.io`.
pub fn router(metrics: Arc<Metrics>, mode: &'static str, config: Value) -> Router {
    let shared = Shared {
        exposition: Exposition::new(metrics),
        mode,
        config,
    };
    Router::new()
        .route("/metrics", any(metrics_text))
        .route("/healthz", any(|| async { ([NO_SNIFF], "ok") }))
        .route("/proxyMode", any(proxy_mode))
        .route("/configz", any(configz))
        .with_state(Arc::new(shared))
}

async fn metrics_text(State(shared): State<Arc<Shared>>, request: HeaderMap) -> Response {
    let accept = request.get_all(ACCEPT).into_iter();
    let format = Format::accepted(accept.filter_map(|value| value.to_str().ok()));
    let headers = [(CONTENT_TYPE, format.content_type())];
    (headers, shared.exposition.text(format)).into_response()
}

async fn proxy_mode(State(shared): State<Arc<Shared>>) -> Response {
    ([NO_SNIFF], shared.mode).into_response()
}

async fn configz(State(shared): State<Arc<Shared>>) -> Response {
    ([NO_SNIFF], Json(shared.config.clone())).into_response()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{get, get_with, serve_here};
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn each_path_has_its_answer() {
        let metrics = Arc::new(Metrics::default());
        let config = json!({ "kubeproxy.config.k8s.io": { "mode": "nftables" } });
        let (address, _server) = serve_here(router(metrics.clone(), "nftables", config.clone()));

        let ok = get(address, "/healthz").await;
        assert_eq!((ok.code, ok.body.as_str()), (200, "ok"));

        let mode = get(address, "/proxyMode").await;
        assert_eq!((mode.code, mode.body.as_str()), (200, "nftables"));
        assert_eq!(mode.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(mode.header("x-content-type-options"), "nosniff");

        let configz = get(address, "/configz").await;
        assert_eq!(configz.json(), config);
        assert_eq!(configz.header("content-type"), "application/json");

        metrics.live_request(true);
        let scrape = get(address, "/metrics").await;
        assert_eq!(scrape.header("content-type"), Format::Plain.content_type());
        let series = "\nkubeproxy_proxy_livez_total{code=\"200\"} 1\n";
        assert!(scrape.body.contains(series));

        // What Prometheus 3 sends.
        let accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.3";
        let scrape = get_with(address, "/metrics", &[("accept", accept)]).await;
        assert_eq!(
            scrape.header("content-type"),
            Format::OpenMetrics.content_type()
        );
        assert!(scrape.body.contains(series) && scrape.body.ends_with("# EOF\n"));

        assert_eq!(get(address, "/other").await.code, 404);
    }
}
