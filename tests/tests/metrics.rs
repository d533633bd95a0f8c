//! `/metrics`, `/proxyMode` and `/configz`: names that dashboards use already, and values that move.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use proxyd_tests::agent::Agent;
use proxyd_tests::apiserver::Options;
use proxyd_tests::http::{get, get_with};
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::served::Served;
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

/// Every metric, and its type.
const METRICS: [(&str, &str); 18] = [
    ("sync_proxy_rules_duration_seconds", "histogram"),
    ("sync_full_proxy_rules_duration_seconds", "histogram"),
    ("sync_partial_proxy_rules_duration_seconds", "histogram"),
    ("network_programming_duration_seconds", "histogram"),
    ("sync_proxy_rules_last_timestamp_seconds", "gauge"),
    ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge"),
    ("sync_proxy_rules_endpoint_changes_pending", "gauge"),
    ("sync_proxy_rules_service_changes_pending", "gauge"),
    ("sync_proxy_rules_endpoint_changes_total", "counter"),
    ("sync_proxy_rules_service_changes_total", "counter"),
    ("sync_proxy_rules_no_local_endpoints_total", "gauge"),
    ("sync_proxy_rules_service_ports_without_endpoints", "gauge"),
    ("refused_objects", "gauge"),
    ("sync_proxy_rules_nftables_sync_failures_total", "counter"),
    ("proxy_healthz_total", "counter"),
    ("proxy_livez_total", "counter"),
    ("conntrack_reconciler_sync_duration_seconds", "histogram"),
    ("conntrack_reconciler_deleted_entries_total", "counter"),
];

/// The agent in a namespace with its API server.
struct Fixture {
    served: Served,
    agent: Agent,
}

impl Fixture {
    fn start(objects: &[Value]) -> Self {
        let served = Served::new(Options::default());
        served.create(objects);
        let agent = served.start_in_sync(&["--masquerade-all"]);
        Self { served, agent }
    }

    fn ask(&self, path: &str) -> String {
        let answer = get(&self.served.node, address(10_249), path).unwrap();
        assert_eq!(answer.code, 200, "{path}");
        answer.body
    }

    /// The value of a series.
    #[track_caller]
    fn value(&self, series: &str) -> f64 {
        let text = self.ask("/metrics");
        let series = format!("kubeproxy_{series} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        let value = value.unwrap_or_else(|| panic!("no {series}in {text}"));
        value.parse().unwrap()
    }

    #[track_caller]
    fn wait_for(&self, series: &str, expected: impl Fn(f64) -> bool) {
        eventually(series, PATIENCE, || expected(self.value(series)));
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 1].into(), port)
}

/// A Service at 10.96.0.1 for this node's endpoints alone, at its ClusterIP and outside.
fn local() -> Value {
    let mut web = service(
        "web",
        &[IpAddr::from([10, 96, 0, 1])],
        &[Port::HTTP.at_nodes(30_080)],
    );
    web["spec"]["internalTrafficPolicy"] = json!("Local");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web
}

fn endpoint_at(node: &str) -> Value {
    slice("web", &[Port::HTTP], &[(IpAddr::from([10, 1, 0, 1]), node)])
}

