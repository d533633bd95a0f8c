//! Faults on demand: each is what it says, and ends when it is told to.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use proxyd_tests::apiserver::{ApiServer, Cut, Options, Refusal, Resource, Verb};
use proxyd_tests::envtest::client;
use serde_json::json;

use crate::tier::{Tier, change, in_time, names, service, text, version};

#[tokio::test]
async fn refusals_hit_as_many_requests_as_asked_for() {
    let tier = Tier::ours().await;
    let refusal = Refusal::with(429)
        .times(2)
        .on(Resource::Services)
        .verb(Verb::List);
    tier.server()
        .refuse(refusal.retry_after(Duration::from_secs(0)));
    tier.create("a", "web").await;
    for _ in 0..2 {
        let (code, status) = tier.call("GET", &tier.services(""), None).await;
        assert_eq!((code, &status["reason"]), (429, &"TooManyRequests".into()));
    }
    assert_eq!(tier.names("").await, ["a"]);
}

#[tokio::test]
async fn refusals_have_the_reasons_of_kubernetes() {
    let tier = Tier::ours().await;
    for (code, reason) in [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (410, "Expired"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ] {
        tier.server().refuse(Refusal::with(code));
        let (answered, status) = tier.call("GET", &tier.services("?watch=true"), None).await;
        assert_eq!(
            (answered, &status["reason"], &status["code"]),
            (code, &reason.into(), &code.into())
        );
    }
}

#[tokio::test]
async fn cut_watches_end_as_asked_for() {
    let tier = Tier::ours().await;
    let mut clean = tier.watch("").await;
    tier.server().cut_watches(Cut::Clean);
    assert_eq!(clean.try_next().await.unwrap(), None);

    let mut broken = tier.watch("").await;
    tier.server().cut_watches(Cut::Broken);
    assert!(broken.try_next().await.is_err());

    let mut half = tier.watch("").await;
    tier.server().cut_watches(Cut::HalfLine);
    let line = half.try_next().await;
    assert!(
        line.is_err()
            || line
                .unwrap()
                .is_some_and(|line| text(&line).starts_with("{\"type\""))
    );
    assert_eq!(tier.server().watches(), 0);
}

#[tokio::test]
async fn hung_watch_says_nothing_until_it_hangs_no_more() {
    let tier = Tier::ours().await;
    let mut hung = tier.watch("").await;
    tier.server().hang_watches();
    tier.create("a", "web").await;
    tier.create("b", "web").await;
    // Other requests are answered meanwhile.
    assert_eq!(tier.names("").await, ["a", "b"]);
    let silent = tokio::time::timeout(Duration::from_millis(50), hung.next()).await;
    assert!(silent.is_err(), "{silent:?}");
    tier.server().clear_faults();
    assert_eq!(hung.change().await, change("ADDED", "a"));
    assert_eq!(hung.change().await, change("ADDED", "b"));
}

#[tokio::test]
async fn stopped_server_refuses_connections_and_comes_back_with_its_objects() {
    let tier = Tier::ours().await;
    tier.create("a", "web").await;
    let mut watch = tier.watch("").await;
    assert_eq!(watch.change().await, change("ADDED", "a"));
    let server = tier.server();
    server.stop();
    assert!(TcpStream::connect(server.address()).is_err());
    assert!(watch.try_next().await.is_err());
    server.resume();
    assert_eq!(tier.names("").await, ["a"]);
}

#[tokio::test]
async fn restored_server_counts_versions_from_the_start() {
    let tier = Tier::ours().await;
    let first = version(&tier.create("a", "web").await);
    for app in ["b", "c", "d"] {
        tier.label("a", app).await;
    }
    let mut watch = tier.watch("&resourceVersion=4").await;
    assert_eq!(watch.change().await, change("MODIFIED", "a"));
    tier.server().reset_resource_versions();
    assert!(watch.try_next().await.is_err());
    assert_eq!(version(&tier.get(&tier.services("/a")).await), first);
    // A client that remembers a version from before is not told what it takes for old.
    let mut watch = tier.watch("&resourceVersion=4").await;
    for app in ["e", "f"] {
        tier.label("a", app).await;
    }
    let told = tier.label("a", "g").await;
    assert_eq!(version(&watch.next().await["object"]), version(&told));
}

#[tokio::test]
async fn pages_of_a_compacted_list_expire_with_a_token_to_go_on() {
    let tier = Tier::ours().await;
    for name in ["a", "b", "c"] {
        tier.create(name, "web").await;
    }
    let token = text(&tier.get(&tier.services("?limit=1")).await["metadata"]["continue"]);
    tier.delete("b").await;
    tier.server().compact();
    let (code, status) = tier
        .call("GET", &tier.services(&format!("?continue={token}")), None)
        .await;
    assert_eq!((code, &status["reason"]), (410, &"Expired".into()));
    let token = text(&status["metadata"]["continue"]);
    assert_eq!(
        names(
            &tier
                .get(&tier.services(&format!("?continue={token}")))
                .await
        ),
        ["c"]
    );
}

#[tokio::test]
async fn history_forgets_its_first_writes() {
    let tier = Tier::with(Options {
        history: 2,
        ..Options::default()
    })
    .await;
    let first = version(&tier.create("a", "web").await);
    tier.label("a", "b").await;
    tier.label("a", "c").await;
    let mut watch = tier.watch(&format!("&resourceVersion={first}")).await;
    assert_eq!(watch.change().await, change("MODIFIED", "a"));
    tier.label("a", "d").await;
    let mut watch = tier.watch(&format!("&resourceVersion={first}")).await;
    assert_eq!(watch.next().await["object"]["code"], 410);
}

#[tokio::test]
async fn responses_wait_while_they_are_delayed() {
    let tier = Tier::ours().await;
    let delay = Duration::from_millis(50);
    tier.server().delay_responses(delay);
    let start = Instant::now();
    tier.names("").await;
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn server_listens_on_a_socket_it_is_given() {
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = ApiServer::serve_on(listener, Options::default());
    assert_eq!(server.url(), format!("http://{address}"));
    let client = client(&server.kubeconfig()).await;
    assert_eq!(
        in_time(client.apiserver_version()).await.unwrap().major,
        "1"
    );
}

#[tokio::test]
async fn writes_of_the_test_itself_return_their_versions() {
    let tier = Tier::ours().await;
    let server = tier.server();
    let created = server.create(&service("a", "web"));
    let updated = server.update(&service("a", "db"));
    let deleted = server.delete(Resource::Services, "default", "a");
    assert_eq!([created + 1, created + 2], [updated, deleted]);
    assert_eq!(server.resource_version(), deleted);
    let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": "s" } });
    server.create(&slice);
    let slices = tier.get("/apis/discovery.k8s.io/v1/endpointslices").await;
    assert_eq!(names(&slices), ["s"]);
}
