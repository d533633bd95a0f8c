//! Requests in, responses out: routes a request to the store, and writes what comes back as kube-apiserver would.

use std::future::ready;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query as Parameters, Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json as value};

use super::encoding::{Encoding, json_list_head, protobuf_list};
use super::object::Object;
use super::query::{Features, Query, Read, WatchRequest, is_watch};
use super::resource::{Key, Resource, Route, Verb};
use super::status::{Status, deleted};
use super::store::{Cut, Page};
use super::{LoggedRequest, Shared, discovery, watch, write};

/// The limit of kube-apiserver for a body.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
const CHUNK_BYTES: usize = 256 * 1024;

/// What clients ask for who read the metadata of a list's objects and no more.
const METADATA_LIST: &str = "PartialObjectMetadataList";

/// Answers a request.
pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = Parameters::<Query>::try_from_uri(&parts.uri)
        .map(|Parameters(query)| query)
        .unwrap_or_default();
    let route = Route::parse(parts.uri.path());
    let encoding = Encoding::accepted(&parts.headers, None, shared.encodings());
    let verb = verb(&parts.method, &route, &query);
    shared.log().push(LoggedRequest {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        verb,
        resource: route.resource(),
        encoding,
        query: query.clone(),
    });
    let (delay, refusal) = {
        let mut faults = shared.faults();
        (faults.delay, faults.refuse(route.resource(), verb))
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let answer = match refusal {
        Some(refusal) => Err(refusal),
        None => answer(&shared, &parts, body, (route, query), encoding).await,
    };
    // What the client accepts, or JSON if that is nothing.
    answer.unwrap_or_else(|status| error(&status, encoding.unwrap_or(Encoding::Json)))
}

fn verb(method: &Method, route: &Route, query: &Query) -> Option<Verb> {
    match (method.as_str(), route) {
        ("GET", Route::Collection(..)) if is_watch(query) => Some(Verb::Watch),
        ("GET", Route::Collection(..)) => Some(Verb::List),
        ("GET", Route::Object(..)) => Some(Verb::Get),
        ("POST", Route::Collection(..)) => Some(Verb::Create),
        ("PUT", Route::Object(..)) => Some(Verb::Update),
        ("PATCH", Route::Object(..)) => Some(Verb::Patch),
        ("DELETE", Route::Object(..)) => Some(Verb::Delete),
        _ => None,
    }
}

async fn answer(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: Body,
    (route, query): (Route, Query),
    encoding: Option<Encoding>,
) -> Result<Response, Status> {
    let body = to_bytes(body, MAX_BODY_BYTES).await;
    let body =
        body.map_err(|error| Status::bad_request(format!("the body cannot be read: {error}")))?;
    let metadata = Encoding::accepted(&parts.headers, Some(METADATA_LIST), &[Encoding::Json]);
    let only_metadata = metadata.is_some();
    let is_list = matches!(route, Route::Collection(..)) && parts.method == Method::GET;
    let is_answered = encoding.is_some() || only_metadata && is_list;
    if route.resource().is_some() && !is_answered {
        return Err(Status::not_acceptable(shared.encodings()));
    }
    let encoding = encoding.unwrap_or(Encoding::Json);
    match (parts.method.as_str(), route) {
        ("GET", Route::Health) => Ok(respond(200, "text/plain; charset=utf-8", "ok")),
        ("GET", Route::Document(path)) => match discovery::document(&path) {
            Some(document) => Ok(json(200, document.to_string())),
            None => Err(Status::no_such_path()),
        },
        ("GET", Route::Collection(resource, namespace)) => {
            let features = Features {
                streaming_lists: shared.options.streaming_lists,
                service_fields: shared.options.service_field_selectors,
            };
            match Read::parse(resource, namespace, &query, features)? {
                Read::List(request) => {
                    let cut = shared.faults().cut_list();
                    let page = shared.store().list(resource, &request)?;
                    if only_metadata {
                        return Ok(json(200, metadata_of(&page).to_string()));
                    }
                    Ok(list((resource, encoding), page, cut))
                }
                Read::Watch(request) => start_watch(shared, (resource, encoding), request),
            }
        }
        ("GET", Route::Object(resource, key)) => {
            let found = shared.store().get(resource, &key)?;
            Ok(object(200, &found, encoding))
        }
        ("POST", Route::Collection(resource, namespace)) => {
            let value = write::parse_body(&parts.headers, &body)?;
            let (key, value) = write::place(resource, namespace.as_deref(), value)?;
            let created = shared.store().create(resource, key, value)?;
            Ok(object(201, &created, encoding))
        }
        ("PUT", Route::Object(resource, key)) => {
            let value = write::parse_body(&parts.headers, &body)?;
            let value = write::replacement(resource, &key, value)?;
            let replaced = shared.store().replace(resource, &key, value)?;
            Ok(object(200, &replaced, encoding))
        }
        ("PATCH", Route::Object(resource, key)) => {
            let patch = write::parse_patch(resource, &parts.headers, &body)?;
            let mut store = shared.store();
            let mut value = store.get(resource, &key)?.value();
            write::merge(&mut value, patch);
            let value = write::replacement(resource, &key, value)?;
            let replaced = store.replace(resource, &key, value)?;
            Ok(object(200, &replaced, encoding))
        }
        ("DELETE", Route::Object(resource, key)) => delete(shared, resource, &key, encoding),
        (_, Route::Unknown) => Err(Status::no_such_path()),
        _ => Err(Status::method_not_allowed()),
    }
}

