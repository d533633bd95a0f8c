//! What is told beside the rules: counts, the summary, one Service alone, and what is hardly as it was meant.

use super::*;
use crate::plan::NodePortAddresses;

/// A Service with two pods on two nodes, at its ClusterIP and as a NodePort; others of every kind.
fn shop() -> Objects {
    let mut objects = objects();
    let slice = objects.slices.first_mut().unwrap();
    let endpoint = slice.endpoints.as_mut().unwrap().first_mut().unwrap();
    endpoint.target_ref = Some(core::ObjectReference {
        kind: Some("Pod".to_owned()),
        name: Some("web-7d4b9".to_owned()),
        ..core::ObjectReference::default()
    });
    objects
}

fn run_for(output: Output, only: Option<ObjectName>, objects: &Objects) -> DryRun {
    let plan = PlanConfig {
        pod_networks: PodNetworks::Fixed(vec!["10.1.0.0/16".parse().unwrap()]),
        node_port_addresses: NodePortAddresses::primary(),
        masquerade_all: false,
        external_ips: true,
    };
    let settings = Settings {
        node_name: "node-1",
        plan: &plan,
        skeleton: &SkeletonConfig {
            detector: PerFamily {
                v4: Detector::Source,
                v6: Detector::None,
            },
            masquerade_bit: 14,
            rejects_unused_ports: true,
        },
        backend: Backend::Ebpf,
        table_size: TableSize::DEFAULT,
        output,
        host_addresses: BTreeSet::from(["192.168.0.2".parse().unwrap()]),
        unread: 2,
        only,
    };
    dry_run(objects, &settings)
}

