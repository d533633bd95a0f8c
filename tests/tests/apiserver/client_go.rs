//! What clients of Go ask for, kube-proxy among them: its requests, header for header.

use axum::http::{Request, header};
use kube::client::Body;
use proxyd_tests::apiserver::{ApiServer, Options, Resource};
use serde_json::{Value, json};

use crate::tier::{Tier, in_time};

/// What client-go accepts when it is configured for protobuf, in newer and in older releases.
const ACCEPTED: [&str; 2] = [
    "application/vnd.kubernetes.protobuf, */*",
    "application/vnd.kubernetes.protobuf,application/json",
];

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Sends a request that accepts this; returns the status code, the content type and the answer, as JSON or as text.
async fn ask(
    tier: &Tier,
    accept: &str,
    request: (&str, &str, &str),
    body: Vec<u8>,
) -> (u16, String, Value) {
    let (code, format, bytes) = ask_bytes(tier, accept, request, body).await;
    let answer = serde_json::from_slice(&bytes);
    let answer = answer.unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    (code, format, answer)
}

/// As [`ask`], but the answer as it came.
async fn ask_bytes(
    tier: &Tier,
    accept: &str,
    (method, path, format): (&str, &str, &str),
    body: Vec<u8>,
) -> (u16, String, Vec<u8>) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, accept)
        .header(header::CONTENT_TYPE, format);
    let request = request.body(Body::from(body)).unwrap();
    let (parts, body) = in_time(tier.client.send(request))
        .await
        .unwrap()
        .into_parts();
    let bytes = in_time(axum::body::to_bytes(axum::body::Body::new(body), 1 << 20)).await;
    let content_type = parts.headers[header::CONTENT_TYPE].to_str().unwrap();
    (
        parts.status.as_u16(),
        content_type.to_owned(),
        bytes.unwrap().into(),
    )
}

/// A server that has no protobuf.
async fn of_json_alone() -> Tier {
    Tier::with(Options {
        protobuf: false,
        ..Options::default()
    })
    .await
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.2" }] },
    })
}

#[tokio::test]
async fn client_that_prefers_protobuf_is_answered_in_json_where_there_is_no_other() {
    let tier = of_json_alone().await;
    tier.server().create(&node());
    for accept in ACCEPTED {
        let get = ("GET", "/api/v1/nodes/node-1", "");
        let (code, format, answer) = ask(&tier, accept, get, Vec::new()).await;
        assert_eq!((code, &*format), (200, "application/json"), "{accept}");
        assert_eq!(answer["status"], node()["status"]);
        let list = ("GET", "/api/v1/nodes?limit=500&resourceVersion=0", "");
        let (code, format, answer) = ask(&tier, accept, list, Vec::new()).await;
        assert_eq!((code, &*format), (200, "application/json"), "{accept}");
        assert_eq!(answer["kind"], "NodeList");
        let missing = ("GET", "/api/v1/nodes/node-2", "");
        let (code, format, answer) = ask(&tier, accept, missing, Vec::new()).await;
        assert_eq!((code, &*format), (404, "application/json"), "{accept}");
        assert_eq!(answer["kind"], "Status");
    }
}

#[tokio::test]
async fn client_that_prefers_protobuf_gets_it() {
    let tier = Tier::ours().await;
    tier.server().create(&node());
    let magic = |answer: &Value| {
        answer
            .as_str()
            .is_some_and(|text| text.starts_with("k8s\0"))
    };
    for accept in ACCEPTED {
        for (path, expected) in [
            ("/api/v1/nodes/node-1", 200),
            ("/api/v1/nodes?limit=500&resourceVersion=0", 200),
            ("/api/v1/nodes/node-2", 404),
        ] {
            let (code, format, answer) = ask(&tier, accept, ("GET", path, ""), Vec::new()).await;
            assert_eq!((code, &*format), (expected, PROTOBUF), "{path}");
            assert!(magic(&answer), "{path}: {answer}");
        }
    }
    // Who prefers JSON gets that.
    let accept = format!("application/json,{PROTOBUF}");
    let get = ("GET", "/api/v1/nodes/node-1", "");
    let (code, format, answer) = ask(&tier, &accept, get, Vec::new()).await;
    assert_eq!((code, &*format), (200, "application/json"));
    assert_eq!(answer["status"], node()["status"]);
}

