//! Errors as kube-apiserver writes them: a `Status` object with a code, a reason and a message.
//!
//! Messages and reasons are those of `k8s.io/apimachinery/pkg/api/errors`.

use std::time::Duration;

use serde_json::{Value, json};

use super::encoding::Encoding;
use super::resource::{Key, Resource};

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Status {
    /// The HTTP status code.
    pub(super) code: u16,
    /// CamelCase, for machines.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
    /// When the client may try again: the Retry-After header.
    pub(super) retry_after: Option<Duration>,
    /// The token that goes on with a list whose snapshot is gone.
    pub(super) continue_token: Option<String>,
    details: Option<Value>,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            reason,
            message,
            retry_after: None,
            continue_token: None,
            details: None,
        }
    }

    fn about(mut self, resource: Resource, name: &str) -> Self {
        self.details =
            Some(json!({ "name": name, "group": resource.group(), "kind": resource.plural() }));
        self
    }

    /// 400: the request cannot be understood.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 404: no such object.
    pub(super) fn not_found(resource: Resource, key: &Key) -> Self {
        let message = format!("{} \"{}\" not found", resource.qualified(), key.name);
        Self::new(404, "NotFound", message).about(resource, &key.name)
    }

    /// 404: no such path.
    pub(super) fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 405: the path does not take the method.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: the client does not read what the server writes.
    pub(super) fn not_acceptable(offered: &[Encoding]) -> Self {
        let offered: Vec<_> = offered
            .iter()
            .map(|encoding| encoding.media_type())
            .collect();
        let offered = offered.join(", ");
        let message = format!("only the following media types are accepted: {offered}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: there is one of this name.
    pub(super) fn already_exists(resource: Resource, key: &Key) -> Self {
        let message = format!("{} \"{}\" already exists", resource.qualified(), key.name);
        Self::new(409, "AlreadyExists", message).about(resource, &key.name)
    }

    /// 409: the object has changed since the client read it.
    pub(super) fn conflict(resource: Resource, key: &Key) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{}\": the object has been modified; \
             please apply your changes to the latest version and try again",
            resource.qualified(),
            key.name
        );
        Self::new(409, "Conflict", message).about(resource, &key.name)
    }

    /// 410: the resource version is no longer in the history.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 415: a body in a format the server does not read.
    pub(super) fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: an object, or list options, that break a rule. `subject` is the qualified kind and the name.
    pub(super) fn invalid(subject: (&str, &str), causes: &[String]) -> Self {
        let joined = match causes {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let (kind, name) = subject;
        Self::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {joined}"),
        )
    }

    /// 504: the client has seen a newer resource version than the server has.
    pub(super) fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let mut status = Self::new(
            504,
            "Timeout",
            format!("Too large resource version: {asked}, current: {current}"),
        );
        status.retry_after = Some(Duration::from_secs(1));
        let cause =
            json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        status.details = Some(json!({ "causes": [cause] }));
        status
    }

    /// An error that a test asked for.
    pub(super) fn refused(code: u16, retry_after: Option<Duration>) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: refused by the test"),
            410 => (
                "Expired",
                "The resourceVersion for the provided watch is too old.",
            ),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            500 => (
                "InternalError",
                "Internal error occurred: refused by the test",
            ),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => ("Timeout", "Timeout: refused by the test"),
            _ => ("", "refused by the test"),
        };
        Self {
            retry_after,
            ..Self::new(code, reason, message)
        }
    }

    /// The object a client reads.
    pub(super) fn to_json(&self) -> Value {
        let mut metadata = json!({});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = json!(token);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        if let Some(after) = self.retry_after {
            status["details"]["retryAfterSeconds"] = json!(after.as_secs());
        }
        status
    }
}

/// What a client reads when an object is gone at its wish.
pub(super) fn deleted(resource: Resource, key: &Key, uid: &str) -> Value {
    let details = json!({ "name": key.name, "group": resource.group(), "kind": resource.plural(), "uid": uid });
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}
