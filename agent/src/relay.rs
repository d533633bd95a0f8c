//! NodePorts of TCP at 127.0.0.1 and `::1`, relayed by this process (`--nodeport-addresses localhost`; KEP-6032). I/O: sockets.
//!
//! Rules cannot serve them: the kernel routes no packet from a loopback address to another machine, and the sysctl that
//! makes it do so for IPv4, `route_localnet`, opens the node's loopback to its neighbours (CVE-2020-8558). So each such NodePort
//! has a listener, which follows the published [`LocalNodePorts`]. A NodePort without endpoints has none, and refuses at once.
//!
//! Connections live on when their listener goes, as those that rules translate do. There is a bound on all of them: past
//! it, clients wait, one of each NodePort accepted and the others in the listeners' backlogs.

mod choice;
mod connection;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::http::LISTEN_AGAIN;
use crate::http::follow::{Followed, Listeners, Place};
use crate::http::metrics::Metrics;
use crate::http::serve::{ACCEPT_AGAIN, is_of_the_client};
use crate::model::{Family, Port};
use crate::status::{LocalNodePorts, Report};
use choice::Choice;
use connection::Counted;
pub use connection::Patience;

/// How many connections there are at most, of all NodePorts together.
const MOST_CONNECTIONS: usize = 4_096;

/// How many of them one NodePort may have, so that others are served too.
const MOST_OF_ONE: usize = 1_024;

/// The relay of all NodePorts.
#[derive(Debug)]
pub struct Relay {
    ports: watch::Receiver<LocalNodePorts>,
    shared: Shared,
    node_name: String,
    reports: Option<mpsc::UnboundedSender<Report>>,
    listeners: Listeners,
    has_told_unserved: bool,
}

/// What all connections share.
#[derive(Debug, Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    budget: Arc<Semaphore>,
    patience: Patience,
}

impl Relay {
    /// A relay for what `ports` asks for, which does not listen yet. `reports` takes what should become an Event; none
    /// where there is no API server.
    pub fn new(
        ports: watch::Receiver<LocalNodePorts>,
        metrics: Arc<Metrics>,
        patience: Patience,
        node_name: String,
        reports: Option<mpsc::UnboundedSender<Report>>,
    ) -> Self {
        // A connection takes two files; half of them are left to everything else.
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let of_files = usize::try_from(files / 4).unwrap_or(usize::MAX);
        Self {
            ports,
            shared: Shared {
                metrics,
                budget: Arc::new(Semaphore::new(of_files.clamp(1, MOST_CONNECTIONS))),
                patience,
            },
            node_name,
            reports,
            listeners: Listeners::new("two Services have one NodePort; give one of them another"),
            has_told_unserved: false,
        }
    }

    /// Listens where it should, until nobody can publish any more. Must run on a tokio runtime.
    pub async fn run(mut self) {
        loop {
            self.follow().await;
            tokio::select! {
                changed = self.ports.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(LISTEN_AGAIN), if self.listeners.has_refused() => {}
            }
        }
    }

    async fn follow(&mut self) {
        let wanted = {
            let ports = self.ports.borrow_and_update();
            if let Some((frontend, service)) = ports.unserved.first_key_value()
                && !std::mem::replace(&mut self.has_told_unserved, true)
            {
                warn!(
                    "--nodeport-addresses localhost serves TCP alone: {frontend} of Service {service}, and others of \
                     UDP and SCTP, are not at the loopback address"
                );
            }
            places(&ports)
        };
        let Self {
            ports,
            shared,
            node_name,
            reports,
            listeners,
            ..
        } = self;
        let start = |(_, address): &Place, listener| {
            debug!("NodePort {address} is relayed");
            relay(*address, listener, ports.clone(), shared.clone())
        };
        let tell = |(service, address): &Place, followed| match followed {
            Followed::AfterAll => info!("Service {service}: NodePort {address} is there after all"),
            Followed::Gone => debug!("Service {service}: NodePort {address} is no longer relayed"),
            Followed::Refused(reason) => {
                warn!(
                    "Service {service}: NodePort at the loopback address: {reason}; trying again"
                );
                let Some(reports) = reports else { return };
                let note = format!("node {node_name} has no NodePort at {address}: {reason}");
                // If nobody takes reports, the agent is stopping.
                let _ = reports.send(Report {
                    service: service.clone(),
                    reason: "FailedToStartLocalNodePort",
                    action: "Listen",
                    note,
                });
            }
        };
        listeners.follow(wanted, start, tell).await;
    }
}

/// Where NodePorts are to be relayed.
fn places(ports: &LocalNodePorts) -> BTreeSet<Place> {
    let relayed = ports.relayed.iter();
    relayed
        .map(|((family, port), relayed)| {
            let address = SocketAddr::new(family.loopback(), port.get());
            (relayed.service.clone(), address)
        })
        .collect()
}

/// Takes connections of one NodePort for ever. They go on when this is dropped.
async fn relay(
    address: SocketAddr,
    listener: TcpListener,
    ports: watch::Receiver<LocalNodePorts>,
    shared: Shared,
) -> Infallible {
    let family = Family::of(address.ip());
    let of_one = Arc::new(Semaphore::new(MOST_OF_ONE));
    let mut choice = Choice::default();
    loop {
        let never_closed = "nobody closes the budget";
        let one = of_one.clone().acquire_owned().await.expect(never_closed);
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                debug!("NodePort {address}: accepting a connection: {error}");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        // Not before somebody has come: a listener that waits must not take a part of what all share.
        let budget = shared.budget.clone();
        let all = budget.acquire_owned().await.expect(never_closed);
        let port = Port::new(address.port()).and_then(|port| {
            let ports = ports.borrow();
            ports.relayed.get(&(family, port)).cloned()
        });
        // It may be gone by now: the client sees its end at once.
        let endpoints = port.map_or(Vec::new(), |port| choice.endpoints(&port));
        let counted = Counted::new(shared.metrics.clone(), family);
        let patience = shared.patience;
        tokio::spawn(async move {
            let _permits = (one, all);
            if let Err(error) = connection::relay(client, &endpoints, patience, &counted).await {
                debug!("NodePort {address}: {error}");
            }
        });
    }
}

#[cfg(test)]
mod tests;
