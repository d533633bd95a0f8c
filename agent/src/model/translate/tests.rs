//! API objects in, model types and complaints out.

mod odd;

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};

use super::*;
use crate::model::{AffinityTimeout, Parsed};

/// A Service with this spec, named `default/web`.
fn a_service(spec: Value) -> core::Service {
    serde_json::from_value(
        json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": spec }),
    )
    .unwrap()
}

/// A slice `default/web-1` of the Service `web`.
fn a_slice(address_type: &str, ports: Value, endpoints: Value) -> discovery::EndpointSlice {
    let labels = json!({ SERVICE_NAME_LABEL: "web" });
    serde_json::from_value(json!({
        "metadata": { "name": "web-1", "namespace": "default", "labels": labels },
        "addressType": address_type, "ports": ports, "endpoints": endpoints,
    }))
    .unwrap()
}

fn complaints<T>(parsed: &Parsed<T>) -> String {
    parsed
        .complaints
        .iter()
        .map(|complaint| format!("{complaint}\n"))
        .collect()
}

#[test]
fn services_without_rules_are_ignored() {
    let check = |spec: Value| assert_eq!(service(&a_service(spec)).object, None);
    check(json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }));
    check(json!({ "type": "ExternalName", "externalName": "example.com" }));
    check(json!({ "clusterIP": "" }));
    check(json!({}));
    let mut others = a_service(json!({ "clusterIP": "10.96.0.1" }));
    others.metadata.labels = Some([(PROXY_NAME_LABEL.to_owned(), "cilium".to_owned())].into());
    assert_eq!(service(&others).object, None);
}

