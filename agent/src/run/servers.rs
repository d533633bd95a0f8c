//! Starts what tells of the agent: its health, the health of Services, metrics, and Events at the API server.
//!
//! The sync loop gets a [`Publisher`]; everything here answers from what that publishes, in tasks of its own.

use kube::Client;
use tokio::sync::mpsc;

use super::RunError;
use crate::cli;
use crate::config::Config;
use crate::http::Clock;
use crate::http::health::{self, Health};
use crate::http::listen::listen;
use crate::http::metrics_server::{self, Told};
use crate::http::serve::{Endpoint, serve};
use crate::http::service_health::ServiceHealthServers;
use crate::logging::Verbosity;
use crate::relay::{Patience, Relay};
use crate::source::reports;
use crate::sync_loop::Publisher;

/// The one mode that there is, as kube-proxy names it.
const MODE: &str = "nftables";

/// Starts the servers of the live agent, whose `clock` shows how long it has been running, on the tokio runtime of the caller. `client`
/// is that of the API server; without one, nothing becomes an Event, and a node may do without a Node object.
/// `verbosity` is that of the log.
///
/// # Errors
/// That an address cannot be had, if that is to end the agent; else it is tried again.
pub(super) fn start(
    config: &Config,
    client: Option<Client>,
    clock: Clock,
    verbosity: &Verbosity,
    publisher: &Publisher,
) -> Result<(), RunError> {
    let metrics = publisher.metrics();
    // kube-proxy's timeout: one period may be missed.
    let timeout = config.health.sync_period.saturating_mul(2);
    let health = Health::new(publisher.status(), clock, timeout);
    let health_server = config.health.healthz.map(|address| {
        let endpoint = Endpoint {
            what: "health checks",
            place: config.server_places.healthz.clone(),
            address,
        };
        (endpoint, health::router(health.clone(), metrics.clone()))
    });
    let metrics_server = config.health.metrics.map(|address| {
        let endpoint = Endpoint {
            what: "metrics",
            place: config.server_places.metrics.clone(),
            address,
        };
        let router = metrics_server::router(Told {
            metrics: metrics.clone(),
            mode: MODE,
            config: config.configz(),
            flags: cli::flags(std::env::args_os()),
            verbosity: config.health.profiling.then(|| verbosity.clone()),
        });
        (endpoint, router)
    });
    for (endpoint, router) in health_server.into_iter().chain(metrics_server) {
        if config.health.hard_fail {
            let Endpoint { place, address, .. } = endpoint;
            let listener = listen(address).map_err(|source| RunError::Listen { place, source })?;
            tokio::spawn(serve(listener, router));
        } else {
            tokio::spawn(endpoint.serve(router));
        }
    }

    let node_name = config.node_name.clone();
    let reports = client.map(|client| {
        let (send, receive) = mpsc::unbounded_channel();
        tokio::spawn(reports::publish(client, node_name.clone(), receive));
        send
    });
    let node_ports = publisher.local_node_ports();
    let relay = Relay::new(
        node_ports,
        metrics.clone(),
        Patience::default(),
        node_name.clone(),
        reports.clone(),
    );
    tokio::spawn(relay.run());
    let checks = publisher.health_checks();
    tokio::spawn(ServiceHealthServers::new(checks, health, node_name, reports).run());
    Ok(())
}
