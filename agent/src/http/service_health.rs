//! `spec.healthCheckNodePort`: tells load balancers whether this node has ready endpoints of a Service.
//!
//! One listener for each Service and address, kept in step with the published [`HealthChecks`]; the counts in their
//! answers are read when asked. What cannot be listened on is logged once, reported on the Service once, and tried
//! again. Answers are those of kube-proxy's
//! `pkg/proxy/healthcheck/service_health.go`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::State;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::follow::{Followed, Listeners, Place};
use super::health::Health;
use super::serve::serve;
use super::{LISTEN_AGAIN, NO_SNIFF};
use crate::model::ObjectName;
use crate::status::{HealthChecks, Report};

/// How much of the Service's traffic the node can take (KEP-3836).
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// All listeners of health check ports.
#[derive(Debug)]
pub struct ServiceHealthServers {
    checks: watch::Receiver<HealthChecks>,
    health: Health,
    node_name: String,
    reports: Option<mpsc::UnboundedSender<Report>>,
    listeners: Listeners,
}

impl ServiceHealthServers {
    /// Servers for what `checks` asks for, none of which listens yet. `reports` takes what should become an Event;
    /// none where there is no API server.
    pub fn new(
        checks: watch::Receiver<HealthChecks>,
        health: Health,
        node_name: String,
        reports: Option<mpsc::UnboundedSender<Report>>,
    ) -> Self {
        Self {
            checks,
            health,
            node_name,
            reports,
            listeners: Listeners::new(
                "two Services have one healthCheckNodePort; give one of them another",
            ),
        }
    }

    /// Listens where it should, until nobody can publish any more. Must run on a tokio runtime.
    pub async fn run(mut self) {
        loop {
            self.follow().await;
            tokio::select! {
                changed = self.checks.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(LISTEN_AGAIN), if self.listeners.has_refused() => {}
            }
        }
    }

    async fn follow(&mut self) {
        let wanted = places(&self.checks.borrow_and_update());
        let Self {
            checks,
            health,
            node_name,
            reports,
            listeners,
        } = self;
        let start = |place: &Place, listener| {
            let asked = Asked {
                service: place.0.clone(),
                checks: checks.clone(),
                health: health.clone(),
            };
            serve(listener, Router::new().fallback(answer).with_state(asked))
        };
        let tell = |(service, address): &Place, followed| match followed {
            Followed::AfterAll => {
                info!("Service {service}: its health is told at {address} after all");
            }
            Followed::Gone => {
                debug!("Service {service}: its health is no longer told at {address}");
            }
            Followed::Refused(reason) => {
                warn!("Service {service}: health check port: {reason}; trying again");
                let Some(reports) = reports else { return };
                let note = format!(
                    "node {node_name} failed to start healthcheck \"{service}\" on port {}: {reason}",
                    address.port(),
                );
                // If nobody takes reports, the agent is stopping.
                let _ = reports.send(Report {
                    service: service.clone(),
                    reason: "FailedToStartServiceHealthcheck",
                    action: "Listen",
                    note,
                });
            }
        };
        listeners.follow(wanted, start, tell).await;
    }
}

/// Where health is to be told.
fn places(checks: &HealthChecks) -> BTreeSet<Place> {
    let all = BTreeSet::from([IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
    let addresses = if checks.addresses.is_empty() {
        &all
    } else {
        &checks.addresses
    };
    let services = checks.services.iter();
    services
        .flat_map(|(name, service)| {
            let at = move |ip: &IpAddr| SocketAddr::new(*ip, service.port.get());
            addresses.iter().map(move |ip| (name.clone(), at(ip)))
        })
        .collect()
}

/// What an answer is made of.
#[derive(Debug, Clone)]
struct Asked {
    service: ObjectName,
    checks: watch::Receiver<HealthChecks>,
    health: Health,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: NameBody<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Debug, Serialize)]
struct NameBody<'a> {
    namespace: &'a str,
    name: &'a str,
}

async fn answer(State(asked): State<Asked>) -> Response {
    let local_endpoints = {
        let checks = asked.checks.borrow();
        let service = checks.services.get(&asked.service);
        service.map_or(0, |service| service.local_endpoints)
    };
    let service_proxy_healthy = asked.health.is_in_sync();
    let code = if local_endpoints > 0 && service_proxy_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = Body {
        service: NameBody {
            namespace: asked.service.namespace(),
            name: asked.service.name(),
        },
        local_endpoints,
        service_proxy_healthy,
    };
    let weight = [(WEIGHT, local_endpoints.to_string())];
    (code, [NO_SNIFF], weight, Json(body)).into_response()
}

#[cfg(test)]
mod tests;
