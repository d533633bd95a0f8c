//! `/healthz` and `/livez` (`--healthz-bind-address`): is this agent at work, and should the node get traffic?
//!
//! The answers come from the [`Status`] that the sync loop publishes, as bodies that kube-proxy's readers know
//! (`pkg/proxy/healthcheck/proxy_health.go`). `/livez` is for whoever restarts the agent, so the node's fate does
//! not matter to it; `/healthz` is for load balancers of the cloud (KEP-3836).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::watch;

use super::metrics::Metrics;
use super::{Clock, NO_SNIFF, family_name};
use crate::model::Family;
use crate::status::{Status, Uptime};

/// The port of kube-proxy, for which kubelets and load balancers are set up.
pub const DEFAULT_PORT: u16 = 10256;

/// How Go writes the time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The agent's status as the servers see it: what the sync loop published, now.
#[derive(Debug, Clone)]
pub struct Health {
    status: watch::Receiver<Status>,
    clock: Clock,
    timeout: Duration,
}

impl Health {
    /// `timeout` is how long a change may wait; kube-proxy's is twice its `syncPeriod`. `clock` is the one that
    /// the moments in the status are from.
    pub fn new(status: watch::Receiver<Status>, clock: Clock, timeout: Duration) -> Self {
        Self {
            status,
            clock,
            timeout,
        }
    }

    /// Whether the rules of this node are in sync.
    pub fn is_in_sync(&self) -> bool {
        let now = self.clock.now();
        self.status.borrow().all_in_sync(now, self.timeout)
    }
}

/// Answers `/healthz` and `/livez`, and counts the answers.
pub fn router(health: Health, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
        .with_state((health, metrics))
}

type Shared = State<(Health, Arc<Metrics>)>;

async fn healthz(State((health, metrics)): Shared) -> Response {
    let status = health.status.borrow().clone();
    let now = health.clock.now();
    let is_healthy = status.is_healthy(now, health.timeout);
    metrics.health_request(is_healthy);
    let body = Body {
        node_eligible: Some(status.node_eligible),
        healthy: status.all_in_sync(now, health.timeout),
        ..Body::new(&status, &health, now)
    };
    respond(is_healthy, body)
}

async fn livez(State((health, metrics)): Shared) -> Response {
    let status = health.status.borrow().clone();
    let now = health.clock.now();
    let is_live = status.is_live(now, health.timeout);
    metrics.live_request(is_live);
    respond(is_live, Body::new(&status, &health, now))
}

fn respond(is_good: bool, mut body: Body) -> Response {
    let code = if is_good {
        // Readers take it for "the loop ran lately", which kube-proxy's did every few seconds, changes or not.
        body.last_updated.clone_from(&body.current_time);
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, [NO_SNIFF], Json(body)).into_response()
}

/// kube-proxy's `ProxyHealth`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    /// What this path asks of the rules, whatever becomes of the node.
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyBody>,
}

/// kube-proxy's `ProxierHealth`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl Body {
    fn new(status: &Status, health: &Health, now: Uptime) -> Self {
        let time = Timestamp::now();
        let in_words = |moment| time_of(moment, now, time);
        let of_family = |family| {
            let last_updated = in_words((*status.updated.get(family))?);
            let healthy = status.is_in_sync(family, now, health.timeout);
            Some((
                family_name(family),
                FamilyBody {
                    last_updated,
                    healthy,
                },
            ))
        };
        Self {
            last_updated: status.last_updated().map_or(NEVER.to_owned(), in_words),
            current_time: time.to_string(),
            node_eligible: None,
            healthy: status.is_live(now, health.timeout),
            status: Family::ALL.into_iter().filter_map(of_family).collect(),
        }
    }
}

