//! Listeners that come, move and go with the published health checks, asked over loopback.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;

use super::super::Clock;
use super::super::listen::listen;
use super::super::testing::{ask_until, free_address, get, try_get};
use super::*;
use crate::model::{Family, Port};
use crate::status::{ServiceHealth, Status};
use crate::testing::name;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Servers at work on 127.0.0.1, and what they are told.
struct World {
    checks: watch::Sender<HealthChecks>,
    status: watch::Sender<Status>,
    reports: mpsc::UnboundedReceiver<Report>,
    clock: Clock,
    servers: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let clock = Clock::new(Instant::now());
        let mut status = Status::default();
        for family in Family::ALL {
            status.synced(family, clock.now());
        }
        let (status, status_seen) = watch::channel(status);
        let (checks, checks_seen) = watch::channel(HealthChecks {
            addresses: ["127.0.0.1".parse().unwrap()].into(),
            services: BTreeMap::new(),
        });
        let (sender, reports) = mpsc::unbounded_channel();
        let health = Health::new(status_seen, clock, TIMEOUT);
        let node = "node-1".to_owned();
        let servers = ServiceHealthServers::new(checks_seen, health, node, Some(sender));
        Self {
            checks,
            status,
            reports,
            clock,
            servers: tokio::spawn(servers.run()),
        }
    }

    /// The Service has this port, where it listens, and so many endpoints here.
    fn set(&self, service: &str, address: SocketAddr, local_endpoints: usize) {
        let health = ServiceHealth {
            port: Port::new(address.port()).unwrap(),
            local_endpoints,
        };
        self.checks.send_modify(|checks| {
            checks.services.insert(name(service), health);
        });
    }

    fn remove(&self, service: &str) {
        self.checks.send_modify(|checks| {
            checks.services.remove(&name(service));
        });
    }

    /// Waits until a Service is served at an address.
    async fn serves(&self, service: &str, address: SocketAddr) {
        let is_right = |answer: &std::io::Result<_>| is_about(answer, service);
        ask_until(address, is_right).await.unwrap();
    }

    /// Waits until nobody is served at an address.
    async fn is_silent(&self, address: SocketAddr) {
        ask_until(address, Result::is_err).await.unwrap_err();
    }
}

fn is_about(answer: &std::io::Result<super::super::testing::Answer>, service: &str) -> bool {
    answer
        .as_ref()
        .is_ok_and(|answer| answer.json()["service"]["name"] == service)
}

#[tokio::test]
async fn answers_say_how_many_endpoints_are_here() {
    let world = World::new();
    let address = free_address();
    world.set("web", address, 2);
    world.serves("web", address).await;
    let answer = get(address, "/any/path?at=all").await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.header("x-load-balancing-endpoint-weight"), "2");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    let expected = json!({
        "service": { "namespace": "default", "name": "web" },
        "localEndpoints": 2,
        "serviceProxyHealthy": true,
    });
    assert_eq!(answer.json(), expected);

    world.set("web", address, 0);
    let answer = get(address, "/").await;
    assert_eq!(answer.code, 503);
    assert_eq!(answer.header("x-load-balancing-endpoint-weight"), "0");
    assert_eq!(answer.json()["localEndpoints"], 0);
}

#[tokio::test]
async fn a_proxy_out_of_sync_is_not_healthy_for_any_service() {
    let world = World::new();
    let address = free_address();
    world.set("web", address, 1);
    world.serves("web", address).await;
    // The node's fate is for /healthz to tell.
    assert!(!world.status.borrow().node_eligible);
    assert_eq!(get(address, "/").await.code, 200);

    world.status.send_replace(Status::default());
    let answer = get(address, "/").await;
    assert_eq!(answer.code, 503);
    assert_eq!(answer.json()["serviceProxyHealthy"], false);
    assert_eq!(answer.json()["localEndpoints"], 1);

    world.status.send_modify(|status| {
        for family in Family::ALL {
            status.synced(family, world.clock.now());
        }
    });
    assert_eq!(get(address, "/").await.code, 200);
}

#[tokio::test]
async fn listeners_come_move_and_go_with_their_services() {
    let world = World::new();
    let [first, second, third] = [free_address(), free_address(), free_address()];
    world.set("web", first, 1);
    world.set("api", second, 1);
    world.serves("web", first).await;
    world.serves("api", second).await;

    world.set("web", third, 1);
    world.serves("web", third).await;
    world.is_silent(first).await;
    assert_eq!(get(second, "/").await.code, 200);

    world.remove("api");
    world.is_silent(second).await;
    assert_eq!(get(third, "/").await.code, 200);
}