/// What the server writes in protobuf, it reads: nothing of an object is lost on the way.
#[tokio::test]
async fn object_goes_through_protobuf_and_back() {
    let tier = Tier::ours().await;
    let metadata = json!({
        "name": "web", "namespace": "default", "labels": { "app": "web", "tier": "" },
        "annotations": { "note": "ä\u{1f600}" },
        "managedFields": [{ "manager": "kubectl", "operation": "Update", "apiVersion": "v1",
            "time": "2026-05-01T12:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": {} } }],
        "ownerReferences": [{ "apiVersion": "v1", "kind": "Service", "name": "web", "uid": "1", "controller": true }],
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ports": [
                { "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080 },
                { "name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns", "appProtocol": "dns" },
            ],
            "selector": { "app": "web" }, "sessionAffinity": "ClientIP", "publishNotReadyAddresses": true,
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "internalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalIPs": ["198.51.100.1"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "allocateLoadBalancerNodePorts": false,
        },
        "status": { "loadBalancer": { "ingress": [
            { "ip": "203.0.113.1", "ipMode": "Proxy", "ports": [{ "port": 80, "protocol": "TCP" }] },
            { "hostname": "lb.example.com" },
        ] } },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "ports": [{ "name": "", "protocol": "TCP", "port": 8080 }, {}],
        "endpoints": [
            { "addresses": ["10.1.0.1"], "nodeName": "node-1", "zone": "a", "hostname": "web-0",
              "conditions": { "ready": false, "serving": true, "terminating": true },
              "targetRef": { "kind": "Pod", "namespace": "default", "name": "web-0" },
              "hints": { "forZones": [{ "name": "a" }], "forNodes": [{ "name": "node-1" }] } },
            { "addresses": ["10.1.0.2"] },
        ],
    });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "spec": { "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "unschedulable": true,
            "taints": [{ "key": "k", "effect": "NoSchedule" }] },
        "status": { "capacity": { "cpu": "8" }, "addresses": [{ "type": "InternalIP", "address": "192.168.0.2" }],
            "images": [{ "names": ["a", "b"], "sizeBytes": 12_345_678_901_u64 }] },
    });
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "first" },
        "spec": { "cidrs": ["10.96.0.0/16", "fd00::/112"] },
    });
    for (collection, object) in [
        ("/api/v1/namespaces/default/services", service),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            slice,
        ),
        ("/api/v1/nodes", node),
        ("/apis/networking.k8s.io/v1/servicecidrs", cidr),
    ] {
        tier.server().create(&object);
        let name = object["metadata"]["name"].as_str().unwrap();
        let path = format!("{collection}/{name}");
        let (_, format, encoded) = ask_bytes(&tier, PROTOBUF, ("GET", &path, ""), Vec::new()).await;
        assert_eq!(format, PROTOBUF);
        let json = "application/json";
        let (_, _, before) = ask(&tier, json, ("GET", &path, ""), Vec::new()).await;
        let (code, _, after) = ask(&tier, json, ("PUT", &path, PROTOBUF), encoded).await;
        assert_eq!(code, 200, "{after}");
        assert_eq!(before, after);
    }
}

#[tokio::test]
async fn client_that_reads_no_json_is_told_so() {
    let tier = of_json_alone().await;
    for accept in [
        "application/vnd.kubernetes.protobuf",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    ] {
        let list = ("GET", "/api/v1/services", "");
        let (code, format, status) = ask(&tier, accept, list, Vec::new()).await;
        assert_eq!((code, &*format), (406, "application/json"), "{accept}");
        assert_eq!(status["reason"], "NotAcceptable");
    }
}

#[tokio::test]
async fn metadata_alone_is_told_to_who_asks_for_it() {
    let tier = Tier::ours().await;
    tier.create("web", "web").await;
    let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = ("GET", "/api/v1/namespaces/test/services", "");
    let (code, format, answer) = ask(&tier, accept, list, Vec::new()).await;
    assert_eq!((code, &*format), (200, "application/json"));
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    let item = &answer["items"][0];
    assert_eq!(item["kind"], "PartialObjectMetadata");
    assert_eq!(item["metadata"]["name"], "web");
    assert!(item.get("spec").is_none());
}

