//! The dry run's text, as a person reads it.

mod json;
mod told;

use expect_test::expect;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};

use super::*;
use crate::model::PerFamily;
use crate::plan::{Detector, PodNetworks};
use crate::testing::plan_config;

fn objects() -> Objects {
    let service = |name: &str, spec: Value| {
        let metadata = json!({ "name": name, "namespace": "default" });
        serde_json::from_value::<core::Service>(json!({ "metadata": metadata, "spec": spec }))
            .unwrap()
    };
    let slice = |name: &str, service: &str, endpoints: Value| {
        let labels = json!({ "kubernetes.io/service-name": service });
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default", "labels": labels }, "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }], "endpoints": endpoints,
        }))
        .unwrap()
    };
    let ports =
        json!([{ "name": "http", "port": 80, "nodePort": 30080 }, { "name": "bad", "port": 0 }]);
    Objects {
        services: vec![
            service(
                "web",
                json!({ "type": "NodePort", "clusterIP": "10.96.0.1", "ports": ports }),
            ),
            service(
                "db",
                json!({ "clusterIP": "None", "ports": [{ "port": 5432 }] }),
            ),
            service(
                "docs",
                json!({ "type": "ExternalName", "externalName": "docs.example.com" }),
            ),
            service("later", json!({ "type": "ClusterIP" })),
            service(
                "idle",
                json!({ "clusterIP": "10.96.0.9", "ports": [{ "port": 53, "protocol": "UDP" }] }),
            ),
            service(
                "web-2",
                json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] }),
            ),
        ],
        slices: vec![
            slice(
                "web-a",
                "web",
                json!([{ "addresses": ["10.1.0.2"], "nodeName": "node-1" }]),
            ),
            slice(
                "web-b",
                "web",
                json!([{ "addresses": ["10.1.0.1"], "nodeName": "node-2" }]),
            ),
            slice(
                "db-a",
                "db",
                json!([{ "addresses": ["10.1.0.4"], "hostname": "db-1" }, { "addresses": ["10.1.0.3"], "hostname": "db-0" }]),
            ),
        ],
        ..Objects::default()
    }
}

fn run(objects: &Objects) -> DryRun {
    run_on(Backend::Nftables, Output::Text, objects)
}

fn run_on(backend: Backend, output: Output, objects: &Objects) -> DryRun {
    let settings = Settings {
        node_name: "node-1",
        plan: &PlanConfig {
            pod_networks: PodNetworks::Fixed(vec!["10.1.0.0/16".parse().unwrap()]),
            ..plan_config()
        },
        skeleton: &SkeletonConfig {
            detector: PerFamily {
                v4: Detector::Source,
                v6: Detector::None,
            },
            masquerade_bit: 14,
            rejects_unused_ports: true,
        },
        backend,
        table_size: TableSize::DEFAULT,
        output,
        host_addresses: BTreeSet::from(["192.168.0.2".parse().unwrap()]),
        unread: 0,
        only: None,
    };
    dry_run(objects, &settings)
}