#[test]
fn a_service_keeps_what_is_good() {
    let check = |spec: Value, served: Expect, complained: Expect| {
        let parsed = service(&a_service(spec));
        let frontends = parsed
            .object
            .as_ref()
            .unwrap()
            .frontends()
            .map(|claimed| format!("{}\n", claimed.frontend));
        served.assert_eq(&frontends.collect::<String>());
        complained.assert_eq(&complaints(&parsed));
    };
    check(
        json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }, { "port": 53, "protocol": "UDP" }] }),
        expect![[r#"
            10.96.0.1:80 tcp
            10.96.0.1:53 udp
        "#]],
        expect![""],
    );
    check(
        json!({
            "type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "FD00:0::1"],
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
        }),
        expect![[r#"
            10.96.0.1:80 tcp
            [fd00::1]:80 tcp
            IPv4 node port 30080 tcp
            IPv6 node port 30080 tcp
        "#]],
        expect![""],
    );
    check(
        json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "10.96.0.2", "ten"],
            "ports": [
                { "name": "a", "port": 0 }, { "name": "b", "port": 70000 }, { "name": "c", "port": -1 },
                { "name": "d", "port": 80, "protocol": "tcp" }, { "name": "e", "port": 80, "nodePort": 65536 },
                { "name": "f", "port": 81 },
            ],
        }),
        expect![[r#"
            10.96.0.1:81 tcp
        "#]],
        expect![[r#"
            spec.clusterIPs[1]: 10.96.0.2 is a second address of one family; it is skipped
            spec.clusterIPs[2]: "ten" is not an IP address; it is skipped
            spec.ports[0].port: 0 is not a port number (1 to 65535); this port is skipped
            spec.ports[1].port: 70000 is not a port number (1 to 65535); this port is skipped
            spec.ports[2].port: -1 is not a port number (1 to 65535); this port is skipped
            spec.ports[3].protocol: "tcp" is not one of TCP, UDP, SCTP; this port is skipped
            spec.ports[4].nodePort: 65536 is not a port number (1 to 65535); this port is skipped
        "#]],
    );
    // Addresses: those of a family without a ClusterIP, doubled and impossible ones are left out.
    let mut object = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }],
        "externalIPs": ["198.51.100.1", "203.0.113.1", "2001:db8::1", "127.0.0.1", "198.051.100.002", "x"],
    });
    check(
        object.clone(),
        expect![[r#"
        10.96.0.1:80 tcp
        198.51.100.1:80 tcp
        203.0.113.1:80 tcp
        198.51.100.2:80 tcp
    "#]],
        expect![[r#"
        spec.externalIPs[2]: the Service has no ClusterIP of the family of 2001:db8::1; it is skipped
        spec.externalIPs[3]: 127.0.0.1 is an unspecified, loopback, link-local or multicast address; it is skipped
        spec.externalIPs[5]: "x" is not an IP address; it is skipped
    "#]],
    );
    object["type"] = json!("ClusterIP");
    object["externalIPs"] = json!(["::ffff:198.51.100.7", "10.96.0.1"]);
    check(
        object,
        expect![[r#"
        10.96.0.1:80 tcp
        198.51.100.7:80 tcp
    "#]],
        expect![[r#""#]],
    );
}

#[test]
fn a_load_balancer_sends_here_what_it_does_not_translate() {
    let ingress = json!([
        { "ip": "203.0.113.1" }, { "ip": "203.0.113.2", "ipMode": "VIP" }, { "ip": "203.0.113.3", "ipMode": "Proxy" },
        { "hostname": "lb.example.com" }, { "ip": "" }, { "ip": "203.0.113.1" }, { "ip": "everywhere" },
    ]);
    let spec =
        json!({ "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] });
    let mut object = a_service(spec);
    let status = json!({ "loadBalancer": { "ingress": ingress } });
    object.status = Some(serde_json::from_value(status).unwrap());
    let parsed = service(&object);
    let ips: Vec<String> = parsed
        .object
        .as_ref()
        .unwrap()
        .load_balancer_ips
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ips, ["203.0.113.1", "203.0.113.2"]);
    expect![[r#"
        status.loadBalancer.ingress[6].ip: "everywhere" is not an IP address; it is skipped
    "#]]
    .assert_eq(&complaints(&parsed));
    object.spec.as_mut().unwrap().type_ = Some("NodePort".to_owned());
    assert!(
        service(&object)
            .object
            .unwrap()
            .load_balancer_ips
            .is_empty()
    );
}

#[test]
fn policies_affinity_and_ranges_are_read() {
    let check = |spec: Value, expected: Expect, complained: Expect| {
        let mut spec = spec;
        spec["clusterIP"] = json!("10.96.0.1");
        let parsed = service(&a_service(spec));
        let service = parsed.object.as_ref().unwrap();
        expected.assert_eq(&format!(
            "internal {:?}, external {:?}, affinity {:?}, ranges {:?}, health {:?}",
            service.internal_policy,
            service.external_policy,
            service.affinity.map(AffinityTimeout::seconds),
            service.source_ranges.as_deref(),
            service.health_check_port,
        ));
        complained.assert_eq(&complaints(&parsed));
    };
    check(
        json!({}),
        expect!["internal Cluster, external Cluster, affinity None, ranges None, health None"],
        expect![[r#""#]],
    );
    check(
        json!({ "type": "LoadBalancer", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP", "healthCheckNodePort": 31000,
            "loadBalancerSourceRanges": [" 10.0.0.7/8 ", "192.168.001.0/024", "10.1.0.0/16", "fd00::/8"] }),
        expect![
            "internal Local, external Local, affinity Some(10800), ranges Some([10.0.0.0/8, 192.168.1.0/24, fd00::/8]), health Some(31000)"
        ],
        expect![[r#""#]],
    );
    let affinity = |seconds: i64| json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } } });
    check(
        affinity(60),
        expect!["internal Cluster, external Cluster, affinity Some(60), ranges None, health None"],
        expect![[r#""#]],
    );
    check(
        affinity(0),
        expect!["internal Cluster, external Cluster, affinity Some(1), ranges None, health None"],
        expect![[r#"
        spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not a number of seconds from 1 to 86400; 1 is used
    "#]],
    );
    check(
        affinity(86_401),
        expect![
            "internal Cluster, external Cluster, affinity Some(86400), ranges None, health None"
        ],
        expect![[r#"
        spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not a number of seconds from 1 to 86400; 86400 is used
    "#]],
    );
    // Ranges that cannot be read let nobody in; those of other types do not count.
    check(
        json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["nowhere", "+1.0.0.0/8", "1.2.3/8"] }),
        expect!["internal Cluster, external Cluster, affinity None, ranges Some([]), health None"],
        expect![[r#"
            spec.loadBalancerSourceRanges[0]: "nowhere" is not a network such as 192.0.2.0/24 or 2001:db8::/32; it is skipped
            spec.loadBalancerSourceRanges[1]: "+1.0.0.0/8" is not a network such as 192.0.2.0/24 or 2001:db8::/32; it is skipped
            spec.loadBalancerSourceRanges[2]: "1.2.3/8" is not a network such as 192.0.2.0/24 or 2001:db8::/32; it is skipped
        "#]],
    );
    check(
        json!({ "type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"], "healthCheckNodePort": 31000 }),
        expect!["internal Cluster, external Cluster, affinity None, ranges None, health None"],
        expect![[r#""#]],
    );
    check(
        json!({ "internalTrafficPolicy": "local", "externalTrafficPolicy": "", "sessionAffinity": "Cookie" }),
        expect!["internal Cluster, external Cluster, affinity None, ranges None, health None"],
        expect![[r#"
            spec.internalTrafficPolicy: "local" is not one of Cluster, Local; it is served as Cluster
            spec.sessionAffinity: "Cookie" is not one of None, ClientIP; there is no affinity
        "#]],
    );
}

#[test]
fn a_cluster_ip_may_stand_in_the_list_alone() {
    let parsed = service(&a_service(
        json!({ "clusterIPs": ["10.96.0.1"], "ports": [{ "port": 80 }] }),
    ));
    assert_eq!(parsed.object.unwrap().cluster_ips.len(), 1);
}

#[test]
fn what_is_doubled_or_unknown_is_told() {
    let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 80 }, { "name": "c", "port": 80, "protocol": "UDP" }]);
    let parsed = service(&a_service(
        json!({ "type": "Nodeport", "clusterIP": "10.96.0.1", "ports": ports }),
    ));
    expect![[r#"
        spec.ports: "b" is a second port 80 tcp; it is skipped
        spec.type: "Nodeport" is not a type of Service; it is served as ClusterIP
    "#]]
    .assert_eq(&complaints(&parsed));
    assert_eq!(parsed.object.unwrap().ports.len(), 2);
}

#[test]
fn a_slice_keeps_what_is_good() {
    let check = |object: discovery::EndpointSlice, expected: Expect, complained: Expect| {
        let parsed = slice(&object, "node-1");
        expected.assert_debug_eq(&parsed.object.as_ref().map(|slice| &slice.endpoints));
        complained.assert_eq(&complaints(&parsed));
    };
    check(
        a_slice(
            "IPv4",
            json!([{ "port": 80 }]),
            json!([
                { "addresses": ["10.1.0.1", "10.1.0.2"], "nodeName": "node-1" },
                { "addresses": ["10.1.0.3"], "conditions": { "ready": false, "terminating": true } },
                { "addresses": ["fd00::1"] }, { "addresses": [] }, { "addresses": ["pod"] },
                { "addresses": ["127.0.0.1"] }, { "addresses": ["169.254.1.1"] }, { "addresses": ["0.0.0.0"] },
            ]),
        ),
        expect![[r#"
            Some(
                [
                    Endpoint {
                        address: 10.1.0.1,
                        place: Here,
                        ready: true,
                        serving: true,
                        terminating: false,
                        hints: None,
                    },
                    Endpoint {
                        address: 10.1.0.3,
                        place: Unknown,
                        ready: false,
                        serving: true,
                        terminating: true,
                        hints: None,
                    },
                ],
            )
        "#]],
        expect![[r#"
            endpoints[2].addresses[0]: fd00::1 is not an IPv4 address as addressType says; the endpoint is skipped
            endpoints[3].addresses[0]: "" is not an IP address; the endpoint is skipped
            endpoints[4].addresses[0]: "pod" is not an IP address; the endpoint is skipped
            endpoints[5].addresses[0]: 127.0.0.1 is an unspecified, loopback, link-local or multicast address; the endpoint is skipped
            endpoints[6].addresses[0]: 169.254.1.1 is an unspecified, loopback, link-local or multicast address; the endpoint is skipped
            endpoints[7].addresses[0]: 0.0.0.0 is an unspecified, loopback, link-local or multicast address; the endpoint is skipped
        "#]],
    );
    check(
        a_slice("IPv5", json!([]), json!([])),
        expect![[r#"
            None
        "#]],
        expect![[r#"
            addressType: "IPv5" is not one of IPv4, IPv6, FQDN; the slice is skipped
        "#]],
    );
}

#[test]
fn slices_that_are_not_for_the_data_plane_are_ignored() {
    let ignored = |object: &discovery::EndpointSlice| {
        let parsed = slice(object, "node-1");
        assert!(
            parsed.object.is_none() && parsed.complaints.is_empty(),
            "{parsed:?}"
        );
    };
    ignored(&a_slice(
        "FQDN",
        json!([]),
        json!([{ "addresses": ["example.com"] }]),
    ));
    let mut headless = a_slice("IPv4", json!([]), json!([]));
    headless
        .metadata
        .labels
        .as_mut()
        .unwrap()
        .insert(HEADLESS_LABEL.to_owned(), String::new());
    ignored(&headless);
    let mut orphan = a_slice("IPv4", json!([]), json!([]));
    orphan.metadata.labels = None;
    ignored(&orphan);
}

#[test]
fn a_slice_port_without_a_number_is_left_out() {
    let object = a_slice(
        "IPv4",
        json!([{ "name": "any" }, { "name": "zero", "port": 0 }, { "port": 80 }]),
        json!([]),
    );
    let parsed = slice(&object, "node-1");
    assert!(parsed.complaints.is_empty());
    assert_eq!(parsed.object.unwrap().ports.len(), 1);
}

#[test]
fn endpoints_stand_in_for_slices() {
    let object: core::Endpoints = serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default" },
        "subsets": [
            { "addresses": [{ "ip": "10.1.0.1", "nodeName": "node-2" }], "notReadyAddresses": [{ "ip": "10.1.0.2" }],
              "ports": [{ "name": "http", "port": 8080 }] },
            { "addresses": [{ "ip": "nowhere" }, { "ip": "127.0.0.1" }], "ports": [{ "port": 99999 }] },
        ],
    }))
    .unwrap();
    let [first, second] = <[_; 2]>::try_from(endpoints(&object, "node-1")).unwrap();
    let slice = first.object.unwrap();
    assert_eq!(slice.service, ObjectName::new("default", "web"));
    let ready: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.address.to_string(), e.ready))
        .collect();
    assert_eq!(
        ready,
        [
            ("10.1.0.1".to_owned(), true),
            ("10.1.0.2".to_owned(), false)
        ]
    );
    expect![[r#"
        subsets[1].ports[0].port: 99999 is not a port number (1 to 65535); this port is skipped
        subsets[1].addresses[0].ip: "nowhere" is not an IP address; the endpoint is skipped
        subsets[1].addresses[1].ip: 127.0.0.1 is an unspecified, loopback, link-local or multicast address; the endpoint is skipped
    "#]]
    .assert_eq(&complaints(&second));
}

#[test]
fn an_endpoint_keeps_its_hints() {
    let hints = |hints: Value| {
        let endpoints = json!([{ "addresses": ["10.1.0.1"], "hints": hints }]);
        let parsed = slice(&a_slice("IPv4", json!([]), endpoints), "node-1");
        let slice = parsed.object.unwrap();
        let hints = slice.endpoints[0].hints.clone();
        hints.map(|hints| {
            (
                hints.this_node,
                hints.zones.iter().map(ToString::to_string).collect(),
            )
        })
    };
    let zones = |zones: &[&str]| -> Vec<String> { zones.iter().map(ToString::to_string).collect() };
    assert_eq!(hints(json!(null)), None);
    assert_eq!(hints(json!({ "forZones": [], "forNodes": [] })), None);
    assert_eq!(
        hints(json!({ "forZones": [{ "name": "a" }, { "name": "b" }] })),
        Some((None, zones(&["a", "b"])))
    );
    assert_eq!(
        hints(json!({ "forNodes": [{ "name": "node-2" }, { "name": "node-1" }] })),
        Some((Some(true), zones(&[])))
    );
    assert_eq!(
        hints(json!({ "forNodes": [{ "name": "node-2" }] })),
        Some((Some(false), zones(&[])))
    );
}

#[test]
fn a_node_tells_its_zone_its_pods_and_whether_it_leaves() {
    let of = |object: Value| node(&serde_json::from_value(object).unwrap());
    let plain = of(
        json!({ "metadata": { "name": "node-1", "labels": { "topology.kubernetes.io/zone": "a" } },
        "spec": { "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"] } }),
    );
    assert_eq!(plain.zone.as_deref(), Some("a"));
    assert_eq!(plain.pod_networks.len(), 2);
    assert!(!plain.leaving);
    let single =
        of(json!({ "metadata": { "name": "node-1" }, "spec": { "podCIDR": "10.1.0.0/24" } }));
    assert_eq!((single.pod_networks.len(), single.zone), (1, None));
    let taint =
        json!([{ "key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule" }]);
    assert!(of(json!({ "metadata": { "name": "node-1" }, "spec": { "taints": taint } })).leaving);
    assert!(
        of(
            json!({ "metadata": { "name": "node-1", "deletionTimestamp": "2026-01-01T00:00:00Z" } })
        )
        .leaving
    );
}

#[test]
fn a_service_cidr_keeps_what_is_good() {
    let object = json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.96.0.0/16", "fd00::/112", "x"] } });
    let parsed = service_cidr(&serde_json::from_value(object).unwrap());
    assert_eq!(parsed.object.as_ref().unwrap().networks.len(), 2);
    assert_eq!(parsed.complaints.len(), 1);
}

#[test]
fn a_node_has_its_internal_addresses_first() {
    let object: core::Node = serde_json::from_value(json!({
        "metadata": { "name": "node-1" },
        "status": { "addresses": [
            { "type": "Hostname", "address": "node-1" }, { "type": "ExternalIP", "address": "203.0.113.9" },
            { "type": "InternalIP", "address": "192.168.0.2" }, { "type": "InternalIP", "address": "fd00::2" },
        ] },
    }))
    .unwrap();
    let addresses: Vec<String> = node(&object)
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(addresses, ["192.168.0.2", "fd00::2", "203.0.113.9"]);
}
