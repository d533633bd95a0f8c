//! What the metrics server answers, asked over loopback.

use serde_json::json;

use super::super::testing::{get, get_with, put, serve_here};
use super::*;
use crate::logging::{self, Lines};

fn told(metrics: &Arc<Metrics>) -> Told {
    Told {
        metrics: metrics.clone(),
        mode: "nftables",
        config: json!({ "kubeproxy.config.k8s.io": { "mode": "nftables" } }),
        flags: vec![("v".to_owned(), "2".to_owned())],
        verbosity: None,
    }
}

#[tokio::test]
async fn each_path_has_its_answer() {
    let metrics = Arc::new(Metrics::default());
    let told = told(&metrics);
    let config = told.config.clone();
    let (address, _server) = serve_here(router(told));

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
    let accept =
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.3";
    let scrape = get_with(address, "/metrics", &[("accept", accept)]).await;
    assert_eq!(
        scrape.header("content-type"),
        Format::OpenMetrics.content_type()
    );
    assert!(scrape.body.contains(series) && scrape.body.ends_with("# EOF\n"));

    assert_eq!(get(address, "/other").await.code, 404);
    for path in PATHS {
        assert_eq!(get(address, path).await.code, 200, "{path}");
    }
}

#[tokio::test]
async fn the_version_has_kubernetes_fields() {
    let (address, _server) = serve_here(router(told(&Arc::default())));
    let answer = get(address, "/version").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let version = answer.json();
    let expected = concat!("v", env!("CARGO_PKG_VERSION"));
    assert_eq!(version["gitVersion"], expected);
    assert!(
        version["platform"].as_str().unwrap().starts_with("linux/"),
        "{version}"
    );
    for field in [
        "major",
        "minor",
        "gitCommit",
        "gitTreeState",
        "buildDate",
        "goVersion",
        "compiler",
    ] {
        assert!(version[field].is_string(), "{field}: {version}");
    }
    let scrape = get(address, "/metrics").await.body;
    let series = format!("git_version=\"{expected}\"");
    let mut lines = scrape.lines();
    let line = lines.find(|line| line.starts_with("kubernetes_build_info{"));
    let line = line.expect("kubernetes_build_info");
    assert!(line.contains(&series) && line.ends_with("} 1"), "{line}");
}

#[tokio::test]
async fn pages_for_people_are_text_alone() {
    let (address, _server) = serve_here(router(told(&Arc::default())));
    for (path, expected) in [
        ("/statusz", "\nproxyd statusz\n"),
        ("/flagz", "\nproxyd flags\n"),
    ] {
        let page = get(address, path).await;
        assert_eq!(page.header("content-type"), "text/plain; charset=utf-8");
        assert!(page.body.starts_with(expected), "{}", page.body);
        let refused = get_with(address, path, &[("accept", "application/json")]).await;
        assert_eq!(refused.code, 406, "{path}");
    }
    assert!(get(address, "/flagz").await.body.ends_with("\n\nv=2\n"));
    let status = get(address, "/statusz").await.body;
    assert!(status.contains("\nUp: 0 hr 0"), "{status}");
    assert!(status.contains(" /metrics/slis "), "{status}");
}

#[tokio::test]
async fn indicators_count_health_checks_until_they_are_reset() {
    let metrics = Arc::new(Metrics::default());
    let (address, _server) = serve_here(router(told(&metrics)));
    let series = async || -> Vec<String> {
        let text = get(address, "/metrics/slis").await.body;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(series().await, [""; 0]);
    get(address, "/healthz").await;
    get(address, "/healthz").await;
    metrics.health_request(true);
    metrics.health_request(false);
    metrics.live_request(true);
    assert_eq!(
        series().await,
        [
            r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#,
            r#"kubernetes_healthcheck{name="proxy",type="healthz"} 0"#,
            r#"kubernetes_healthcheck{name="proxy",type="livez"} 1"#,
            r#"kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 2"#,
            r#"kubernetes_healthchecks_total{name="proxy",status="success",type="healthz"} 1"#,
            r#"kubernetes_healthchecks_total{name="proxy",status="error",type="healthz"} 1"#,
            r#"kubernetes_healthchecks_total{name="proxy",status="success",type="livez"} 1"#,
        ]
    );
    let other = get(address, "/metrics").await.body;
    assert!(!other.contains("kubernetes_healthcheck"), "{other}");
    let reset = super::super::testing::request(address, "DELETE", "/metrics/slis", "").await;
    assert_eq!((reset.code, reset.body.as_str()), (200, "metrics reset\n"));
    assert_eq!(series().await, [""; 0]);
}

#[tokio::test]
async fn the_verbosity_is_set_where_that_is_allowed() {
    let (address, _server) = serve_here(router(told(&Arc::default())));
    let refused = put(address, VERBOSITY_PATH, "4").await;
    assert_eq!(refused.code, 404, "without --profiling");

    let (subscriber, verbosity) = logging::subscriber(Lines::Text, 2, false, std::io::sink);
    let shows_debug = || {
        tracing::subscriber::with_default(
            subscriber,
            || tracing::enabled!(target: "proxyd", tracing::Level::DEBUG),
        )
    };
    let (address, _server) = serve_here(router(Told {
        verbosity: Some(verbosity),
        ..told(&Arc::default())
    }));
    let asked = get(address, VERBOSITY_PATH).await;
    assert_eq!(
        (asked.code, asked.body.as_str()),
        (406, "unsupported http method\n")
    );
    let wrong = put(address, VERBOSITY_PATH, "loud").await;
    assert_eq!(wrong.code, 400);
    let expected = "failed set klog.logging.verbosity loud: not a whole number\n";
    assert_eq!(wrong.body, expected);
    let set = put(address, VERBOSITY_PATH, "4").await;
    let expected = "successfully set klog.logging.verbosity to 4\n";
    assert_eq!((set.code, set.body.as_str()), (200, expected));
    assert!(shows_debug());
}
