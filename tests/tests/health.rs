//! `/healthz`, `/livez` and the health check ports of Services: what load balancers and kubelets are told, and when.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Stdio;

use proxyd_tests::agent::{Agent, run_once};
use proxyd_tests::apiserver::{Options, Refusal, Resource};
use proxyd_tests::cluster::{Cluster, Host};
use proxyd_tests::http::{Answer, get};
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::{Port, list, service, slice};
use proxyd_tests::served::Served;
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World, http};
use serde_json::{Value, json};

const HEALTH: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Asks an agent from its own namespace.
fn ask(netns: &Netns, at: &str, path: &str) -> io::Result<Answer> {
    get(netns, at.parse().unwrap(), path)
}

/// Waits until `/healthz` and `/livez` answer so.
#[track_caller]
fn wait_for_codes(netns: &Netns, healthz: u16, livez: u16) {
    let what = format!("/healthz answers {healthz}, /livez {livez}");
    eventually(&what, 2 * PATIENCE, || {
        let code = |path| ask(netns, HEALTH, path).map_or(0, |answer| answer.code);
        (code("/healthz"), code("/livez")) == (healthz, livez)
    });
}

/// A load balancer's Service, which asks nodes at `health_port` whether they have endpoints.
fn load_balanced(name: &str, cluster_ips: &[IpAddr], health_port: u16) -> Value {
    let mut service = service(name, cluster_ips, &[Port::HTTP.at_nodes(30_080)]);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(health_port);
    service
}

/// A node with an API server at its loopback address, and an agent that watches it.
struct Fixture {
    served: Served,
    agent: Agent,
}

impl Fixture {
    /// The API server has these objects, and refuses what `refusal` says, when the agent starts.
    fn start(objects: &[Value], refusal: Option<Refusal>) -> Self {
        let served = Served::new(Options::default());
        served.create(objects);
        let refusals = refusal.into_iter();
        refusals.for_each(|refusal| served.server.refuse(refusal));
        let agent = served.start(&[]);
        Self { served, agent }
    }
}

/// This node's Node object.
fn node(taints: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" }, "spec": { "taints": taints },
    })
}

#[test]
fn health_begins_with_the_first_rules_and_follows_the_node() {
    let hidden = Refusal::with(403)
        .times(usize::MAX)
        .on(Resource::EndpointSlices);
    let fixture = Fixture::start(&[node(json!([]))], Some(hidden));
    fixture
        .agent
        .wait_for_log("watching endpointslices", PATIENCE);
    wait_for_codes(&fixture.served.node, 503, 200);
    let body = ask(&fixture.served.node, HEALTH, "/healthz")
        .unwrap()
        .json();
    assert_eq!(body["healthy"], false, "{body}");
    assert_eq!(body.get("status"), None, "no family was written: {body}");

    fixture.served.server.clear_faults();
    wait_for_codes(&fixture.served.node, 200, 200);
    let answer = ask(&fixture.served.node, HEALTH, "/healthz").unwrap();
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!(body["nodeEligible"], true, "{body}");
    assert_eq!(body["status"]["IPv4"]["healthy"], true, "{body}");
    assert_eq!(body["status"]["IPv6"]["healthy"], true, "{body}");

    let leaving =
        json!([{ "key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule" }]);
    fixture.served.server.update(&node(leaving));
    wait_for_codes(&fixture.served.node, 503, 200);
    let body = ask(&fixture.served.node, HEALTH, "/healthz")
        .unwrap()
        .json();
    assert_eq!(
        (&body["nodeEligible"], &body["healthy"]),
        (&json!(false), &json!(true))
    );
    fixture
        .served
        .server
        .update(&node(json!([{ "key": "other", "effect": "NoSchedule" }])));
    wait_for_codes(&fixture.served.node, 200, 200);

    fixture.served.server.delete(Resource::Nodes, "", "node-1");
    wait_for_codes(&fixture.served.node, 503, 200);
    fixture.served.server.create(&node(json!([])));
    wait_for_codes(&fixture.served.node, 200, 200);
    let mut going = node(json!([]));
    going["metadata"]["deletionTimestamp"] = json!("2026-05-01T12:00:00Z");
    fixture.served.server.update(&going);
    wait_for_codes(&fixture.served.node, 503, 200);
    fixture.agent.terminate();
}

