//! A server under test, and requests to it as they go over the wire.

use std::future::Future;
use std::time::Duration;

use axum::http::{Request, header::CONTENT_TYPE};
use futures::io::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::client::Body;
use proxyd_tests::apiserver::{ApiServer, Options};
use proxyd_tests::envtest::{Envtest, client};
use serde_json::{Value, json};

/// How long any one thing may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A server, and a namespace that nobody else uses.
pub(crate) struct Tier {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// Our server; nothing for a real one.
    pub(crate) ours: Option<ApiServer>,
}

impl Tier {
    /// Our server, as it is by default.
    pub(crate) async fn ours() -> Self {
        Self::on(ApiServer::start()).await
    }

    /// Our server with options.
    pub(crate) async fn with(options: Options) -> Self {
        Self::on(ApiServer::start_with(options)).await
    }

    async fn on(server: ApiServer) -> Self {
        let client = client(&server.kubeconfig()).await;
        Self {
            client,
            namespace: "test".to_owned(),
            ours: Some(server),
        }
    }

    /// A real server, in a namespace named after the behaviour.
    pub(crate) async fn real(server: &Envtest, behaviour: &str) -> Self {
        let namespace = behaviour.replace('_', "-");
        let tier = Self {
            client: client(&server.kubeconfig()).await,
            namespace,
            ours: None,
        };
        let object = json!({ "metadata": { "name": tier.namespace } });
        let (code, answer) = tier.call("POST", "/api/v1/namespaces", Some(object)).await;
        assert_eq!(code, 201, "{answer}");
        tier
    }

    /// Our server, for a test of faults.
    pub(crate) fn server(&self) -> &ApiServer {
        self.ours.as_ref().expect("faults are tested on our server")
    }

    /// The path of the Services of the namespace, with a query or a name to follow.
    pub(crate) fn services(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/services{rest}", self.namespace)
    }

    /// Sends a request; patches are merge patches. Returns the status code and the answer.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let format = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        self.send(method, path, (format, body)).await
    }

    /// Sends a request with a body of this content type.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        (format, body): (&str, Option<Value>),
    ) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, format);
        let request = request.body(Body::from(body.into_bytes())).unwrap();
        let response = in_time(self.client.send(request)).await.unwrap();
        let code = response.status().as_u16();
        let bytes = in_time(axum::body::to_bytes(
            axum::body::Body::new(response.into_body()),
            usize::MAX,
        ))
        .await;
        let bytes = bytes.unwrap();
        (
            code,
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))),
        )
    }

    /// Gets what must be there.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (code, answer) = self.call("GET", path, None).await;
        assert_eq!(code, 200, "{path}: {answer}");
        answer
    }

    /// The names in a list of Services.
    pub(crate) async fn names(&self, query: &str) -> Vec<String> {
        names(&self.get(&self.services(query)).await)
    }

    /// Creates a headless Service with a label `app`, and returns it.
    pub(crate) async fn create(&self, name: &str, app: &str) -> Value {
        let (code, answer) = self
            .call("POST", &self.services(""), Some(service(name, app)))
            .await;
        assert_eq!(code, 201, "{answer}");
        answer
    }

    /// Changes the label `app` of a Service, and returns the Service.
    pub(crate) async fn label(&self, name: &str, app: &str) -> Value {
        let patch = json!({ "metadata": { "labels": { "app": app } } });
        let (code, answer) = self
            .call("PATCH", &self.services(&format!("/{name}")), Some(patch))
            .await;
        assert_eq!(code, 200, "{answer}");
        answer
    }

    /// Deletes a Service.
    pub(crate) async fn delete(&self, name: &str) {
        let (code, answer) = self
            .call("DELETE", &self.services(&format!("/{name}")), None)
            .await;
        assert_eq!(code, 200, "{answer}");
    }

    /// Starts a watch of the Services of the namespace that must be accepted.
    pub(crate) async fn watch(&self, query: &str) -> Watch {
        let request = Request::get(self.services(&format!("?watch=true{query}")))
            .body(Vec::new())
            .unwrap();
        let reader = in_time(self.client.request_stream(request)).await.unwrap();
        Watch {
            reader: Box::pin(reader),
        }
    }
}

/// The lines of a watch.
pub(crate) struct Watch {
    reader: std::pin::Pin<Box<dyn AsyncBufRead>>,
}

impl Watch {
    /// The next event; nothing at the end of the stream, an error when the connection breaks. A line that was not
    /// finished comes as text.
    pub(crate) async fn try_next(&mut self) -> std::io::Result<Option<Value>> {
        let mut line = String::new();
        in_time(self.reader.read_line(&mut line)).await?;
        Ok(match line.strip_suffix('\n') {
            Some(line) => Some(serde_json::from_str(line).unwrap()),
            None => Some(json!(line)).filter(|_| !line.is_empty()),
        })
    }

    /// The next event, which must come.
    pub(crate) async fn next(&mut self) -> Value {
        self.try_next().await.unwrap().expect("the watch goes on")
    }

    /// The next event that is not a bookmark, as its type and the name of its object.
    pub(crate) async fn change(&mut self) -> (String, String) {
        loop {
            let event = self.next().await;
            if event["type"] != "BOOKMARK" {
                return (
                    text(&event["type"]),
                    text(&event["object"]["metadata"]["name"]),
                );
            }
        }
    }
}

/// A headless Service with a label `app`.
pub(crate) fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "labels": { "app": app } },
        "spec": { "clusterIP": "None", "ports": [{ "port": 80 }] },
    })
}

/// An event as [`Watch::change`] returns it.
pub(crate) fn change(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

/// The names in a list.
pub(crate) fn names(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| text(&item["metadata"]["name"]))
        .collect()
}

/// `metadata.resourceVersion`.
pub(crate) fn version(object: &Value) -> String {
    text(&object["metadata"]["resourceVersion"])
}

/// A string of a JSON value.
pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not a string: {value}"))
        .to_owned()
}

/// Waits, but not for ever.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("in time")
}
