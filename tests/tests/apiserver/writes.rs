//! Creating, replacing, patching and deleting.

use serde_json::json;

use crate::tier::{Tier, service, text, version};

pub(crate) async fn created_object_has_identity_and_version(tier: Tier) {
    let created = tier.create("web", "web").await;
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(!text(&created["metadata"][field]).is_empty(), "{field}");
    }
    assert_eq!(created["metadata"]["namespace"], tier.namespace);
    assert_eq!(tier.get(&tier.services("/web")).await, created);
}

pub(crate) async fn second_creation_of_a_name_conflicts(tier: Tier) {
    tier.create("web", "web").await;
    let (code, status) = tier
        .call("POST", &tier.services(""), Some(service("web", "web")))
        .await;
    assert_eq!((code, &status["reason"]), (409, &"AlreadyExists".into()));
    assert_eq!(status["message"], "services \"web\" already exists");
}

pub(crate) async fn stale_replacement_conflicts(tier: Tier) {
    let stale = tier.create("web", "web").await;
    tier.label("web", "db").await;
    let (code, status) = tier.call("PUT", &tier.services("/web"), Some(stale)).await;
    assert_eq!(
        (code, &status["reason"]),
        (409, &"Conflict".into()),
        "{status}"
    );
}

pub(crate) async fn unchanged_replacement_makes_no_version(tier: Tier) {
    let created = tier.create("web", "web").await;
    let (code, replaced) = tier
        .call("PUT", &tier.services("/web"), Some(created.clone()))
        .await;
    assert_eq!((code, version(&replaced)), (200, version(&created)));
}

pub(crate) async fn merge_patch_changes_what_it_names(tier: Tier) {
    let created = tier.create("web", "web").await;
    let patch = json!({ "metadata": { "labels": { "app": null, "tier": "front" } } });
    let (code, patched) = tier
        .call("PATCH", &tier.services("/web"), Some(patch))
        .await;
    assert_eq!(code, 200);
    assert_eq!(patched["metadata"]["labels"], json!({ "tier": "front" }));
    assert_eq!(patched["spec"], created["spec"]);
    assert_ne!(version(&patched), version(&created));
}

pub(crate) async fn deleted_object_is_not_found(tier: Tier) {
    tier.create("web", "web").await;
    tier.delete("web").await;
    for method in ["GET", "DELETE"] {
        let (code, status) = tier.call(method, &tier.services("/web"), None).await;
        assert_eq!(
            (code, &status["reason"]),
            (404, &"NotFound".into()),
            "{method}"
        );
        assert_eq!(status["message"], "services \"web\" not found");
    }
}

pub(crate) async fn misplaced_object_is_a_bad_request(tier: Tier) {
    let mut elsewhere = service("web", "web");
    elsewhere["metadata"]["namespace"] = json!("elsewhere");
    let mut node = service("web", "web");
    node["kind"] = json!("Node");
    for object in [elsewhere, node] {
        let (code, status) = tier.call("POST", &tier.services(""), Some(object)).await;
        assert_eq!(
            (code, &status["reason"]),
            (400, &"BadRequest".into()),
            "{status}"
        );
    }
}

pub(crate) async fn unknown_patch_format_is_refused(tier: Tier) {
    tier.create("web", "web").await;
    let patch = ("application/x-patch", Some(json!({})));
    let (code, status) = tier.send("PATCH", &tier.services("/web"), patch).await;
    assert_eq!(
        (code, &status["reason"]),
        (415, &"UnsupportedMediaType".into()),
        "{status}"
    );
}