#[test]
fn a_kernel_that_refuses_is_told_after_two_periods() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = |names: &[&str]| {
        let services: Vec<_> = (1..)
            .zip(names)
            .map(|(host, name)| service(name, &[IpAddr::from([10, 96, 0, host])], &[Port::HTTP]))
            .collect();
        fs::write(path("objects.tmp"), list(&services)).unwrap();
        fs::rename(path("objects.tmp"), path("objects.json")).unwrap();
    };
    write(&["web"]);
    let objects = path("objects.json");
    let args = [
        "--hostname-override=n",
        "--iptables-sync-period=200ms",
        "--manifests",
        objects.to_str().unwrap(),
    ];
    let agent = Agent::start(&netns, &args);
    agent.wait_for_log("in sync", PATIENCE);
    wait_for_codes(&netns, 200, 200);

    // Someone takes the table away, and has one of the same name that nobody else may change as long as he is there.
    let mut owner = netns.spawn("nft", |command| {
        command
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
    });
    let owner = owner.as_mut().unwrap();
    let commands = "delete table ip proxyd; add table ip proxyd { flags owner; }\n";
    let stdin = owner.stdin.as_mut().unwrap();
    stdin.write_all(commands.as_bytes()).unwrap();
    write(&["web", "api"]);
    wait_for_codes(&netns, 503, 503);
    let body = ask(&netns, HEALTH, "/livez").unwrap().json();
    assert_eq!(body["status"]["IPv4"]["healthy"], false, "{body}");
    assert_eq!(body["status"]["IPv6"]["healthy"], true, "{body}");
    let scrape = ask(&netns, METRICS, "/metrics").unwrap().body;
    let failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";
    assert!(
        !scrape.contains(&format!("{failures}{{ip_family=\"IPv4\"}} 0\n")),
        "{scrape}"
    );
    assert!(
        scrape.contains(&format!("{failures}{{ip_family=\"IPv6\"}} 0\n")),
        "{scrape}"
    );
    assert!(scrape.contains("service_changes_pending 2\n"), "{scrape}");

    // With him the kernel removes his table.
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for_codes(&netns, 200, 200);
    let scrape = ask(&netns, METRICS, "/metrics").unwrap().body;
    assert!(scrape.contains("service_changes_pending 0\n"), "{scrape}");
    agent.terminate();
}

/// Waits until a port of a node tells so many endpoints; `None`: until nobody listens there.
#[track_caller]
fn wait_for_endpoints(from: &Host, to: SocketAddr, expected: Option<usize>) -> Option<Answer> {
    let mut last = None;
    eventually(
        &format!("{to} tells of {expected:?} endpoints"),
        PATIENCE,
        || match get(&from.netns, to, "/any/path") {
            Ok(answer) => {
                let told = answer.json()["localEndpoints"].as_u64();
                last = Some(answer);
                told == expected.map(|count| count as u64)
            }
            Err(error) => {
                last = None;
                expected.is_none() && error.kind() == io::ErrorKind::ConnectionRefused
            }
        },
    );
    last
}