#[tokio::test]
async fn two_services_may_change_ports_with_each_other() {
    let mut world = World::new();
    let [first, second] = [free_address(), free_address()];
    world.set("web", first, 1);
    world.set("api", second, 1);
    world.serves("web", first).await;
    world.serves("api", second).await;
    let swapped = |checks: &mut HealthChecks| {
        let ports = [("web", second), ("api", first)];
        checks.services = ports
            .map(|(service, address)| {
                let port = Port::new(address.port()).unwrap();
                let health = ServiceHealth {
                    port,
                    local_endpoints: 1,
                };
                (name(service), health)
            })
            .into();
    };
    world.checks.send_modify(swapped);
    world.serves("web", second).await;
    world.serves("api", first).await;
    assert_eq!(world.reports.try_recv().ok(), None, "no port was taken");
}

#[tokio::test]
async fn a_listener_that_stays_keeps_its_connections() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::new();
    let [address, other] = [free_address(), free_address()];
    world.set("web", address, 1);
    world.serves("web", address).await;
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut ask = async || {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    assert!(ask().await.contains("weight: 1\r\n"));
    world.set("web", address, 7);
    world.set("api", other, 1);
    world.serves("api", other).await;
    let answer = ask().await;
    assert!(answer.contains("weight: 7\r\n"), "{answer}");
}

#[tokio::test]
async fn an_empty_list_of_addresses_is_all_of_both_families() {
    let world = World::new();
    let address = free_address();
    world.checks.send_modify(|checks| checks.addresses.clear());
    world.set("web", address, 1);
    world.serves("web", address).await;
    world
        .serves(
            "web",
            SocketAddr::new("::1".parse().unwrap(), address.port()),
        )
        .await;
}

#[tokio::test]
async fn listeners_follow_the_nodes_addresses() {
    let world = World::new();
    let first = free_address();
    let second = SocketAddr::new("127.0.0.2".parse().unwrap(), first.port());
    world.set("web", first, 1);
    world.serves("web", first).await;
    try_get(second, "/").await.unwrap_err();
    world
        .checks
        .send_modify(|checks| checks.addresses = [second.ip()].into());
    world.serves("web", second).await;
    world.is_silent(first).await;
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_taken_is_reported_once_and_tried_again() {
    let mut world = World::new();
    let [taken, free] = [free_address(), free_address()];
    let holder = listen(taken).unwrap();
    world.set("web", taken, 1);
    world.set("api", free, 1);
    world.serves("api", free).await;
    let report = world.reports.recv().await.unwrap();
    assert_eq!(report.service, name("web"));
    assert_eq!(report.reason, "FailedToStartServiceHealthcheck");
    let expected = format!(
        "node node-1 failed to start healthcheck \"default/web\" on port {}: listening on {taken}: Address",
        taken.port()
    );
    assert!(report.note.starts_with(&expected), "{}", report.note);

    pass(LISTEN_AGAIN * 3).await;
    assert_eq!(
        world.reports.try_recv().ok(),
        None,
        "the same again is no news"
    );

    drop(holder);
    pass(LISTEN_AGAIN).await;
    world.serves("web", taken).await;
    assert_eq!(world.reports.try_recv().ok(), None);
}

/// Moves the stopped clock on, and lets what waited for it run.
async fn pass(time: Duration) {
    tokio::time::advance(time + Duration::from_millis(1)).await;
    tokio::task::yield_now().await;
}

#[tokio::test]
async fn of_two_services_with_one_port_the_other_is_told_which_has_it() {
    let mut world = World::new();
    let address = free_address();
    world.set("first", address, 1);
    world.serves("first", address).await;
    world.set("second", address, 1);
    let report = world.reports.recv().await.unwrap();
    assert_eq!(report.service, name("second"));
    let expected = format!(
        "proxyd itself has port {} already, for Service default/first",
        address.port()
    );
    assert!(report.note.contains(&expected), "{}", report.note);
    // At another address too, where one of them is all.
    world.checks.send_modify(|checks| checks.addresses.clear());
    world.remove("first");
    world.serves("second", address).await;
}

#[tokio::test]
async fn servers_end_when_nobody_publishes_any_more() {
    let world = World::new();
    let address = free_address();
    world.set("web", address, 1);
    world.serves("web", address).await;
    drop(world.checks);
    world.servers.await.unwrap();
    ask_until(address, Result::is_err).await.unwrap_err();
}