#[test]
fn the_summary_has_front_ends_and_endpoints_with_their_pods() {
    expect![[r#"
        What clients of Services reach, as node node-1 serves them.
        6 Services: 3 with rules, 2 headless or ExternalName, 1 without an address. Not read: 2 documents or objects (standard error says why).
        No Node object is named node-1: NodePorts are at every address of this machine (--hostname-override).

        Services without rules:
        default/db: headless; clients ask DNS and connect to an endpoint directly
            db.default.svc  10.1.0.3
            db.default.svc  10.1.0.4
            db-0.db.default.svc  10.1.0.3
            db-1.db.default.svc  10.1.0.4
        default/docs: ExternalName; DNS answers with a CNAME to docs.example.com
        default/later: has no ClusterIP; the API server allocates one, a file has to say one

        default/idle, ClusterIP
          10.96.0.9:53 udp: refused, no endpoint can serve it (it has no EndpointSlice)

        default/web, NodePort
          10.96.0.1:80 tcp: 2 endpoints
          IPv4 node port 30080 tcp at 192.168.0.2: 2 endpoints
            10.1.0.1:8080  on node-2
            10.1.0.2:8080  web-7d4b9  on node-1

        default/web-2, ClusterIP
          10.96.0.1:80 tcp: not here, default/web has it: neither says that it is older, and its name comes first
    "#]].assert_eq(&run_for(Output::Summary, None, &shop()).text);
}

#[test]
fn one_service_can_be_asked_for() {
    let name = |name: &str| Some(ObjectName::new("default", name));
    expect![[r#"
        # What the rules of node node-1 hold of Service default/web. It is a part of them, and nothing to be loaded.
        # No Node object is named node-1: NodePorts are at every address of this machine (--hostname-override).

        # default/web, NodePort
        #   10.96.0.1:80 tcp: 2 endpoints
        #   IPv4 node port 30080 tcp at 192.168.0.2: 2 endpoints
        add element ip proxyd cluster-ips { 10.96.0.1 }

        # BPF maps, IPv4
        #   NodePort 30080 tcp: back ends: 2, hashed for clients outside, masqueraded
        #     0 → 10.1.0.1:8080
        #     1 → 10.1.0.2:8080
        #   10.96.0.1:80 tcp: back ends: 2, masqueraded for others than pods
        #     0 → 10.1.0.1:8080
        #     1 → 10.1.0.2:8080

        # BPF maps, IPv6
    "#]].assert_eq(&run_for(Output::Text, name("web"), &shop()).text);
    expect![[r#"
        What clients of Services reach, as node node-1 serves them.
        No Node object is named node-1: NodePorts are at every address of this machine (--hostname-override).

        Services without rules:
        default/db: headless; clients ask DNS and connect to an endpoint directly
            db.default.svc  10.1.0.3
            db.default.svc  10.1.0.4
            db-0.db.default.svc  10.1.0.3
            db-1.db.default.svc  10.1.0.4
    "#]].assert_eq(&run_for(Output::Summary, name("db"), &shop()).text);
    let json: Value =
        serde_json::from_str(&run_for(Output::Json, name("web"), &shop()).text).unwrap();
    let frontends = json["families"][0]["frontends"].as_array().unwrap();
    let frontends: Vec<_> = frontends
        .iter()
        .map(|of| (&of["address"], &of["nodePort"]))
        .collect();
    let none = &Value::Null;
    assert_eq!(
        frontends,
        [(none, &json!(30080)), (&json!("10.96.0.1"), none)]
    );

    let missing = run_for(Output::Text, name("wbe"), &shop());
    assert_eq!(missing.text, "");
    assert_eq!(
        missing.failure.as_deref(),
        Some("there is no Service default/wbe; the nearest is default/web")
    );
}

#[test]
fn slices_that_no_service_has_are_noted_and_refuse_nothing() {
    let mut objects = objects();
    let labels = objects.slices[0].metadata.labels.as_mut().unwrap();
    labels.insert("kubernetes.io/service-name".to_owned(), "wep".to_owned());
    let notes = run(&objects).notes;
    let hints: Vec<String> = notes
        .iter()
        .filter(|note| !note.is_refusal)
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        hints,
        [
            "EndpointSlice default/web-a: metadata.labels[kubernetes.io/service-name]: there is no Service \
             default/wep; the nearest is default/web"
        ]
    );
}

/// As a real cluster had it: a host-network pod that is replaced on its node, and an address in two slices.
#[test]
fn an_address_that_is_there_twice_is_served_in_any_order_of_slices() {
    let service = |name: &str, ip: &str| {
        let metadata = json!({ "name": name, "namespace": "default" });
        let spec = json!({ "clusterIP": ip, "ports": [{ "port": 80 }] });
        serde_json::from_value::<core::Service>(json!({ "metadata": metadata, "spec": spec }))
            .unwrap()
    };
    let endpoint = |address: &str, [ready, serving, terminating]: [bool; 3]| {
        let conditions = json!({ "ready": ready, "serving": serving, "terminating": terminating });
        json!({ "addresses": [address], "nodeName": "node1", "conditions": conditions })
    };
    let slice = |name: &str, service: &str, endpoints: &[&Value]| {
        let labels = json!({ "kubernetes.io/service-name": service });
        serde_json::from_value::<discovery::EndpointSlice>(json!({
            "metadata": { "name": name, "namespace": "default", "labels": labels }, "addressType": "IPv4",
            "ports": [{ "name": "", "port": 80 }], "endpoints": endpoints,
        }))
        .unwrap()
    };
    let host = "192.168.0.2";
    let [leaving, coming] = [[false, true, true], [false, false, false]].map(|s| endpoint(host, s));
    let [starting, ready] =
        [[false, false, false], [true, true, false]].map(|s| endpoint("10.180.0.53", s));
    let orders = [
        [[&leaving, &coming], [&starting, &ready]],
        [[&coming, &leaving], [&ready, &starting]],
    ];
    for [replaced, twice] in orders {
        let objects = Objects {
            services: vec![
                service("host-pod-replaced", "10.96.4.4"),
                service("ready-and-not", "10.96.4.5"),
            ],
            slices: vec![
                slice("a5", "host-pod-replaced", &replaced),
                slice("a6", "ready-and-not", &twice[..1]),
                slice("a7", "ready-and-not", &twice[1..]),
            ],
            ..Objects::default()
        };
        let text = run(&objects).text;
        for served in [
            "endpoints { 10.96.4.4 . tcp . 80 . 0 : 192.168.0.2 . 80 }",
            "endpoints { 10.96.4.5 . tcp . 80 . 0 : 10.180.0.53 . 80 }",
        ] {
            assert!(text.contains(served), "{served} in {text}");
        }
    }
}

#[test]
fn no_text_of_the_input_becomes_a_command() {
    let mut objects = objects();
    let evil = "x\nadd table ip evil\r\u{85}\u{2028}";
    for service in &mut objects.services {
        let spec = service.spec.as_mut().unwrap();
        spec.external_name = spec.external_name.take().map(|name| name + evil);
        spec.type_.get_or_insert_with(|| evil.to_owned());
        service.metadata.name = service.metadata.name.take().map(|name| name + evil);
    }
    for slice in &mut objects.slices {
        slice
            .metadata
            .labels
            .as_mut()
            .unwrap()
            .values_mut()
            .for_each(|name| name.push_str(evil));
        for endpoint in slice.endpoints.iter_mut().flatten() {
            endpoint.hostname = endpoint.hostname.take().map(|name| name + evil);
        }
    }
    let text = run(&objects).text;
    let commands = text.lines().filter(|line| line.starts_with("add table"));
    assert_eq!(
        commands.collect::<Vec<_>>(),
        ["add table ip proxyd", "add table ip6 proxyd"]
    );
    assert!(text.contains("evil"), "the text is there, as a comment");
}