/// The time of day at a moment, in RFC 3339, given what both are now.
fn time_of(moment: Uptime, now: Uptime, time: Timestamp) -> String {
    let ago = SignedDuration::try_from(moment.until(now)).unwrap_or(SignedDuration::MAX);
    let then = time.checked_sub(ago).unwrap_or(Timestamp::MIN);
    then.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Exposition, Format};
    use super::super::testing::{get, serve_here};
    use super::*;
    use serde_json::json;
    use std::time::Instant;

    const TIMEOUT: Duration = Duration::from_secs(60);
    const LATE: Duration = Duration::from_secs(61);

    /// A status in sync for both families.
    fn in_sync(now: Uptime) -> Status {
        let mut status = Status {
            node_eligible: true,
            ..Status::default()
        };
        for family in Family::ALL {
            status.synced(family, now);
        }
        status
    }

    fn time(value: &serde_json::Value) -> Timestamp {
        value.as_str().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn answers_follow_the_status_that_the_loop_publishes() {
        let started = Instant::now()
            .checked_sub(Duration::from_secs(1000))
            .unwrap();
        let clock = Clock::new(started);
        let (publish, status) = watch::channel(Status::default());
        let metrics = Arc::new(Metrics::default());
        let health = Health::new(status, clock, TIMEOUT);
        let (address, _server) = serve_here(router(health.clone(), metrics.clone()));
        let codes = async || {
            let (healthz, livez) = (get(address, "/healthz").await, get(address, "/livez").await);
            (healthz.code, livez.code)
        };

        assert_eq!(codes().await, (503, 200), "before the first sync");

        publish.send_modify(|status| status.synced(Family::V4, clock.now()));
        assert_eq!(codes().await, (503, 200), "one family is not written yet");
        assert!(!health.is_in_sync());

        publish.send_replace(in_sync(clock.now()));
        assert_eq!(codes().await, (200, 200));
        assert!(health.is_in_sync());

        publish.send_modify(|status| status.queue(Family::V6, clock.now()));
        assert_eq!(
            codes().await,
            (200, 200),
            "a change that waits is not late at once"
        );

        let long_ago = Uptime(clock.now().0 - LATE);
        publish.send_modify(|status| status.queue(Family::V6, long_ago));
        assert_eq!(codes().await, (503, 503), "a change waits for too long");
        assert!(!health.is_in_sync());

        publish.send_modify(|status| status.synced(Family::V6, clock.now()));
        publish.send_modify(|status| status.node_eligible = false);
        assert_eq!(codes().await, (503, 200), "the node is on its way out");

        assert_eq!(get(address, "/").await.code, 404);

        let text = Exposition::new(metrics).text(Format::Plain);
        for count in [
            "healthz_total{code=\"200\"} 2",
            "healthz_total{code=\"503\"} 4",
            "livez_total{code=\"200\"} 5",
            "livez_total{code=\"503\"} 1",
        ] {
            assert!(text.contains(&format!("proxy_{count}\n")), "{count}");
        }
    }

    #[tokio::test]
    async fn bodies_are_kube_proxys() {
        let clock = Clock::new(
            Instant::now()
                .checked_sub(Duration::from_secs(1000))
                .unwrap(),
        );
        let (publish, status) = watch::channel(Status::default());
        let metrics = Arc::new(Metrics::default());
        let health = Health::new(status, clock, TIMEOUT);
        let (address, _server) = serve_here(router(health, metrics));

        let body = get(address, "/healthz").await.json();
        let current = body["currentTime"].clone();
        let expected = json!({
            "lastUpdated": NEVER, "currentTime": current, "nodeEligible": false, "healthy": false,
        });
        assert_eq!(body, expected);
        assert!(Timestamp::now().duration_since(time(&current)) < SignedDuration::from_secs(10));

        publish.send_replace(in_sync(Uptime(Duration::from_secs(400))));
        let answer = get(address, "/healthz").await;
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let body = answer.json();
        assert_eq!(body["nodeEligible"], true);
        assert_eq!(body["healthy"], true);
        assert_eq!(
            body["lastUpdated"], body["currentTime"],
            "while all is well"
        );
        let ago =
            time(&body["currentTime"]).duration_since(time(&body["status"]["IPv6"]["lastUpdated"]));
        assert!((600..610).contains(&ago.as_secs()), "{ago}");

        publish.send_modify(|status| status.queue(Family::V4, Uptime(Duration::from_secs(500))));
        let body = get(address, "/livez").await.json();
        assert_eq!(body.get("nodeEligible"), None, "not for /livez to say");
        assert_eq!(body["healthy"], false);
        assert_eq!(body["status"]["IPv4"]["healthy"], false);
        assert_eq!(body["status"]["IPv6"]["healthy"], true);
        assert_eq!(body["lastUpdated"], body["status"]["IPv4"]["lastUpdated"]);
    }
}