#[test]
fn load_balancers_learn_how_many_endpoints_of_a_service_a_node_has() {
    let cluster = Cluster::new();
    let [a, b] = ["a", "b"].map(|name| cluster.node1.pod(name).serving(8080));
    let c = cluster.node2.pod("c").serving(8080);
    let objects = |health_port, pods: &[(&proxyd_tests::cluster::Pod, &str)]| {
        let ips = [ip("10.96.0.1"), ip("fd00:10:96::1")];
        let slice_of = |of: fn(&Host) -> IpAddr| {
            let endpoints: Vec<_> = pods
                .iter()
                .map(|(pod, node)| (of(&pod.host), *node))
                .collect();
            slice("web", &[Port::HTTP], &endpoints)
        };
        [
            load_balanced("web", &ips, health_port),
            slice_of(|host| host.v4),
            slice_of(|host| host.v6),
        ]
    };
    let everywhere = [(&a, "node-1"), (&b, "node-1"), (&c, "node-2")];
    let world = World::start(cluster, &objects(31_000, &everywhere), &World::DETECT_PODS);
    let (client, node) = (&world.cluster.client, world.node());
    let at = |port| [node.v4, node.v6].map(|ip| SocketAddr::new(ip, port));
    for address in at(31_000) {
        let answer = wait_for_endpoints(client, address, Some(2)).unwrap();
        assert_eq!(answer.code, 200);
        assert_eq!(answer.header("x-load-balancing-endpoint-weight"), "2");
        assert_eq!(answer.header("content-type"), "application/json");
        let expected = json!({
            "service": { "namespace": "default", "name": "web" },
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(answer.json(), expected);
    }
    world.write(&objects(31_000, &everywhere[2..]));
    for address in at(31_000) {
        let answer = wait_for_endpoints(client, address, Some(0)).unwrap();
        assert_eq!(answer.code, 503);
        assert_eq!(answer.header("x-load-balancing-endpoint-weight"), "0");
        assert_eq!(answer.json()["serviceProxyHealthy"], true);
    }
    world.write(&objects(31_001, &everywhere[1..]));
    for (old, new) in at(31_000).into_iter().zip(at(31_001)) {
        wait_for_endpoints(client, new, Some(1));
        wait_for_endpoints(client, old, None);
    }
    world.write(&http("other", "10.96.0.2", &[(&c, "node-2")]));
    for address in at(31_001) {
        wait_for_endpoints(client, address, None);
    }
}

#[test]
fn health_is_told_at_the_addresses_that_have_node_ports() {
    let cluster = Cluster::new();
    let pod = cluster.node1.pod("a");
    let objects = [
        load_balanced("web", &[ip("10.96.0.1")], 31_000),
        slice("web", &[Port::HTTP], &[(pod.host.v4, "node-1")]),
    ];
    let only = ["--nodeport-addresses", "192.168.0.0/24"];
    let world = World::start(cluster, &objects, &only);
    let (client, node) = (&world.cluster.client, world.node());
    wait_for_endpoints(client, SocketAddr::new(node.v4, 31_000), Some(1));
    wait_for_endpoints(client, SocketAddr::new(node.v6, 31_000), None);
}

#[test]
fn a_health_check_port_that_is_taken_is_reported_on_the_service_until_it_is_free() {
    let endpoint = slice("web", &[Port::HTTP], &[(ip("10.1.0.1"), "node-1")]);
    let fixture = Fixture::start(&[node(json!([])), endpoint], None);
    fixture.agent.wait_for_log("in sync", PATIENCE);
    let holder = fixture
        .served
        .node
        .enter(|| TcpListener::bind("[::]:31000"))
        .unwrap();
    fixture
        .served
        .server
        .create(&load_balanced("web", &[ip("10.96.0.1")], 31_000));
    let said = fixture
        .agent
        .wait_for_log("WARN Service default/web: health check port", PATIENCE);
    assert!(said.contains("another process has this port"), "{said}");
    eventually("there is an Event", PATIENCE, || {
        !fixture.served.server.objects(Resource::Events).is_empty()
    });
    let events = fixture.served.server.objects(Resource::Events);
    let [event] = events.as_slice() else {
        panic!("one Event was expected: {events:?}");
    };
    let service = &fixture.served.server.objects(Resource::Services)[0];
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!(event["reportingInstance"], "node-1");
    assert_eq!(event["regarding"]["kind"], "Service");
    assert_eq!(event["regarding"]["name"], "web");
    assert_eq!(event["regarding"]["uid"], service["metadata"]["uid"]);
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("on port 31000"), "{note}");

    drop(holder);
    eventually("the port answers once it is free", PATIENCE, || {
        ask(&fixture.served.node, "127.0.0.1:31000", "/").is_ok_and(|answer| answer.code == 200)
    });
    assert_eq!(
        fixture.served.server.objects(Resource::Events).len(),
        1,
        "told once"
    );
    fixture.agent.terminate();
}

#[test]
fn a_taken_port_ends_the_agent_only_if_it_is_to() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let objects = directory.path().join("list.json");
    fs::write(&objects, list(&[])).unwrap();
    let args = [
        "--hostname-override=n",
        "--manifests",
        objects.to_str().unwrap(),
    ];
    for (port, flag) in [(10_256, "healthz"), (10_249, "metrics")] {
        let holder = netns
            .enter(|| TcpListener::bind((IpAddr::from([127, 0, 0, 1]), port)))
            .unwrap();
        let output = run_once(&netns, &[&args[..], &["--bind-address-hard-fail"]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("error: the default of --{flag}-bind-address: listening on ");
        assert!(said.contains(&expected), "{said}");

        let agent = Agent::start(&netns, &args);
        agent.wait_for_log("in sync", PATIENCE);
        agent.wait_for_log(
            &format!("WARN the default of --{flag}-bind-address: listening on"),
            PATIENCE,
        );
        drop(holder);
        eventually("the port answers once it is free", PATIENCE, || {
            ask(&netns, &format!("127.0.0.1:{port}"), "/healthz")
                .is_ok_and(|answer| answer.code == 200)
        });
        agent.terminate();
    }
}

#[test]
fn an_empty_address_is_no_server() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let objects = directory.path().join("list.json");
    fs::write(&objects, list(&[])).unwrap();
    let args = [
        "--hostname-override=n",
        "--manifests",
        objects.to_str().unwrap(),
        "--healthz-bind-address=",
        "--metrics-bind-address=::1",
    ];
    let agent = Agent::start(&netns, &args);
    agent.wait_for_log("in sync", PATIENCE);
    eventually("metrics are where the flag says", PATIENCE, || {
        ask(&netns, "[::1]:10249", "/metrics").is_ok()
    });
    for address in [HEALTH, METRICS, "[::1]:10256"] {
        ask(&netns, address, "/healthz").unwrap_err();
    }
    agent.terminate();
}