/// The streaming list of a reflector, with kube-proxy's selector.
#[tokio::test]
async fn reflector_streams_the_list_in_json() {
    let tier = of_json_alone().await;
    let mut headless = crate::tier::service("headless", "web");
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    headless["metadata"]["namespace"] = json!("test");
    tier.server().create(&headless);
    tier.create("web", "web").await;
    let path = "/api/v1/services?allowWatchBookmarks=true\
        &labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name\
        &resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeout=1s&timeoutSeconds=1&watch=true";
    for accept in ACCEPTED {
        let (code, format, text) = ask(&tier, accept, ("GET", path, ""), Vec::new()).await;
        assert_eq!((code, &*format), (200, "application/json"), "{accept}");
        let lines = text.as_str().unwrap().lines();
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [added, end, timeout] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(added["type"], "ADDED");
        assert_eq!(added["object"]["metadata"]["name"], "web");
        let annotations = &end["object"]["metadata"]["annotations"];
        assert_eq!(end["type"], "BOOKMARK");
        assert_eq!(annotations["k8s.io/initial-events-end"], "true");
        assert_eq!(timeout["type"], "BOOKMARK");
        assert_eq!(timeout["object"]["metadata"].get("annotations"), None);
    }
}

/// A field of a message: a text, or another message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 0x80, "one byte is enough for the length");
    [&[number << 3 | 2, length], value].concat()
}

#[tokio::test]
async fn event_in_protobuf_is_kept_and_may_become_a_series() {
    let tier = Tier::ours().await;
    let kind = [field(1, b"events.k8s.io/v1"), field(2, b"Event")].concat();
    let metadata = [field(1, b"node-1.1"), field(3, b"default")].concat();
    // seconds and nanoseconds, which are numbers.
    let time = [0x08, 0x80, 0x01, 0x10, 0x07];
    let regarding = [field(1, b"Node"), field(3, b"node-1")].concat();
    let event = [
        field(1, &metadata),
        field(2, &time),
        field(4, b"kube-proxy"),
        field(7, b"Starting"),
        field(8, &regarding),
        field(10, b""),
        field(11, b"Normal"),
    ];
    let raw = event.concat();
    // A raw object may be longer than 127 bytes.
    let length = [
        2 << 3 | 2,
        u8::try_from(raw.len() & 0x7f).unwrap() | 0x80,
        u8::try_from(raw.len() >> 7).unwrap(),
    ];
    let body = [b"k8s\0".as_slice(), &field(1, &kind), &length, &raw].concat();
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let format = "application/vnd.kubernetes.protobuf";
    let accept = "application/json";
    let (code, content_type, answer) = ask(&tier, accept, ("POST", path, format), body).await;
    assert_eq!((code, &*content_type), (201, "application/json"));
    assert_eq!(answer["metadata"]["name"], "node-1.1");
    let [event] = &tier.server().objects(Resource::Events)[..] else {
        panic!("one event")
    };
    assert_eq!(event["reason"], "Starting");
    assert_eq!(event["reportingController"], "kube-proxy");
    assert_eq!(
        event["regarding"],
        json!({ "kind": "Node", "name": "node-1" })
    );
    let series = json!({ "series": { "count": 2 } }).to_string();
    let patch = (
        "PATCH",
        &*format!("{path}/node-1.1"),
        "application/strategic-merge-patch+json",
    );
    let (code, _, answer) = ask(&tier, accept, patch, series.into_bytes()).await;
    assert_eq!((code, &answer["series"]["count"]), (200, &json!(2)));
}

#[tokio::test]
async fn services_without_clusterip_get_one_where_the_server_has_some() {
    let options = Options {
        service_cidr: Some("10.96.0.0/30".parse().unwrap()),
        ..Options::default()
    };
    let tier = Tier::with(options).await;
    let create = async |name: &str, spec: Value| {
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        tier.call("POST", &tier.services(""), Some(object)).await
    };
    for (name, expected) in [("a", "10.96.0.1"), ("b", "10.96.0.2")] {
        let (code, service) = create(name, json!({})).await;
        assert_eq!(
            (code, &service["spec"]["clusterIP"]),
            (201, &expected.into())
        );
        assert_eq!(service["spec"]["clusterIPs"], json!([expected]));
    }
    assert_eq!(create("c", json!({})).await.0, 500, "none is left");
    let (code, service) = create("d", json!({ "clusterIP": "None" })).await;
    assert_eq!((code, &service["spec"]["clusterIP"]), (201, &"None".into()));
    let server: &ApiServer = tier.server();
    assert_eq!(server.objects(Resource::Services).len(), 3);
}