/// The metadata of a list's objects, without the rest of them.
fn metadata_of(page: &Page) -> Value {
    let item = |object: &Arc<Object>| {
        value!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": object.value()["metadata"],
        })
    };
    value!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": METADATA_LIST,
        "metadata": { "resourceVersion": page.version.to_string() },
        "items": page.objects.iter().map(item).collect::<Vec<_>>(),
    })
}

fn start_watch(
    shared: &Arc<Shared>,
    (resource, encoding): (Resource, Encoding),
    mut request: WatchRequest,
) -> Result<Response, Status> {
    if let Some(life) = shared.faults().watch_life {
        request.timeout = Some(request.timeout.unwrap_or(life).min(life));
    }
    if shared.faults().expire_watch() {
        let frame = encoding.error_frame(&Status::refused(410, None));
        return Ok(respond(200, encoding.stream_type(), frame));
    }
    let subscription = shared.store().watch(resource, request.start);
    let body = match subscription {
        Ok(subscription) => Body::from_stream(watch::stream(
            shared.clone(),
            (resource, encoding),
            request,
            subscription,
        )),
        // Once the options are accepted, a version that is too old is told in the stream (Cacher.Watch: "other errors
        // must fail with a watch event of type ERROR").
        Err(status) if status.code == 410 => Body::from(encoding.error_frame(&status)),
        Err(status) => return Err(status),
    };
    Ok(respond(200, encoding.stream_type(), body))
}

/// The list. In JSON it is sent in chunks as it is put together, so that a large one is never in memory twice; in
/// protobuf its length comes first.
fn list((resource, encoding): (Resource, Encoding), page: Page, cut: Option<Cut>) -> Response {
    let mut metadata = serde_json::json!({ "resourceVersion": page.version.to_string() });
    if let Some(next) = page.next {
        metadata["continue"] = next.to_text().into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let mut objects = page.objects;
    if encoding == Encoding::Protobuf {
        let items = objects.iter().map(|object| &*object.protobuf);
        let mut list = protobuf_list(resource, &metadata, items);
        if cut.is_some() {
            list.truncate(list.len() / 2);
        }
        let list = stream::once(ready(Ok(Bytes::from(list))));
        let breaks = cut.is_some_and(|cut| cut != Cut::Clean);
        let end = stream::once(watch::break_off()).filter(move |_| ready(breaks));
        return respond(
            200,
            encoding.media_type(),
            Body::from_stream(list.chain(end)),
        );
    }
    if cut.is_some() {
        objects.truncate(objects.len() / 2);
    }
    let mut objects = objects.into_iter();
    let mut chunk = json_list_head(resource, &metadata);
    let mut first = true;
    let chunks = std::iter::from_fn(move || {
        loop {
            let Some(object) = objects.next() else {
                // The bracket closes once: after it there is nothing to send.
                if chunk.is_empty() {
                    return None;
                }
                match cut {
                    None => chunk.extend_from_slice(b"]}\n"),
                    Some(Cut::HalfLine) => chunk.truncate(chunk.len() - 1),
                    Some(Cut::Clean | Cut::Broken) => {}
                }
                return Some(Ok(Bytes::from(std::mem::take(&mut chunk))));
            };
            if !std::mem::take(&mut first) {
                chunk.push(b',');
            }
            chunk.extend_from_slice(&object.json);
            // The last object stays for the chunk that closes the list.
            if chunk.len() >= CHUNK_BYTES && objects.len() > 0 {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_BYTES + 4096));
                return Some(Ok(Bytes::from(full)));
            }
        }
    });
    let chunks = stream::iter(chunks);
    let breaks = cut.is_some_and(|cut| cut != Cut::Clean);
    let end = stream::once(watch::break_off()).filter(move |_| ready(breaks));
    json(200, Body::from_stream(chunks.chain(end)))
}

/// Services answer with what was deleted, other kinds with a Status (`ReturnDeletedObject` of their registries).
fn delete(
    shared: &Shared,
    resource: Resource,
    key: &Key,
    encoding: Encoding,
) -> Result<Response, Status> {
    let gone = shared.store().delete(resource, key)?;
    if resource == Resource::Services {
        return Ok(object(200, &gone, encoding));
    }
    let uid = gone.value()["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let status = encoding.of_status(&deleted(resource, key, &uid));
    Ok(respond(200, encoding.media_type(), status))
}

fn object(code: u16, object: &Object, encoding: Encoding) -> Response {
    respond(code, encoding.media_type(), object.alone(encoding))
}

fn error(status: &Status, encoding: Encoding) -> Response {
    let body = encoding.of_status(&status.to_json());
    let mut response = respond(status.code, encoding.media_type(), body);
    if let Some(after) = status.retry_after {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    response
}

fn json(code: u16, body: impl Into<Body>) -> Response {
    respond(code, "application/json", body)
}

fn respond(code: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).expect("codes are between 100 and 999");
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