#[test]
fn every_metric_is_there_under_its_name_in_both_formats() {
    let fixture = Fixture::start(&[]);
    let metrics = address(10_249);
    let accept = [(
        "accept",
        "application/openmetrics-text; version=1.0.0, */*;q=0.1",
    )];
    let plain = get(&fixture.served.node, metrics, "/metrics").unwrap();
    let open = get_with(&fixture.served.node, metrics, "/metrics", &accept).unwrap();
    assert_eq!(
        plain.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(
        open.header("content-type")
            .starts_with("application/openmetrics-text")
    );
    for (name, kind) in METRICS {
        let name = format!("kubeproxy_{name}");
        let announced = match kind {
            "counter" => name.strip_suffix("_total").unwrap(),
            _ => &name,
        };
        for (text, announced) in [(&plain.body, name.as_str()), (&open.body, announced)] {
            let lines = || text.lines();
            let of_type = format!("# TYPE {announced} {kind}");
            assert!(lines().any(|line| line == of_type), "{of_type}: {text}");
            let series = if kind == "histogram" {
                format!("{name}_count")
            } else {
                name.clone()
            };
            let is_series = |line: &str| line.split(['{', ' ']).next() == Some(series.as_str());
            assert!(lines().any(is_series), "{series}: {text}");
        }
    }
    fixture.agent.terminate();
}

#[test]
fn values_move_with_what_happens() {
    let fixture = Fixture::start(&[local()]);
    let v4 = |name: &str| format!("{name}{{ip_family=\"IPv4\"}}");
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert_eq!(fixture.value("sync_proxy_rules_service_changes_total"), 1.0);
    assert_eq!(
        fixture.value(&v4("sync_full_proxy_rules_duration_seconds_count")),
        1.0
    );
    let partial = v4("sync_partial_proxy_rules_duration_seconds_count");
    let before = fixture.value(&partial);
    let began = now();

    // One that came about before the agent does not count as late.
    let mut elsewhere = endpoint_at("node-2");
    let triggered = |slice: &mut Value, at: &str| {
        slice["metadata"]["annotations"] =
            json!({ "endpoints.kubernetes.io/last-change-trigger-time": at });
    };
    triggered(&mut elsewhere, "2020-01-01T00:00:00Z");
    fixture.served.server.create(&elsewhere);
    fixture.wait_for("sync_proxy_rules_endpoint_changes_total", |count| {
        count == 1.0
    });
    fixture.wait_for("sync_proxy_rules_endpoint_changes_pending", |count| {
        count == 0.0
    });
    fixture.wait_for(&partial, |count| count == before + 1.0);
    for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
        let moment = fixture.value(&v4(&format!("sync_proxy_rules_{name}")));
        assert!((began - 0.001..=now()).contains(&moment), "{name} {moment}");
    }
    let without_local = |policy, family| {
        let labels = format!("ip_family=\"{family}\",traffic_policy=\"{policy}\"");
        fixture.value(&format!(
            "sync_proxy_rules_no_local_endpoints_total{{{labels}}}"
        ))
    };
    assert_eq!(without_local("internal", "IPv4"), 1.0);
    assert_eq!(without_local("external", "IPv4"), 1.0);
    assert_eq!(without_local("external", "IPv6"), 0.0);
    let programmed = v4("network_programming_duration_seconds_count");
    assert_eq!(fixture.value(&programmed), 0.0);

    let mut here = endpoint_at("node-1");
    triggered(&mut here, &Timestamp::now().to_string());
    fixture.served.server.update(&here);
    fixture.wait_for(&programmed, |count| count == 1.0);
    let took = fixture.value(&v4("network_programming_duration_seconds_sum"));
    assert!(took > 0.0 && took <= now() - began, "{took}");
    assert_eq!(without_local("internal", "IPv4"), 0.0);
    assert_eq!(without_local("external", "IPv4"), 0.0);
    assert_eq!(
        fixture.value(&v4("sync_proxy_rules_nftables_sync_failures_total")),
        0.0
    );

    // Stale flows are looked for when a UDP Service changes.
    let walks = v4("conntrack_reconciler_sync_duration_seconds_count");
    assert_eq!(fixture.value(&walks), 0.0);
    fixture.served.server.create(&service(
        "dns",
        &[IpAddr::from([10, 96, 0, 2])],
        &[Port::UDP],
    ));
    fixture.wait_for(&walks, |count| count == 1.0);
    let of_ipv6 = "conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"}";
    assert_eq!(fixture.value(of_ipv6), 0.0);

    // There is no Node object.
    let before = fixture.value("proxy_healthz_total{code=\"503\"}");
    assert_eq!(
        get(&fixture.served.node, address(10_256), "/healthz")
            .unwrap()
            .code,
        503
    );
    assert_eq!(
        fixture.value("proxy_healthz_total{code=\"503\"}"),
        before + 1.0
    );
    assert_eq!(
        get(&fixture.served.node, address(10_256), "/livez")
            .unwrap()
            .code,
        200
    );
    assert_eq!(fixture.value("proxy_livez_total{code=\"200\"}"), 1.0);
    fixture.agent.terminate();
}

