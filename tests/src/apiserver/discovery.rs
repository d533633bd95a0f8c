//! The documents by which clients find out what the server has: `/version`, `/api`, `/apis` and below.
//!
//! Clients that prefer aggregated discovery or protobuf fall back to these. The OpenAPI documents hold just what
//! kubectl looks for before it sends an object: that writes take `fieldValidation`.

use serde_json::{Map, Value, json};

use super::resource::Resource;

/// The version the server says it has, as in `/version`.
const GIT_VERSION: &str = "v1.34.0";

/// The document at a path, if there is one.
pub(super) fn document(path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
        })),
        ["api"] => Some(
            json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        ),
        ["api", "v1"] => resource_list(""),
        ["apis"] => {
            let groups: Vec<Value> = GROUPS.into_iter().skip(1).map(group).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", name] => GROUPS.contains(name).then(|| group(name)),
        ["apis", name, "v1"] => resource_list(name),
        ["openapi", "v3"] => {
            let path = |group: &str| match group {
                "" => "api/v1".to_owned(),
                group => format!("apis/{group}/v1"),
            };
            let paths = GROUPS.into_iter().map(path).map(|path| {
                let url = json!({ "serverRelativeURL": format!("/openapi/v3/{path}") });
                (path, url)
            });
            Some(json!({ "paths": paths.collect::<Map<_, _>>() }))
        }
        ["openapi", "v3", "api", "v1"] => Some(openapi("")),
        ["openapi", "v3", "apis", group, "v1"] => GROUPS.contains(group).then(|| openapi(group)),
        _ => None,
    }
}

/// The core group comes first.
const GROUPS: [&str; 4] = ["", "discovery.k8s.io", "networking.k8s.io", "events.k8s.io"];

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "versions": [version], "preferredVersion": version,
    })
}

fn in_group(group: &str) -> impl Iterator<Item = Resource> {
    Resource::ALL
        .into_iter()
        .filter(move |resource| resource.group() == group)
}

fn resource_list(group: &str) -> Option<Value> {
    let first = in_group(group).next()?;
    let resources: Vec<Value> = in_group(group)
        .map(|resource| {
            let mut entry = json!({
                "name": resource.plural(), "singularName": resource.kind().to_lowercase(),
                "kind": resource.kind(), "namespaced": resource.namespaced(),
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            });
            match resource {
                Resource::Services => entry["shortNames"] = json!(["svc"]),
                Resource::Nodes => entry["shortNames"] = json!(["no"]),
                Resource::Events => entry["shortNames"] = json!(["ev"]),
                Resource::Namespaces => entry["shortNames"] = json!(["ns"]),
                Resource::EndpointSlices | Resource::ServiceCidrs => {}
            }
            entry
        })
        .collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": resources,
    }))
}

fn openapi(group: &str) -> Value {
    let paths = in_group(group).map(|resource| {
        let prefix = if group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{group}/v1")
        };
        let namespace = if resource.namespaced() {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let kind = json!({ "group": group, "version": "v1", "kind": resource.kind() });
        let patch = json!({
            "x-kubernetes-group-version-kind": kind,
            "parameters": [{ "name": "fieldValidation", "in": "query" }],
            "responses": {},
        });
        (
            format!("{prefix}{namespace}/{}/{{name}}", resource.plural()),
            json!({ "patch": patch }),
        )
    });
    json!({
        "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": GIT_VERSION },
        "paths": paths.collect::<Map<_, _>>(),
    })
}
