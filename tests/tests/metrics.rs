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
use proxyd_tests::http::{get, get_with, request};
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

/// What the panels of kubernetes-mixin's dashboard for kube-proxy ask for (`dashboards/proxy.libsonnet`): a metric, and
/// what its labels must say. `up` is Prometheus' own; there are no goroutines, so that the panel of `go_goroutines` stays
/// empty.
const DASHBOARD: [(&str, &str); 9] = [
    ("kubeproxy_sync_proxy_rules_duration_seconds_count", ""),
    ("kubeproxy_sync_proxy_rules_duration_seconds_bucket", "le="),
    ("kubeproxy_network_programming_duration_seconds_count", ""),
    (
        "kubeproxy_network_programming_duration_seconds_bucket",
        "le=",
    ),
    ("rest_client_requests_total", "code=\"2"),
    (
        "rest_client_request_duration_seconds_bucket",
        "verb=\"GET\"",
    ),
    (
        "rest_client_request_duration_seconds_bucket",
        "verb=\"POST\"",
    ),
    ("process_resident_memory_bytes", ""),
    ("process_cpu_seconds_total", ""),
];

#[test]
fn no_panel_of_the_dashboard_is_empty() {
    // A health check port that somebody has: an Event is posted.
    let served = Served::new(Options::default());
    let holder = served
        .node
        .enter(|| std::net::TcpListener::bind("0.0.0.0:30990").unwrap());
    let mut web = local();
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["healthCheckNodePort"] = json!(30_990);
    served.create(&[web]);
    let agent = served.start_in_sync(&["--masquerade-all"]);
    let fixture = Fixture { served, agent };
    let has = |text: &str, (name, label): (&str, &str)| {
        let mut lines = text.lines();
        lines.any(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && rest.contains(label)
        })
    };
    for wanted in DASHBOARD {
        eventually(&format!("{wanted:?}"), PATIENCE, || {
            has(&fixture.ask("/metrics"), wanted)
        });
    }
    let text = fixture.ask("/metrics");
    let host = format!("host=\"{}\"", fixture.served.server.address());
    for wanted in [
        ("rest_client_requests_total", host.as_str()),
        ("process_virtual_memory_bytes", ""),
        ("process_open_fds", ""),
        ("process_max_fds", ""),
        ("process_start_time_seconds", ""),
        ("kubernetes_build_info", "git_version=\"v"),
    ] {
        assert!(has(&text, wanted), "{wanted:?}: {text}");
    }
    let value = |name: &str| -> f64 {
        let mut lines = text.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.expect(name).parse().unwrap()
    };
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((-1.0..60.0).contains(&age), "{age}");
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_open_fds") < value("process_max_fds"));
    drop(holder);
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

    // Flows are looked for when a front end begins to be balanced, and when a UDP Service changes.
    let walks = v4("conntrack_reconciler_sync_duration_seconds_count");
    fixture.wait_for(&walks, |count| count == 1.0);
    fixture.served.server.create(&service(
        "dns",
        &[IpAddr::from([10, 96, 0, 2])],
        &[Port::UDP],
    ));
    fixture.wait_for(&walks, |count| count == 2.0);
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

/// The log's verbosity is set while the agent runs, where `--profiling` allows it, and each line is an object.
#[test]
fn the_log_is_json_and_its_verbosity_is_set_at_run_time() {
    let served = Served::new(Options::default());
    let agent = served.start(&["--logging-format=json", "--profiling", "--masquerade-all"]);
    let put = |level: &str| {
        let metrics = address(10_249);
        request(&served.node, metrics, "PUT", "/debug/flags/v", level).unwrap()
    };
    agent.wait_for_log("in sync", PATIENCE);
    let set = put("2");
    let expected = "successfully set klog.logging.verbosity to 2\n";
    assert_eq!((set.code, set.body.as_str()), (200, expected));
    served.server.create(&local());
    let pending = || get(&served.node, address(10_249), "/metrics").unwrap().body;
    let synced = "kubeproxy_sync_proxy_rules_service_changes_total 1";
    eventually(synced, PATIENCE, || {
        let text = pending();
        text.contains(synced)
            && text.contains("kubeproxy_sync_proxy_rules_service_changes_pending 0")
    });
    let quiet = agent.log().join("\n");
    assert_eq!(put("4").code, 200);
    served.server.create(&endpoint_at("node-1"));
    agent.wait_for_log("after the event", PATIENCE);
    let version = get(&served.node, address(10_249), "/version").unwrap();
    assert!(
        version.json()["gitVersion"]
            .as_str()
            .unwrap()
            .starts_with('v')
    );
    let flags = get(&served.node, address(10_249), "/flagz").unwrap().body;
    assert!(flags.contains("\nlogging-format=json\n"), "{flags}");
    let log = agent.log().join("\n");
    let after_first_put = |log: &str| {
        let at = log.find("verbosity 2 from now on").expect("it is told");
        log[at..].matches("after the event").count()
    };
    assert_eq!(after_first_put(&quiet), 0, "{quiet}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        assert!(line["ts"].is_f64() && line["msg"].is_string(), "{line}");
        assert!(line["caller"].as_str().unwrap().contains(".rs:"), "{line}");
    }
    agent.terminate();
}
