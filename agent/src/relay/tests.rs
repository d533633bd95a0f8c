//! The relay at the loopback address, with endpoints of the tests' own.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::http::metrics::{Exposition, Format};
use crate::model::Frontend;
use crate::status::LocalNodePort;
use crate::testing::name;

/// How long something may take that should come at once.
const SOON: Duration = Duration::from_secs(10);

/// A relay, what it is told, and what it tells.
struct World {
    publish: watch::Sender<LocalNodePorts>,
    metrics: Arc<Metrics>,
    reports: mpsc::UnboundedReceiver<Report>,
    relay: JoinHandle<()>,
}

impl World {
    fn new(patience: Patience) -> Self {
        Self::with(patience, MOST_CONNECTIONS)
    }

    /// A relay that has this many connections at most.
    fn with(patience: Patience, connections: usize) -> Self {
        let (publish, ports) = watch::channel(LocalNodePorts::default());
        let (send, reports) = mpsc::unbounded_channel();
        let metrics = Arc::new(Metrics::default());
        let node = "node-1".to_owned();
        let mut relay = Relay::new(ports, metrics.clone(), patience, node, Some(send));
        relay.shared.budget = Arc::new(Semaphore::new(connections));
        Self {
            publish,
            metrics,
            reports,
            relay: tokio::spawn(relay.run()),
        }
    }

    /// The NodePort of a Service has these endpoints; none: it is not relayed.
    fn set(&self, at: SocketAddr, endpoints: &[SocketAddr]) {
        let key = (Family::of(at.ip()), Port::new(at.port()).unwrap());
        self.publish.send_modify(|ports| {
            ports.relayed.remove(&key);
            if !endpoints.is_empty() {
                let port = LocalNodePort {
                    service: name("web"),
                    endpoints: endpoints.to_vec(),
                    affinity: None,
                };
                ports.relayed.insert(key, Arc::new(port));
            }
        });
    }

