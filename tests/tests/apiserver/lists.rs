//! Lists: versions, pages and selectors.

use serde_json::Value;

use crate::tier::{Tier, names, text, version};

pub(crate) async fn list_has_the_version_of_the_last_write(tier: Tier) {
    tier.create("a", "web").await;
    let last = tier.create("b", "web").await;
    let list = tier.get(&tier.services("")).await;
    assert_eq!(names(&list), ["a", "b"]);
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&"ServiceList".into(), &"v1".into())
    );
    let number = |object: &Value| version(object).parse::<u64>().unwrap();
    assert!(number(&list) >= number(&last));
    assert!(names(&tier.get("/api/v1/services").await).contains(&"a".to_owned()));
}

pub(crate) async fn pages_of_a_list_show_one_snapshot(tier: Tier) {
    for name in ["a", "b", "c", "d"] {
        tier.create(name, "web").await;
    }
    let first = tier.get(&tier.services("?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    tier.delete("c").await;
    tier.create("e", "web").await;
    let token = text(&first["metadata"]["continue"]);
    let second = tier
        .get(&tier.services(&format!("?limit=1&continue={token}")))
        .await;
    assert_eq!(names(&second), ["c"]);
    let token = text(&second["metadata"]["continue"]);
    let third = tier
        .get(&tier.services(&format!("?limit=1&continue={token}")))
        .await;
    assert_eq!(names(&third), ["d"]);
    assert_eq!(third["metadata"].get("continue"), None);
    assert_eq!(version(&third), version(&first));
}

pub(crate) async fn exact_list_shows_an_old_version(tier: Tier) {
    let old = version(&tier.create("a", "web").await);
    tier.delete("a").await;
    let new = version(&tier.create("b", "web").await);
    let query = format!("?resourceVersion={old}&resourceVersionMatch=Exact");
    let list = tier.get(&tier.services(&query)).await;
    assert_eq!(names(&list), ["a"]);
    assert_eq!(version(&list), old);
    let query = format!("?resourceVersion={new}&resourceVersionMatch=NotOlderThan");
    assert_eq!(tier.names(&query).await, ["b"]);
}

pub(crate) async fn list_of_a_version_to_come_times_out(tier: Tier) {
    let (code, status) = tier
        .call("GET", &tier.services("?resourceVersion=1000000000"), None)
        .await;
    assert_eq!(
        (code, &status["reason"]),
        (504, &"Timeout".into()),
        "{status}"
    );
    assert!(
        text(&status["message"]).contains("Too large resource version"),
        "{status}"
    );
}

pub(crate) async fn list_is_selected_by_labels(tier: Tier) {
    tier.create("a", "web").await;
    tier.create("b", "db").await;
    for (selector, expected) in [
        ("app=web", &["a"][..]),
        ("app!=web", &["b"]),
        ("app%20in%20(web,db)", &["a", "b"]),
        ("app%20notin%20(web)", &["b"]),
        ("!app", &[]),
        ("app,absent!=x", &["a", "b"]),
    ] {
        assert_eq!(
            tier.names(&format!("?labelSelector={selector}")).await,
            expected,
            "{selector}"
        );
    }
    let (code, _) = tier
        .call("GET", &tier.services("?labelSelector=a%20of%20(b)"), None)
        .await;
    assert_eq!(code, 400);
}

pub(crate) async fn list_is_selected_by_fields(tier: Tier) {
    tier.create("a", "web").await;
    tier.create("b", "db").await;
    for (selector, expected) in [
        ("metadata.name=a", &["a"][..]),
        ("metadata.name!=a", &["b"]),
        ("spec.clusterIP=None", &["a", "b"]),
        ("spec.clusterIP!=None", &[]),
    ] {
        assert_eq!(
            tier.names(&format!("?fieldSelector={selector}")).await,
            expected,
            "{selector}"
        );
    }
}

pub(crate) async fn unsupported_field_is_a_bad_request(tier: Tier) {
    let (code, status) = tier
        .call("GET", &tier.services("?fieldSelector=spec.color=red"), None)
        .await;
    assert_eq!(
        (code, &status["reason"], &status["kind"]),
        (400, &"BadRequest".into(), &"Status".into())
    );
    assert_eq!(status["message"], "field label not supported: spec.color");
}

pub(crate) async fn contradicting_list_options_are_invalid(tier: Tier) {
    for query in [
        "?resourceVersionMatch=Exact",
        "?resourceVersionMatch=Exact&resourceVersion=0",
        "?resourceVersionMatch=Newest&resourceVersion=1",
        "?sendInitialEvents=true",
    ] {
        let (code, status) = tier.call("GET", &tier.services(query), None).await;
        assert_eq!(
            (code, &status["reason"]),
            (422, &"Invalid".into()),
            "{query}: {status}"
        );
    }
}