#[test]
fn every_service_stands_under_its_name() {
    let text = run(&objects()).text;
    let (head, rest) = text.split_once("\nadd table ip proxyd\n").unwrap();
    expect![[r#"
        # The rules of node node-1, as proxyd would load them. To load them: nft -f FILE
        # 6 Services: 3 with rules, 2 headless or ExternalName, 1 without an address.
        # No Node object is named node-1: NodePorts are at every address of this machine (--hostname-override).
        #
        # Services without rules:
        # default/db: headless; clients ask DNS and connect to an endpoint directly
        #     db.default.svc  10.1.0.3
        #     db.default.svc  10.1.0.4
        #     db-0.db.default.svc  10.1.0.3
        #     db-1.db.default.svc  10.1.0.4
        # default/docs: ExternalName; DNS answers with a CNAME to docs.example.com
        # default/later: has no ClusterIP; the API server allocates one, a file has to say one
    "#]].assert_eq(head);
    let (elements, _) = rest.split_once("\nadd table ip6 proxyd\n").unwrap();
    let (_, elements) = elements.split_once("# This node's addresses, and").unwrap();
    expect![[r#"
         the endpoints that may run here
        add element ip proxyd hairpin {
        	10.1.0.2 . 10.1.0.2,
        	10.1.0.3 . 10.1.0.3,
        	10.1.0.4 . 10.1.0.4
        }
        add element ip proxyd node-port-addresses { 192.168.0.2 }
        add element ip proxyd pod-networks { 10.1.0.0/16 }

        # default/idle, ClusterIP
        #   10.96.0.9:53 udp: refused, no endpoint can serve it (it has no EndpointSlice)
        add element ip proxyd no-endpoints { 10.96.0.9 . udp . 53 : goto send-reject }
        add element ip proxyd cluster-ips { 10.96.0.9 }

        # default/web, NodePort
        #   10.96.0.1:80 tcp: 2 endpoints
        #   IPv4 node port 30080 tcp at 192.168.0.2: 2 endpoints
        add element ip proxyd services { 10.96.0.1 . tcp . 80 : goto cluster-2 }
        add element ip proxyd node-ports { tcp . 30080 : goto node-port-external-2 }
        add element ip proxyd endpoints {
        	10.96.0.1 . tcp . 80 . 0 : 10.1.0.1 . 8080,
        	10.96.0.1 . tcp . 80 . 1 : 10.1.0.2 . 8080
        }
        add element ip proxyd node-port-endpoints {
        	tcp . 30080 . 0 : 10.1.0.1 . 8080,
        	tcp . 30080 . 1 : 10.1.0.2 . 8080
        }
        add element ip proxyd cluster-ips { 10.96.0.1 }

        # default/web-2, ClusterIP
        #   10.96.0.1:80 tcp: not here, default/web has it: neither says that it is older, and its name comes first
    "#]]
    .assert_eq(elements);
}

#[test]
fn the_skeleton_is_as_it_was() {
    let text = run(&Objects::default()).text;
    let (_, ip6) = text.split_once("\nadd table ip6 proxyd\n").unwrap();
    let (ip, _) = text.split_once("\nadd table ip6 proxyd\n").unwrap();
    let (_, ip) = ip.split_once("\nadd table ip proxyd\n").unwrap();
    // It changes with any of the expressions, which are not here.
    let (_, version) = ip.split_once("comment \"proxyd ").unwrap();
    let (version, _) = version.split_once('"').unwrap();
    let ip = &ip.replace(version, "VERSION");
    expect![[r#"
        delete table ip proxyd
        table ip proxyd {
        	comment "proxyd VERSION"

        	# New connections: who balances them over how many endpoints.
        	map services {
        		typeof ip daddr . meta l4proto . th dport : verdict
        		counter
        	}
        	map node-ports {
        		typeof meta l4proto . th dport : verdict
        		counter
        	}
        	# The endpoints, each under an index: from 0 up on every node, from 32768 up on this one.
        	map endpoints {
        		typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport
        	}
        	map node-port-endpoints {
        		typeof meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport
        	}
        	# Services that no endpoint can serve now.
        	map no-endpoints {
        		typeof ip daddr . meta l4proto . th dport : verdict
        		counter
        	}
        	map no-endpoint-node-ports {
        		typeof meta l4proto . th dport : verdict
        		counter
        	}
        	# Session affinity: who remembers the clients of a Service for how long, and whom they were sent to.
        	map affinities {
        		typeof ip daddr . meta l4proto . th dport : verdict
        	}
        	map node-port-affinities {
        		typeof meta l4proto . th dport : verdict
        	}
        	map affinity {
        		typeof ip saddr . ip daddr . meta l4proto . th dport : ip daddr . th dport
        		size 131072
        		flags dynamic,timeout
        	}
        	# All front ends of a Service port remember clients under the address that these say, which is its ClusterIP.
        	map affinity-keys {
        		typeof ip daddr . meta l4proto . th dport : meta l4proto . ip daddr . meta l4proto . th dport
        	}
        	map node-port-affinity-keys {
        		typeof meta l4proto . th dport : meta l4proto . ip daddr . meta l4proto . th dport
        	}
        	# Load-balancer addresses that only some sources may call.
        	set guarded {
        		typeof ip daddr . meta l4proto . th dport
        	}
        	# Who may call those. (Of the rule that asks this, nft 1.0.6 makes what Linux 6.12 refuses; newer ones do not.)
        	set allowed-sources {
        		typeof ip daddr . meta l4proto . th dport . ip saddr
        		flags interval
        	}
        	# The addresses of Services, and the networks that they are allocated from.
        	set cluster-ips {
        		typeof ip daddr
        	}
        	set service-networks {
        		typeof ip daddr
        		flags interval
        	}
        	# Load-balancer and external addresses: what no Service has there is not sent back the way that it came.
        	set outer-addresses {
        		typeof ip daddr
        	}
        	set same-device {
        		typeof meta iif . meta oif
        		size 4096
        		flags dynamic,timeout
        	}
        	# This node's addresses that have NodePorts.
        	set node-port-addresses {
        		typeof ip daddr
        	}
        	# Endpoints that may run here: one that reaches itself through a Service is masqueraded.
        	set hairpin {
        		typeof ip saddr . ip daddr
        	}
        	# Where the cluster's pods are; others are masqueraded on their way to a ClusterIP.
        	set pod-networks {
        		typeof ip saddr
        		flags interval
        	}

        	chain nat-prerouting {
        		type nat hook prerouting priority -100; policy accept;
        		goto balance
        	}
        	chain nat-output {
        		type nat hook output priority -100; policy accept;
        		goto balance
        	}
        	chain balance {
        		ip daddr . meta l4proto . th dport vmap @services
        		ip daddr @node-port-addresses fib daddr type local meta l4proto . th dport vmap @node-ports
        	}
        	chain mark-for-masquerade {
        		meta mark set meta mark or 0x00004000
        	}
        	chain nat-postrouting {
        		type nat hook postrouting priority 100; policy accept;
        		meta mark & 0x00004000 != 0 goto do-masquerade
        		ct status dnat ip saddr . ip daddr @hairpin goto do-masquerade
        	}

        	# The mark goes first: an overlay's outer packet keeps it and would be translated again. Higher ports are those of BPF programs.
        	chain do-masquerade {
        		meta mark set meta mark and 0xffffbfff
        		meta l4proto tcp th sport >= 1024 masquerade to :1024-60999 fully-random
        		meta l4proto udp th sport >= 1024 masquerade to :1024-60999 fully-random
        		meta l4proto sctp th sport >= 1024 masquerade to :1024-60999 fully-random
        		masquerade fully-random
        	}

        	# Who was translated to whom, before anybody translates the source. Chains of type nat see the first packet of a
        	# connection only: a client that gets no answer must not be remembered again with each datagram.
        	chain nat-postrouting-remember {
        		type nat hook postrouting priority 90; policy accept;
        		ct status dnat goto remember
        	}
        	chain nat-input-remember {
        		type nat hook input priority 90; policy accept;
        		ct status dnat goto remember
        	}
        	chain remember {
        		meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst vmap @affinities
        		ct original ip daddr @node-port-addresses meta l4proto tcp meta l4proto . ct original proto-dst vmap @node-port-affinities
        		meta l4proto udp ct original ip daddr . meta l4proto . ct original proto-dst vmap @affinities
        		ct original ip daddr @node-port-addresses meta l4proto udp meta l4proto . ct original proto-dst vmap @node-port-affinities
        		meta l4proto sctp ct original ip daddr . meta l4proto . ct original proto-dst vmap @affinities
        		ct original ip daddr @node-port-addresses meta l4proto sctp meta l4proto . ct original proto-dst vmap @node-port-affinities
        	}

        	# Before any translation: sources that may not call an address.
        	chain filter-prerouting {
        		type filter hook prerouting priority -110; policy accept;
        		ct state new goto guard
        	}
        	chain filter-output-guard {
        		type filter hook output priority -110; policy accept;
        		ct state new goto guard
        	}
        	chain guard {
        		ip daddr . meta l4proto . th dport @guarded ip daddr . meta l4proto . th dport . ip saddr != @allowed-sources drop
        	}

        	# After the translation: what no Service took.
        	chain filter-input {
        		type filter hook input priority -110; policy accept;
        		ct state new goto refuse
        	}
        	chain filter-forward {
        		type filter hook forward priority -110; policy accept;
        		ct state new goto refuse-forwarded
        	}
        	chain filter-output {
        		type filter hook output priority -90; policy accept;
        		ct state new goto refuse
        	}
        	chain refuse {
        		ip daddr . meta l4proto . th dport vmap @no-endpoints
        		ip daddr @node-port-addresses fib daddr type local meta l4proto . th dport vmap @no-endpoint-node-ports
        		ip daddr @cluster-ips goto send-reject
        		ip daddr @service-networks drop
        	}

        	# Ports that no Service has, at addresses of Services that are routed here.
        	chain refuse-forwarded {
        		jump refuse
        		ip daddr @outer-addresses update @same-device { meta iif . meta iif timeout 60s } meta iif . meta oif @same-device goto send-reject
        	}
        	chain send-reject {
        		meta l4proto tcp reject with tcp reset
        		reject
        	}
        }

        # This node's addresses, and the endpoints that may run here
        add element ip proxyd node-port-addresses { 192.168.0.2 }
        add element ip proxyd pod-networks { 10.1.0.0/16 }
    "#]].assert_eq(ip);
    assert_eq!(
        ip6.matches("ip6 daddr").count(),
        ip.matches("ip daddr").count()
    );
}

#[test]
fn the_order_of_input_does_not_change_a_byte() {
    let one = objects();
    let mut other = objects();
    other.services.reverse();
    other.slices.reverse();
    assert_eq!(run(&one).text, run(&other).text);
    let json = |objects| run_on(Backend::Ebpf, Output::Json, objects).text;
    assert_eq!(json(&one), json(&other));
}

#[test]
fn invalid_input_is_noted() {
    let notes = run(&objects()).notes;
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "Service default/web: spec.ports[1].port: 0 is not a port number (1 to 65535); this port is skipped"
        ]
    );
}

#[test]
fn a_front_end_without_endpoints_says_why() {
    let slice = |name: &str, spec: Value| -> discovery::EndpointSlice {
        let mut slice = spec;
        slice["metadata"] = json!({
            "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": name },
        });
        serde_json::from_value(slice).unwrap()
    };
    let names = ["no-slice", "other-port", "other-family", "not-ready"];
    let services = names.iter().enumerate().map(|(i, name)| {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "clusterIP": format!("10.96.0.{}", i + 1), "ports": [{ "name": "http", "port": 80 }] },
        }))
        .unwrap()
    });
    let http = json!([{ "name": "http", "port": 8080 }]);
    let slices = vec![
        slice(
            "other-port",
            json!({ "addressType": "IPv4", "ports": [{ "name": "web", "port": 80 }], "endpoints": [] }),
        ),
        slice(
            "other-family",
            json!({ "addressType": "IPv6", "ports": http, "endpoints": [{ "addresses": ["fd00::1"] }] }),
        ),
        slice(
            "not-ready",
            json!({
                "addressType": "IPv4", "ports": http,
                "endpoints": [{ "addresses": ["10.1.0.1"], "conditions": { "ready": false } }],
            }),
        ),
    ];
    let objects = Objects {
        services: services.collect(),
        slices,
        ..Objects::default()
    };
    let text = run(&objects).text;
    let lines = text.lines().filter(|line| line.contains("refused"));
    expect![[r##"
        #   10.96.0.1:80 tcp: refused, no endpoint can serve it (it has no EndpointSlice)
        #   10.96.0.4:80 tcp: refused, no endpoint can serve it (its only endpoint is not ready)
        #   10.96.0.3:80 tcp: refused, no endpoint can serve it (its EndpointSlices have no IPv4 endpoint)
        #   10.96.0.2:80 tcp: refused, no endpoint can serve it (its EndpointSlices have "web" tcp, not "http" tcp)"##]].assert_eq(&lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_front_end_says_who_gets_which_endpoints() {
    let shop = json!({
        "metadata": { "name": "shop", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.7", "fd00::7"], "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": ["203.0.113.0/24"], "ports": [{ "name": "http", "port": 80 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }, { "ip": "2001:db8::7" }] } },
    });
    let of = |name: &str, family: &str, endpoints: Value| {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "shop" } },
            "addressType": family, "ports": [{ "name": "http", "port": 8080 }], "endpoints": endpoints,
        }))
        .unwrap()
    };
    let here = json!([
        { "addresses": ["10.1.0.1"], "nodeName": "node-1" }, { "addresses": ["10.1.0.2"], "nodeName": "node-2" },
    ]);
    let there = json!([{ "addresses": ["fd00:1::1"], "nodeName": "node-2" }]);
    let objects = Objects {
        services: vec![serde_json::from_value(shop).unwrap()],
        slices: vec![of("shop-4", "IPv4", here), of("shop-6", "IPv6", there)],
        ..Objects::default()
    };
    let text = run(&objects).text;
    let told = text.lines().filter(|line| line.starts_with("#   "));
    expect![[r#"
        #   10.96.0.7:80 tcp: 1 endpoint; a client keeps its own for 10800 s
        #   203.0.113.7:80 tcp: 2 endpoints; 1 endpoint for clients outside; a client keeps its own for 10800 s; only for 203.0.113.0/24
        #   [2001:db8::7]:80 tcp: 1 endpoint; none for clients outside, since none is on this node (policy Local); a client keeps its own for 10800 s; for nobody: the source ranges have no IPv6 one
        #   [fd00::7]:80 tcp: dropped, no endpoint is on this node (policy Local)"#]].assert_eq(&told.collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_maps_of_the_programs_follow_the_rules() {
    let rules = run(&objects()).text;
    let text = run_on(Backend::Ebpf, Output::Text, &objects()).text;
    // Rules balance nothing beside programs.
    assert!(rules.contains("type nat hook") && !text.contains("type nat hook"));
    assert!(rules.contains("ct state") && !text.contains("ct state"));
    let maps: String = text
        .split_inclusive('\n')
        .filter(|line| line.starts_with('#') && !rules.contains(*line))
        .collect();
    expect![[r#"
        # BPF maps, IPv4
        #   127.0.0.1: NodePorts for the node itself
        #   192.168.0.2: NodePorts
        #   10.1.0.0/16: pods
        #   NodePort 30080 tcp: back ends: 2, hashed for clients outside, masqueraded
        #     0 → 10.1.0.1:8080
        #     1 → 10.1.0.2:8080
        #   10.96.0.1:80 tcp: back ends: 2, masqueraded for others than pods
        #     0 → 10.1.0.1:8080
        #     1 → 10.1.0.2:8080
        # BPF maps, IPv6
    "#]]
    .assert_eq(&maps);
}
