//! The agent as a client of an API server: what it asks for, what it follows, and what it outlasts.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::net::{IpAddr, TcpListener};

use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use proxyd_tests::agent::{Agent, nft, run_once};
use proxyd_tests::apiserver::{Cut, Encoding, Options, Refusal, Resource, Verb};
use proxyd_tests::envtest::{Envtest, client};
use proxyd_tests::generation::Generation;
use proxyd_tests::in_both_encodings;
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::served::Served;
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

const ARGS: [&str; 3] = ["-v4", "--hostname-override", "node-1"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A Service `default/NAME` at 10.96.0.HOST with one endpoint at 10.1.0.HOST.
fn web(name: &str, host: u8) -> [Value; 2] {
    [
        service(name, &[IpAddr::from([10, 96, 0, host])], &[Port::HTTP]),
        slice(
            name,
            &[Port::HTTP],
            &[(IpAddr::from([10, 1, 0, host]), "node-2")],
        ),
    ]
}

fn headless() -> Value {
    let mut db = service("db", &[ip("0.0.0.0")], &[Port::HTTP]);
    db["spec"]["clusterIP"] = json!("None");
    db["spec"]["clusterIPs"] = json!(["None"]);
    db
}

fn list_map(node: &Netns, map: &str) -> String {
    nft(node, &["list", "map", "ip", "proxyd", map], "")
}

/// Waits until the endpoints of 10.96.0.HOST are these, and the Service balances over as many.
#[track_caller]
fn wait_for_endpoints(node: &Netns, host: u8, endpoints: &[u8]) {
    eventually(
        &format!("10.96.0.{host} goes to {endpoints:?}"),
        PATIENCE,
        || {
            let key = format!("10.96.0.{host} . tcp . 80 . ");
            let text = list_map(node, "endpoints");
            let found = text
                .split(['{', ',', '}'])
                .filter(|element| element.contains(&key));
            let mut hosts: Vec<u8> = found
                .filter_map(|element| {
                    element
                        .split_once(": 10.1.0.")?
                        .1
                        .split(' ')
                        .next()?
                        .parse()
                        .ok()
                })
                .collect();
            hosts.sort_unstable();
            let services = list_map(node, "services");
            let mut elements = services.split(['{', ',', '}']);
            let service =
                elements.find(|element| element.contains(&format!(" 10.96.0.{host} . tcp . 80 ")));
            let balances = match endpoints.len() {
                0 => service.is_none(),
                count => service.is_some_and(|service| {
                    service.trim().ends_with(&format!(": goto cluster-{count}"))
                }),
            };
            hosts == endpoints && balances
        },
    );
}

in_both_encodings! {
    the_agent_asks_for_what_it_needs_and_no_more,
    an_older_api_server_is_asked_for_less,
    rules_follow_our_api_server,
    nothing_is_written_before_both_lists_are_complete,
    lists_are_not_streamed_where_the_gate_is_off,
    a_sick_older_server_is_complained_about_once,
    what_changed_while_the_server_was_away_is_caught_up_with,
    node_ports_are_at_the_addresses_of_the_node_object,
    a_dry_run_lists_headless_services_too,
}

fn the_agent_asks_for_what_it_needs_and_no_more(options: Options) {
    let encoding = match options.protobuf {
        true => Encoding::Protobuf,
        false => Encoding::Json,
    };
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    fixture.create(&[headless()]);
    let agent = fixture.start_in_sync(&[]);
    wait_for_endpoints(&fixture.node, 1, &[1]);
    let requests = fixture.server.requests();
    let asked = |resource, label: Option<&str>, field: Option<&str>| {
        let of_kind: Vec<_> = requests
            .iter()
            .filter(|r| r.resource == Some(resource))
            .collect();
        assert!(!of_kind.is_empty(), "{resource:?}");
        for request in of_kind {
            assert_eq!(
                request.verb,
                Some(Verb::Watch),
                "streaming lists, no plain ones: {request:?}"
            );
            assert_eq!(request.encoding, Some(encoding));
            assert_eq!(
                request.query.get("labelSelector").map(String::as_str),
                label
            );
            assert_eq!(
                request.query.get("fieldSelector").map(String::as_str),
                field
            );
        }
    };
    asked(
        Resource::Services,
        Some("!service.kubernetes.io/service-proxy-name"),
        Some("spec.clusterIP!=None"),
    );
    asked(
        Resource::EndpointSlices,
        Some("!service.kubernetes.io/headless"),
        None,
    );
    asked(Resource::Nodes, None, Some("metadata.name=node-1"));
    agent.terminate();
}

fn an_older_api_server_is_asked_for_less(options: Options) {
    let options = Options {
        streaming_lists: false,
        service_field_selectors: false,
        ..options
    };
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    fixture.create(&[headless()]);
    let agent = fixture.start_in_sync(&[]);
    wait_for_endpoints(&fixture.node, 1, &[1]);
    fixture.create(&web("api", 2));
    wait_for_endpoints(&fixture.node, 2, &[2]);
    let (_, log) = agent.terminate();
    assert!(
        log.iter()
            .any(|line| line.contains("services: the API server is an older one")),
        "{log:#?}"
    );
}

/// What holds on any API server: ours, and a real one where there is one.
async fn rules_follow_the_api_server(node: &Netns, kubeconfig_text: &str) {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, kubeconfig_text).unwrap();
    let client = client(kubeconfig_text).await;
    let api = |group: &str, kind: &str| -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        Api::namespaced_with(client.clone(), "default", &resource)
    };
    let (services, slices) = (api("", "Service"), api("discovery.k8s.io", "EndpointSlice"));
    let typed = |value: &Value| serde_json::from_value::<DynamicObject>(value.clone()).unwrap();
    let create = async |objects: &[Value; 2]| {
        services
            .create(&PostParams::default(), &typed(&objects[0]))
            .await
            .unwrap();
        slices
            .create(&PostParams::default(), &typed(&objects[1]))
            .await
            .unwrap();
    };
    let replace = async |api: &Api<DynamicObject>, name: &str, value: Value| {
        let mut object = typed(&value);
        object.metadata.resource_version = api.get(name).await.unwrap().metadata.resource_version;
        api.replace(name, &PostParams::default(), &object)
            .await
            .unwrap();
    };

    create(&web("web", 11)).await;
    let args = [&ARGS[..], &["--kubeconfig", kubeconfig.to_str().unwrap()]].concat();
    let agent = Agent::start(node, &args);
    agent.wait_for_log("in sync", PATIENCE);
    wait_for_endpoints(node, 11, &[11]);

    create(&web("api", 12)).await;
    wait_for_endpoints(node, 12, &[12]);
    let endpoints = [
        (ip("10.1.0.11"), "node-1"),
        (ip("10.1.0.21"), "node-2"),
        (ip("10.1.0.22"), "node-2"),
    ];
    replace(&slices, "web-ipv4", slice("web", &[Port::HTTP], &endpoints)).await;
    wait_for_endpoints(node, 11, &[11, 21, 22]);

    let [mut other_proxy, _] = web("api", 12);
    other_proxy["metadata"]["labels"] =
        json!({ "service.kubernetes.io/service-proxy-name": "other" });
    replace(&services, "api", other_proxy).await;
    wait_for_endpoints(node, 12, &[]);
    let [ours_again, _] = web("api", 12);
    replace(&services, "api", ours_again).await;
    wait_for_endpoints(node, 12, &[12]);

    let mut headless = slice("web", &[Port::HTTP], &endpoints);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    replace(&slices, "web-ipv4", headless).await;
    eventually(
        "slices of a headless Service are no endpoints",
        PATIENCE,
        || list_map(node, "no-endpoints").contains("10.96.0.11 . tcp . 80"),
    );
    services.delete("web", &Default::default()).await.unwrap();
    eventually("a deleted Service has no rules", PATIENCE, || {
        !list_map(node, "no-endpoints").contains("10.96.0.11 . tcp . 80")
    });
    agent.terminate();
}

