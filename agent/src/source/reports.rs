//! Warnings about Services, published as Events on them at the API server, where `kubectl describe service` shows them.
//!
//! They come on a channel and are published one by one. An Event that the server does not take is logged and
//! forgotten: what it says is in the agent's own log already.

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::api::ListParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::warn;

use crate::model::ObjectName;
use crate::status::Report;

/// Who says so, as Events have it.
const CONTROLLER: &str = "proxyd";

/// The longest note that an Event may have, in bytes.
const LONGEST_NOTE: usize = 1024;

/// Publishes reports until nobody sends any more. `node_name` is told as the reporting instance.
pub async fn publish(
    client: Client,
    node_name: String,
    mut reports: mpsc::UnboundedReceiver<Report>,
) {
    let reporter = Reporter {
        controller: CONTROLLER.to_owned(),
        instance: Some(node_name),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    while let Some(report) = reports.recv().await {
        let regarding = reference(&client, &report.service).await;
        if let Err(error) = recorder.publish(&event(&report), &regarding).await {
            warn!(
                "the Event {} on Service {} was not published: {error}",
                report.reason, report.service
            );
        }
    }
}

fn event(report: &Report) -> Event {
    let mut end = report.note.len().min(LONGEST_NOTE);
    while !report.note.is_char_boundary(end) {
        end -= 1;
    }
    Event {
        type_: EventType::Warning,
        reason: report.reason.to_owned(),
        note: Some(report.note[..end].to_owned()),
        action: report.action.to_owned(),
        secondary: None,
    }
}

/// The Service as Events refer to it. `kubectl describe` finds them by the uid, which the agent does not keep; a
/// list of one, since the role `system:node-proxier` may list Services but not get them. Without an answer the
/// Event goes without.
async fn reference(client: &Client, service: &ObjectName) -> ObjectReference {
    let api: Api<Service> = Api::namespaced(client.clone(), service.namespace());
    let only = ListParams::default().fields(&format!("metadata.name={}", service.name()));
    let found = api.list_metadata(&only).await.ok();
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(service.namespace().to_owned()),
        name: Some(service.name().to_owned()),
        uid: found
            .and_then(|list| list.items.into_iter().next())
            .and_then(|service| service.metadata.uid),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::extract::{Request, State};
    use axum::http::{Method, StatusCode};
    use axum::response::{IntoResponse as _, Response};
    use axum::{Json, Router};
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// An API server that knows the Service default/web, and tells of the Events that it is sent.
    async fn api_server(
        State(events): State<mpsc::UnboundedSender<(String, Value)>>,
        request: Request<Body>,
    ) -> Response {
        let path = request.uri().path().to_owned();
        let agent = request.headers().get("user-agent").cloned();
        if request.method() == Method::POST {
            let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let mut event: Value = serde_json::from_slice(&body).unwrap();
            event["userAgent"] = agent.unwrap().to_str().unwrap().into();
            events.send((path, event.clone())).unwrap();
            return if event["reason"] == "Refused" {
                StatusCode::FORBIDDEN.into_response()
            } else {
                (StatusCode::CREATED, Json(event)).into_response()
            };
        }
        let is_known = path == "/api/v1/namespaces/default/services"
            && request
                .uri()
                .query()
                .unwrap_or("")
                .contains("metadata.name%3Dweb");
        let metadata = json!({ "name": "web", "namespace": "default", "uid": "0-1-2" });
        let items = if is_known {
            json!([{ "metadata": metadata }])
        } else {
            json!([])
        };
        let list = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items,
        });
        Json(list).into_response()
    }

    fn report(service: &str, reason: &'static str, note: &str) -> Report {
        Report {
            service: crate::testing::name(service),
            reason,
            action: "Listen",
            note: note.to_owned(),
        }
    }

    #[tokio::test]
    async fn reports_become_events_on_their_services() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, mut events) = mpsc::unbounded_channel();
        let router = Router::new().fallback(api_server).with_state(seen);
        let server = tokio::spawn(async { axum::serve(listener, router).await });
        let url = url.parse().unwrap();
        let api = super::super::kube::client(None, Some(&url), &Arc::default())
            .await
            .unwrap();
        let (send, reports) = mpsc::unbounded_channel();
        let long = "ü".repeat(600);
        send.send(report("web", "Refused", &long)).unwrap();
        send.send(report(
            "web",
            "FailedToStartServiceHealthcheck",
            "port 80 is taken",
        ))
        .unwrap();
        send.send(report(
            "gone",
            "FailedToStartServiceHealthcheck",
            "port 80 is taken",
        ))
        .unwrap();
        drop(send);
        publish(api.client, "node-1".to_owned(), reports).await;

        let (_, refused) = events.recv().await.unwrap();
        assert_eq!(
            refused["note"],
            "ü".repeat(512),
            "cut to what an Event may hold"
        );
        let (path, event) = events.recv().await.unwrap();
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
        let expected = json!({
            "apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "web", "uid": "0-1-2",
        });
        assert_eq!(event["regarding"], expected);
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
        assert_eq!(event["action"], "Listen");
        assert_eq!(event["note"], "port 80 is taken");
        assert_eq!(event["reportingController"], "proxyd");
        let agent = format!("proxyd/v{} (linux/", env!("CARGO_PKG_VERSION"));
        let found = event["userAgent"].as_str().unwrap();
        assert!(found.starts_with(&agent), "{found}");
        assert_eq!(event["reportingInstance"], "node-1");
        let (_, unknown) = events.recv().await.unwrap();
        assert_eq!(unknown["regarding"]["name"], "gone");
        assert_eq!(unknown["regarding"].get("uid"), None);
        server.abort();
    }
}
