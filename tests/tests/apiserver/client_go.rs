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

/// Sends a request that accepts this; returns the status code, the content type and the answer.
async fn ask(
    tier: &Tier,
    accept: &str,
    (method, path, format): (&str, &str, &str),
    body: Vec<u8>,
) -> (u16, String, Value) {
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
    let bytes = bytes.unwrap();
    let answer = serde_json::from_slice(&bytes);
    (
        parts.status.as_u16(),
        content_type.to_owned(),
        answer.unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))),
    )
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.2" }] },
    })
}

#[tokio::test]
async fn client_that_prefers_protobuf_is_answered_in_json() {
    let tier = Tier::ours().await;
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
async fn client_that_reads_no_json_is_told_so() {
    let tier = Tier::ours().await;
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
    let tier = Tier::ours().await;
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
    let (code, content_type, answer) = ask(&tier, ACCEPTED[0], ("POST", path, format), body).await;
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
    let (code, _, answer) = ask(&tier, ACCEPTED[0], patch, series.into_bytes()).await;
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