    /// Waits until the text of the metrics has a line.
    async fn counts(&self, series: &str) {
        let exposition = Exposition::new(self.metrics.clone());
        let line = format!("\nkubeproxy_nodeport_relay_{series}\n");
        let has = || exposition.text(Format::Plain).contains(&line);
        let waited = timeout(SOON, async {
            while !has() {
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{series}"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn endpoint(ip: &str) -> (SocketAddr, TcpListener) {
    let ip: IpAddr = ip.parse().unwrap();
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// An address of the loopback interface that nobody listens on.
fn free(ip: &str) -> SocketAddr {
    let ip: IpAddr = ip.parse().unwrap();
    let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Connects once somebody listens.
async fn connected(at: SocketAddr) -> TcpStream {
    let connect = async {
        loop {
            match TcpStream::connect(at).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(SOON, connect).await.expect("a listener")
}

/// Waits until nobody listens any more.
async fn refused(at: SocketAddr) {
    let refused = async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("no listener");
}

async fn accepted(listener: &TcpListener) -> TcpStream {
    timeout(SOON, listener.accept()).await.unwrap().unwrap().0
}

async fn read_all(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    let read = timeout(SOON, stream.read_to_string(&mut text)).await;
    read.expect("an end").map(|_| text)
}

#[tokio::test]
async fn what_one_side_says_reaches_the_other_after_it_has_ended_too() {
    for ip in ["127.0.0.1", "::1"] {
        let world = World::new(Patience::default());
        let (endpoint, listener) = endpoint(ip).await;
        let at = free(ip);
        world.set(at, &[endpoint]);
        let mut client = connected(at).await;
        let mut server = accepted(&listener).await;
        // More than fits into any buffer on the way, and then the end of this direction alone.
        let question = "q".repeat(4 << 20);
        let asking = async {
            client.write_all(question.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (heard, ()) = tokio::join!(read_all(&mut server), asking);
        assert_eq!(heard.unwrap().len(), question.len());
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(read_all(&mut client).await.unwrap(), "answer");
        let family = if ip == "::1" { "IPv6" } else { "IPv4" };
        let series = |name: &str, value| format!("{name}{{ip_family=\"{family}\"}} {value}");
        world.counts(&series("connections_total", 1)).await;
        world.counts(&series("active_connections", 0)).await;
        world.counts(&series("failures_total", 0)).await;
    }
}

#[tokio::test]
async fn a_port_without_endpoints_refuses_and_what_was_connected_goes_on() {
    let world = World::new(Patience::default());
    let (endpoint, listener) = endpoint("127.0.0.1").await;
    let at = free("127.0.0.1");
    world.set(at, &[endpoint]);
    let mut client = connected(at).await;
    let mut server = accepted(&listener).await;
    world.set(at, &[]);
    refused(at).await;
    server.write_all(b"still here").await.unwrap();
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), "still here");
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_without_another_the_client_is_reset() {
    let world = World::new(Patience::default());
    let (alive, listener) = endpoint("127.0.0.1").await;
    let dead = free("127.0.0.1");
    let at = free("127.0.0.1");
    world.set(at, &[dead, alive]);
    for _ in 0..20 {
        let _client = connected(at).await;
        accepted(&listener).await;
    }
    world.counts("failures_total{ip_family=\"IPv4\"} 0").await;

    world.set(at, &[dead]);
    let mut client = connected(at).await;
    // Until the new endpoints are known there may be another connection or two to the one that is alive.
    let error = loop {
        tokio::select! {
            read = read_all(&mut client) => break read.unwrap_err(),
            accepted = listener.accept() => {
                drop(accepted);
                client = connected(at).await;
            }
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    world.counts("failures_total{ip_family=\"IPv4\"} 1").await;
}

#[tokio::test]
async fn ports_that_nobody_calls_take_no_part_of_the_bound() {
    let world = World::with(Patience::default(), 1);
    let (endpoint, listener) = endpoint("127.0.0.1").await;
    let ports = [free("127.0.0.1"), free("127.0.0.1"), free("127.0.0.1")];
    for at in ports {
        world.set(at, &[endpoint]);
    }
    // Each in turn, while the others wait.
    for at in ports {
        let client = connected(at).await;
        let mut server = accepted(&listener).await;
        drop(client);
        assert_eq!(read_all(&mut server).await.unwrap(), "");
    }
    // One that comes while there is another is served when that has ended.
    let first = connected(ports[0]).await;
    let mut to_first = accepted(&listener).await;
    let _second = connected(ports[1]).await;
    world
        .counts("active_connections{ip_family=\"IPv4\"} 1")
        .await;
    drop(first);
    assert_eq!(read_all(&mut to_first).await.unwrap(), "");
    drop(to_first);
    accepted(&listener).await;
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    let world = World::new(Patience::default());
    let (endpoint, listener) = endpoint("127.0.0.1").await;
    let at = free("127.0.0.1");
    world.set(at, &[endpoint]);
    let mut client = connected(at).await;
    let server = accepted(&listener).await;
    server.set_zero_linger().unwrap();
    drop(server);
    let error = read_all(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_does_not_last_for_ever() {
    let short = Patience {
        idle: Duration::from_millis(300),
        half_closed: Duration::from_millis(100),
        ..Patience::default()
    };
    let world = World::new(short);
    let (endpoint, listener) = endpoint("127.0.0.1").await;
    let at = free("127.0.0.1");
    world.set(at, &[endpoint]);
    let mut client = connected(at).await;
    let mut server = accepted(&listener).await;
    let began = tokio::time::Instant::now();
    assert!(read_all(&mut client).await.is_err() && read_all(&mut server).await.is_err());
    assert!(began.elapsed() >= short.idle, "{:?}", began.elapsed());

    let mut client = connected(at).await;
    let mut server = accepted(&listener).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), "");
    let began = tokio::time::Instant::now();
    assert!(read_all(&mut client).await.is_err());
    assert!(began.elapsed() < short.idle, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_harms_nobody_else() {
    let mut world = World::new(Patience::default());
    let (endpoint, listener) = endpoint("127.0.0.1").await;
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap();
    let free = free("127.0.0.1");
    world.set(taken, &[endpoint]);
    world.set(free, &[endpoint]);
    let report = timeout(SOON, world.reports.recv()).await.unwrap().unwrap();
    assert_eq!(report.reason, "FailedToStartLocalNodePort");
    assert!(
        report.note.contains(&format!("{taken}: ")),
        "{}",
        report.note
    );
    let _client = connected(free).await;
    accepted(&listener).await;
}

/// Time stands still while there is work, and else jumps to the next timer.
#[tokio::test(start_paused = true)]
async fn a_port_that_was_taken_is_relayed_once_it_is_free() {
    let mut world = World::new(Patience::default());
    let (endpoint, listener) = endpoint("127.0.0.1").await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    world.set(taken, &[endpoint]);
    world.reports.recv().await.unwrap();
    drop(holder);
    let mut client = loop {
        tokio::time::advance(LISTEN_AGAIN).await;
        if let Ok(client) = TcpStream::connect(taken).await {
            break client;
        }
    };
    let (server, _) = listener.accept().await.unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[test]
fn places_are_those_of_both_families() {
    let mut ports = LocalNodePorts::default();
    for (family, service) in [(Family::V4, "a"), (Family::V6, "b")] {
        let port = LocalNodePort {
            service: name(service),
            endpoints: Vec::new(),
            affinity: None,
        };
        let key = (family, Port::new(30_080).unwrap());
        ports.relayed.insert(key, Arc::new(port));
    }
    let frontend = Frontend::NodePort {
        family: Family::V4,
        protocol: crate::model::Protocol::Udp,
        port: Port::new(30_053).unwrap(),
    };
    ports.unserved.insert(frontend, name("dns"));
    let expected = [("a", "127.0.0.1:30080"), ("b", "[::1]:30080")];
    let expected = expected.map(|(service, at)| (name(service), at.parse().unwrap()));
    assert_eq!(places(&ports), expected.into());
}