/// Runs on a thread of the node, so that every socket of the client is there.
fn in_node<T: Send>(node: &Netns, work: impl AsyncFnOnce() -> T + Send) -> T {
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    })
}

fn rules_follow_our_api_server(options: Options) {
    let fixture = Served::new(options);
    let kubeconfig = fixture.server.kubeconfig();
    in_node(&fixture.node, async || {
        rules_follow_the_api_server(&fixture.node, &kubeconfig).await;
    });
}

#[test]
fn rules_follow_a_real_kube_apiserver() {
    let node = Netns::new().unwrap();
    in_node(&node, async || {
        if let Some(server) = Envtest::start().await {
            rules_follow_the_api_server(&node, &server.kubeconfig()).await;
        }
    });
}

fn nothing_is_written_before_both_lists_are_complete(options: Options) {
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    fixture.start_in_sync(&[]).terminate();
    wait_for_endpoints(&fixture.node, 1, &[1]);
    let generation = Generation::of(&fixture.node).unwrap();
    let before = generation.get().unwrap();

    fixture.server.refuse(
        Refusal::with(403)
            .times(1_000_000)
            .on(Resource::EndpointSlices),
    );
    let agent = fixture.start(&[]);
    let said = agent.wait_for_log("watching endpointslices", PATIENCE);
    assert!(
        said.contains("grant the verbs list and watch on endpointslices to proxyd"),
        "{said}"
    );
    fixture.server.clear_faults();
    agent.wait_for_log("watching endpointslices again", PATIENCE);
    agent.wait_for_log("in sync", PATIENCE);
    assert_eq!(generation.get().unwrap(), before, "nothing had changed");
    agent.terminate();
}