#[test]
fn the_mode_and_the_configuration_are_told() {
    let fixture = Fixture::start(&[]);
    assert_eq!(fixture.ask("/proxyMode"), "nftables");
    assert_eq!(fixture.ask("/healthz"), "ok");
    let told: Value = serde_json::from_str(&fixture.ask("/configz")).unwrap();
    let told = &told["kubeproxy.config.k8s.io"];
    assert_eq!(told["hostnameOverride"], "node-1");
    assert_eq!(told["nftables"]["masqueradeAll"], true);
    assert_eq!(told["metricsBindAddress"], "127.0.0.1:10249");

    // It is a file that another agent takes.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    fs::write(&path, told.to_string()).unwrap();
    let other = Netns::new().unwrap();
    let objects = directory.path().join("list.json");
    fs::write(&objects, proxyd_tests::objects::list(&[])).unwrap();
    let args = [
        "--config",
        path.to_str().unwrap(),
        "--manifests",
        objects.to_str().unwrap(),
    ];
    let again = Agent::start(&other, &args);
    again.wait_for_log("in sync", PATIENCE);
    let answer = get(&other, address(10_249), "/configz").unwrap();
    // It reads manifests, so it has no use for the kubeconfig.
    let mut expected = told.clone();
    assert_eq!(
        expected["clientConnection"]["kubeconfig"],
        fixture.served.kubeconfig()
    );
    expected["clientConnection"]["kubeconfig"] = json!("");
    assert_eq!(answer.json()["kubeproxy.config.k8s.io"], expected);
    again.terminate();
    fixture.agent.terminate();
}

#[test]
fn a_service_port_without_endpoints_and_a_refused_object_are_logged_and_counted_until_mended() {
    let mut web = service("web", &[IpAddr::from([10, 96, 0, 1])], &[Port::HTTP]);
    let here = endpoint_at("node-1");
    let fixture = Fixture::start(&[web.clone(), here.clone()]);
    let without = "sync_proxy_rules_service_ports_without_endpoints{ip_family=\"IPv4\"}";
    let refused = "refused_objects{kind=\"Service\"}";
    assert_eq!(fixture.value(without), 0.0);
    assert_eq!(fixture.value(refused), 0.0);

    let mut starting = here.clone();
    starting["endpoints"][0]["conditions"] =
        json!({ "ready": false, "serving": false, "terminating": false });
    fixture.served.server.update(&starting);
    fixture.wait_for(without, |count| count == 1.0);
    let port = "Service default/web port 80 tcp";
    let said = |why: &str| {
        let line = format!("{port}: refused, no endpoint can serve it ({why})");
        fixture.agent.wait_for_log(&line, PATIENCE)
    };
    assert!(said("its only endpoint is not ready").contains("WARN"));
    fixture.served.server.update(&here);
    fixture.wait_for(without, |count| count == 0.0);
    let back = format!("{port}: has endpoints again");
    fixture.agent.wait_for_log(&back, PATIENCE);
    // What a sync did is told by front end.
    fixture
        .agent
        .wait_for_log("changes of 10.96.0.1:80 tcp (default/web)", PATIENCE);
    web["spec"]["ports"][0]["name"] = json!("web");
    fixture.served.server.update(&web);
    said("its EndpointSlices have \"http\" tcp, not \"web\" tcp");

    web["spec"]["ports"][0]["name"] = json!("http");
    web["spec"]["externalTrafficPolicy"] = json!("Nearby");
    fixture.served.server.update(&web);
    fixture.wait_for(refused, |count| count == 1.0);
    let complaint = "Service default/web: spec.externalTrafficPolicy: \"Nearby\"";
    fixture.agent.wait_for_log(complaint, PATIENCE);
    web["spec"]["externalTrafficPolicy"] = json!("Cluster");
    fixture.served.server.update(&web);
    fixture.wait_for(refused, |count| count == 0.0);
    let mended = "Service default/web: mended, all of it is served";
    fixture.agent.wait_for_log(mended, PATIENCE);
    fixture.agent.terminate();
}

/// Who writes objects decides how often they change, not how much is logged.
#[test]
fn outages_of_many_ports_are_a_bounded_number_of_lines() {
    let fixture = Fixture::start(&[]);
    for i in 1..=40 {
        let ip = IpAddr::from([10, 96, 0, i]);
        let web = service(&format!("web-{i}"), &[ip], &[Port::HTTP]);
        fixture.served.server.create(&web);
    }
    let without = "sync_proxy_rules_service_ports_without_endpoints{ip_family=\"IPv4\"}";
    fixture.wait_for(without, |count| count == 40.0);
    fixture
        .agent
        .wait_for_log("more Service ports without an endpoint", PATIENCE);
    let (_, log) = fixture.agent.terminate();
    let lines = log
        .iter()
        .filter(|line| line.contains("no endpoint can serve it"));
    // Five of the first news, and five of what came within the pause after them.
    assert!((5..=15).contains(&lines.count()), "{log:#?}");
}
