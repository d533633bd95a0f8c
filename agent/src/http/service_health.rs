//! `spec.healthCheckNodePort`: tells load balancers whether this node has ready endpoints of a Service.
//!
//! One listener for each Service and address, kept in step with the published [`HealthChecks`]: those that stay are
//! left alone, and the counts in their answers are read when asked. What cannot be listened on is logged once,
//! reported on the Service once, and tried again; it never ends the agent. Answers are those of kube-proxy's
//! `pkg/proxy/healthcheck/service_health.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::State;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::health::Health;
use super::listen::listen;
use super::serve::{Listening, serve};
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
    listening: BTreeMap<Place, Listening>,
    /// What could not be listened on, and the reason that was told.
    refused: BTreeMap<Place, String>,
}

/// A Service, and an address and port at which its health is told.
type Place = (ObjectName, SocketAddr);

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
            listening: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Listens where it should, until nobody can publish any more. Must run on a tokio runtime.
    pub async fn run(mut self) {
        loop {
            let wanted = places(&self.checks.borrow_and_update());
            self.close_others(&wanted).await;
            for place in wanted {
                self.open(place);
            }
            tokio::select! {
                changed = self.checks.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(LISTEN_AGAIN), if !self.refused.is_empty() => {}
            }
        }
    }

    /// Closes what is no longer wanted, before anything is opened: a port may pass from one Service to another.
    async fn close_others(&mut self, wanted: &BTreeSet<Place>) {
        self.refused.retain(|place, _| wanted.contains(place));
        let (kept, gone) = std::mem::take(&mut self.listening)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(place, _)| wanted.contains(place));
        self.listening = kept;
        for ((service, address), listening) in gone {
            debug!("Service {service}: its health is no longer told at {address}");
            listening.stop().await;
        }
    }

    fn open(&mut self, place: Place) {
        if self.listening.contains_key(&place) {
            return;
        }
        if let Some((owner, _)) = self
            .listening
            .keys()
            .find(|other| is_same(other.1, place.1))
        {
            let reason = format!(
                "proxyd itself has port {} already, for Service {owner}: two Services have one healthCheckNodePort; \
                 give one of them another",
                place.1.port()
            );
            return self.refuse(place, reason);
        }
        match listen(place.1) {
            Ok(listener) => {
                let (service, address) = &place;
                if self.refused.remove(&place).is_some() {
                    info!("Service {service}: its health is told at {address} after all");
                }
                let asked = Asked {
                    service: service.clone(),
                    checks: self.checks.clone(),
                    health: self.health.clone(),
                };
                let server = serve(listener, Router::new().fallback(answer).with_state(asked));
                self.listening.insert(place, Listening::start(server));
            }
            Err(error) => self.refuse(place, error.to_string()),
        }
    }

    fn refuse(&mut self, place: Place, reason: String) {
        if self.refused.get(&place) == Some(&reason) {
            return;
        }
        let (service, address) = &place;
        warn!("Service {service}: health check port: {reason}; trying again");
        if let Some(reports) = &self.reports {
            let note = format!(
                "node {} failed to start healthcheck \"{service}\" on port {}: {reason}",
                self.node_name,
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
        self.refused.insert(place, reason);
    }
}

/// Whether who listens at one of the addresses keeps others from the other one.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (is_any || one.ip() == other.ip())
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
