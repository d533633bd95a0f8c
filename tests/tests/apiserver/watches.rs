//! Watches: where they begin, what they tell, how they end.

use std::time::Duration;

use proxyd_tests::apiserver::Options;

use crate::tier::{Tier, change, text, version};

pub(crate) async fn watch_after_a_list_tells_every_change(tier: Tier) {
    tier.create("old", "web").await;
    let start = version(&tier.get(&tier.services("")).await);
    // What happens before the watch begins is in the history, what happens after is told live.
    tier.create("a", "web").await;
    let mut watch = tier.watch(&format!("&resourceVersion={start}")).await;
    tier.label("a", "db").await;
    tier.delete("a").await;
    let mut last = start.parse::<u64>().unwrap();
    for kind in ["ADDED", "MODIFIED", "DELETED"] {
        let event = watch.next().await;
        assert_eq!(
            (&event["type"], &event["object"]["metadata"]["name"]),
            (&kind.into(), &"a".into())
        );
        let version = version(&event["object"]).parse().unwrap();
        assert!(version > last, "{kind}: {version} after {last}");
        last = version;
    }
}

pub(crate) async fn watch_without_version_begins_with_what_there_is(tier: Tier) {
    tier.create("a", "web").await;
    tier.create("b", "web").await;
    for query in ["", "&resourceVersion=0"] {
        let mut watch = tier.watch(query).await;
        assert_eq!(watch.change().await, change("ADDED", "a"));
        assert_eq!(watch.change().await, change("ADDED", "b"));
    }
}

pub(crate) async fn streaming_list_ends_with_a_bookmark(tier: Tier) {
    let query =
        "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    tier.create("a", "web").await;
    let last = tier.create("b", "web").await;
    let mut watch = tier.watch(query).await;
    assert_eq!(watch.change().await, change("ADDED", "a"));
    assert_eq!(watch.change().await, change("ADDED", "b"));
    let bookmark = watch.next().await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let number = |version: String| version.parse::<u64>().unwrap();
    assert!(number(version(&bookmark["object"])) >= number(version(&last)));
    tier.create("c", "web").await;
    assert_eq!(watch.change().await, change("ADDED", "c"));
}

pub(crate) async fn contradicting_watch_options_are_invalid(tier: Tier) {
    for (query, rule) in [
        (
            "&sendInitialEvents=true",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "&resourceVersion=1&resourceVersionMatch=NotOlderThan",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
    ] {
        let path = tier.services(&format!("?watch=true{query}"));
        let (code, status) = tier.call("GET", &path, None).await;
        assert_eq!(
            (code, &status["reason"]),
            (422, &"Invalid".into()),
            "{query}: {status}"
        );
        assert!(text(&status["message"]).contains(rule), "{query}: {status}");
    }
}

pub(crate) async fn object_enters_and_leaves_a_selected_watch(tier: Tier) {
    let created = tier.create("a", "db").await;
    let query = format!(
        "&labelSelector=app=web&resourceVersion={}",
        version(&created)
    );
    let mut watch = tier.watch(&query).await;
    tier.label("a", "web").await;
    assert_eq!(watch.change().await, change("ADDED", "a"));
    let left = tier.label("a", "db").await;
    let event = watch.next().await;
    assert_eq!(event["type"], "DELETED");
    assert_eq!(
        version(&event["object"]),
        version(&left),
        "with the version that took it away"
    );
    assert_eq!(
        event["object"]["metadata"]["labels"]["app"], "web",
        "as the client knew it"
    );
    tier.delete("a").await;
    tier.create("b", "web").await;
    assert_eq!(
        watch.change().await,
        change("ADDED", "b"),
        "what it did not match, it is not told"
    );
}

pub(crate) async fn watch_by_name_is_told_of_one_object(tier: Tier) {
    let mut watch = tier.watch("&fieldSelector=metadata.name=b").await;
    tier.create("a", "web").await;
    tier.create("b", "web").await;
    assert_eq!(watch.change().await, change("ADDED", "b"));
}

pub(crate) async fn watch_ends_after_its_timeout(tier: Tier) {
    let mut watch = tier.watch("&timeoutSeconds=1").await;
    assert_eq!(watch.try_next().await.unwrap(), None);
}

#[tokio::test]
async fn bookmark_ends_a_watch_that_allows_bookmarks() {
    let tier = Tier::ours().await;
    let mut watch = tier
        .watch("&timeoutSeconds=1&allowWatchBookmarks=true")
        .await;
    let bookmark = watch.next().await;
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["kind"]),
        (&"BOOKMARK".into(), &"Service".into())
    );
    assert_eq!(watch.try_next().await.unwrap(), None);
}

#[tokio::test]
async fn bookmarks_tell_of_versions_that_other_kinds_made() {
    let options = Options {
        bookmark_interval: Duration::from_millis(5),
        ..Options::default()
    };
    let tier = Tier::with(options).await;
    let mut watch = tier.watch("&allowWatchBookmarks=true").await;
    let node =
        serde_json::json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } });
    let made = tier.server().create(&node).to_string();
    while version(&watch.next().await["object"]) != made {}
}

#[tokio::test]
async fn server_without_streaming_lists_refuses_initial_events() {
    let tier = Tier::with(Options {
        streaming_lists: false,
        ..Options::default()
    })
    .await;
    let query = "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let (code, status) = tier.call("GET", &tier.services(query), None).await;
    assert_eq!((code, &status["reason"]), (422, &"Invalid".into()));
}

#[tokio::test]
async fn watch_of_a_compacted_version_is_told_that_it_expired() {
    let tier = Tier::ours().await;
    let old = version(&tier.create("a", "web").await);
    let current = version(&tier.create("b", "web").await);
    tier.server().compact();
    let mut watch = tier.watch(&format!("&resourceVersion={old}")).await;
    let error = watch.next().await;
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&"ERROR".into(), &410.into())
    );
    assert_eq!(error["object"]["reason"], "Expired");
    assert_eq!(watch.try_next().await.unwrap(), None);
    let mut watch = tier.watch(&format!("&resourceVersion={current}")).await;
    tier.create("c", "web").await;
    assert_eq!(watch.change().await, change("ADDED", "c"));
}