/// As client-go has it, for servers that stream badly.
fn lists_are_not_streamed_where_the_gate_is_off(options: Options) {
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    let streamed = |args: &[&str]| {
        fixture.server.clear_requests();
        fixture.start_in_sync(args).terminate();
        let requests = fixture.server.requests();
        let streamed = requests.iter();
        let streamed = streamed.filter(|request| request.query.contains_key("sendInitialEvents"));
        streamed.count()
    };
    assert_eq!(streamed(&[]), 4);
    assert_eq!(streamed(&["--feature-gates=WatchListClient=false"]), 0);
    wait_for_endpoints(&fixture.node, 1, &[1]);
}

fn a_sick_older_server_is_complained_about_once(options: Options) {
    let options = Options {
        streaming_lists: false,
        ..options
    };
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    let refused = Refusal::with(503)
        .times(2)
        .on(Resource::Services)
        .verb(Verb::List);
    fixture.server.refuse(refused);
    let agent = fixture.start(&[]);
    agent.wait_for_log("in sync", 3 * PATIENCE);
    let (_, log) = agent.terminate();
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(
        count("watching services: the API server answered 503"),
        1,
        "{log:#?}"
    );
    assert_eq!(count("watching services again"), 1, "{log:#?}");
}

fn what_changed_while_the_server_was_away_is_caught_up_with(options: Options) {
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    fixture.create(&web("api", 2));
    let agent = fixture.start_in_sync(&[]);
    for cut in [Cut::Clean, Cut::Broken, Cut::HalfLine] {
        fixture.server.cut_watches(cut);
        let endpoints = [(ip("10.1.0.1"), "node-2"), (ip("10.1.0.9"), "node-2")];
        fixture
            .server
            .update(&slice("web", &[Port::HTTP], &endpoints));
        wait_for_endpoints(&fixture.node, 1, &[1, 9]);
        fixture.server.update(&web("web", 1)[1]);
        wait_for_endpoints(&fixture.node, 1, &[1]);
    }
    // The history that a resumed watch needs is gone: 410, and everything is listed anew.
    fixture.server.stop();
    fixture.server.delete(Resource::Services, "default", "api");
    fixture.create(&web("new", 3));
    fixture.server.compact();
    wait_for_endpoints(&fixture.node, 2, &[2]);
    let address = fixture.server.address();
    fixture
        .server
        .resume_on(fixture.node.enter(|| TcpListener::bind(address)).unwrap());
    wait_for_endpoints(&fixture.node, 2, &[]);
    wait_for_endpoints(&fixture.node, 3, &[3]);
    wait_for_endpoints(&fixture.node, 1, &[1]);
    agent.terminate();
}

fn node_ports_are_at_the_addresses_of_the_node_object(options: Options) {
    let fixture = Served::new(options);
    let node = |address: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        })
    };
    fixture.create(&[node("192.168.0.2")]);
    let agent = fixture.start_in_sync(&[]);
    let set = || {
        nft(
            &fixture.node,
            &["list", "set", "ip", "proxyd", "node-port-addresses"],
            "",
        )
    };
    assert!(set().contains("{ 192.168.0.2 }"), "{}", set());
    fixture.server.update(&node("192.168.0.3"));
    eventually("the Node's new address has NodePorts", PATIENCE, || {
        set().contains("{ 192.168.0.3 }")
    });
    agent.terminate();
}

fn a_dry_run_lists_headless_services_too(options: Options) {
    let fixture = Served::new(options);
    fixture.create(&web("web", 1));
    fixture.create(&[headless()]);
    let kubeconfig = fixture.kubeconfig();
    let args = [
        "--dry-run",
        "--hostname-override",
        "node-1",
        "--kubeconfig",
        &kubeconfig,
    ];
    let output = run_once(&fixture.node, &args);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("# default/db: headless"),
        "{text}"
    );
    assert!(
        text.contains("10.96.0.1 . tcp . 80 . 0 : 10.1.0.1 . 8080"),
        "{text}"
    );
    fixture.server.refuse(Refusal::with(401).times(10));
    let url = fixture.server.url();
    let output = run_once(&fixture.node, &[&args[..3], &["--master", &url]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the API server does not know the caller"),
        "{said}"
    );
}
