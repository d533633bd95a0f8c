//! Objects on their way in: what the server checks and fills in before it stores one.
//!
//! Only the metadata is looked at. There is no defaulting and no validation of specs: a test writes the object it wants
//! watchers to see. ClusterIPs are allocated where a test wants that.

use std::net::Ipv4Addr;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::encoding::PROTOBUF;
use super::protobuf;
use super::resource::{Key, Resource};
use super::schema::Schema;
use super::status::Status;

const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";

/// Reads an object out of a body: JSON or protobuf.
pub(super) fn parse_body(headers: &HeaderMap, body: &[u8]) -> Result<Value, Status> {
    match content_type(headers) {
        "" | "application/json" => parse_json(body),
        PROTOBUF => protobuf::unwrap(body, schema_of)
            .ok_or_else(|| Status::bad_request("the body is no object in protobuf")),
        _ => Err(Status::unsupported_media_type("application/json")),
    }
}

fn schema_of(api_version: &str, kind: &str) -> Option<Schema> {
    Resource::from_type(api_version, kind).map(Resource::schema)
}

/// Reads a JSON merge patch out of a body. What Go's recorder patches in an Event is one, though it is called strategic.
pub(super) fn parse_patch(
    resource: Resource,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Value, Status> {
    match content_type(headers) {
        MERGE_PATCH => parse_json(body),
        STRATEGIC_MERGE_PATCH if resource == Resource::Events => parse_json(body),
        _ => Err(Status::unsupported_media_type(MERGE_PATCH)),
    }
}

/// Checks the type and the namespace of a new object against where it was sent, and completes them.
pub(super) fn place(
    resource: Resource,
    namespace: Option<&str>,
    mut value: Value,
) -> Result<(Key, Value), Status> {
    if !value.is_object() {
        return Err(Status::bad_request("the body is not an object"));
    }
    for (field, expected) in [
        ("apiVersion", resource.api_version()),
        ("kind", resource.kind()),
    ] {
        match value[field].as_str() {
            None => value[field] = json!(expected),
            Some(given) if given == expected => {}
            Some(given) => {
                return Err(Status::bad_request(format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({expected})"
                )));
            }
        }
    }
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    let metadata = &mut value["metadata"];
    if resource.namespaced() {
        let namespace = namespace
            .or(metadata["namespace"].as_str())
            .unwrap_or("default")
            .to_owned();
        if metadata["namespace"]
            .as_str()
            .is_some_and(|given| given != namespace)
        {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata["namespace"] = json!(namespace);
    }
    let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
        let cause = "metadata.name: Required value: name or generateName is required";
        let kind = match resource.group() {
            "" => resource.kind().to_owned(),
            group => format!("{}.{group}", resource.kind()),
        };
        return Err(Status::invalid((&kind, ""), &[cause.to_owned()]));
    };
    Ok((Key::new(metadata["namespace"].as_str(), name), value))
}

/// Gives a new Service the next free ClusterIP if it has none and needs one.
pub(super) fn allocate(
    service: &mut Value,
    free: &mut impl Iterator<Item = Ipv4Addr>,
) -> Result<(), Status> {
    let spec = &mut service["spec"];
    let has_one = spec["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty());
    if has_one || spec["type"] == "ExternalName" {
        return Ok(());
    }
    let ip = free.next();
    let ip = ip.ok_or_else(|| Status::refused(500, None))?.to_string();
    spec["clusterIPs"] = json!([ip]);
    spec["clusterIP"] = json!(ip);
    Ok(())
}

/// Checks that a replacement is for the object the path names.
pub(super) fn replacement(resource: Resource, key: &Key, value: Value) -> Result<Value, Status> {
    let namespace = Some(&*key.namespace).filter(|namespace| !namespace.is_empty());
    let (given, value) = place(resource, namespace, value)?;
    if given.name != key.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            given.name, key.name
        )));
    }
    Ok(value)
}

/// Merges a patch into a value: RFC 7386.
pub(super) fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("made an object above");
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

fn parse_json(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("the body is not JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patch_adds_replaces_and_removes() {
        let mut target = json!({ "a": { "b": 1, "c": 2 }, "d": [1, 2] });
        merge(
            &mut target,
            json!({ "a": { "b": null, "e": { "f": 3, "g": null } }, "d": [3] }),
        );
        assert_eq!(
            target,
            json!({ "a": { "c": 2, "e": { "f": 3 } }, "d": [3] })
        );
    }
}
