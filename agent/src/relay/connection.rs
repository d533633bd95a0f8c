//! One connection: from a client at the loopback address to an endpoint, and what both say, until both have ended.
//!
//! The end of one direction is passed on and the other goes on; what breaks one side off resets the other. A connection
//! on which nothing moves takes no buffer, and does not last for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::http::metrics::Metrics;
use crate::model::Family;

/// How much is read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long all tries to reach an endpoint may take together.
    pub connect: Duration,
    /// How long nothing may move on a connection, as with the kernel's tracking of those that rules translate.
    pub idle: Duration,
    /// The same once one side has said all.
    pub half_closed: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(24 * 3_600),
            half_closed: Duration::from_secs(3_600),
        }
    }
}

/// Why a connection did not end as both sides wished.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// There is no endpoint any more.
    #[error("no endpoint is left")]
    NoEndpoint,
    /// The last endpoint that was tried did not take it.
    #[error("connecting to the endpoint {endpoint}: {source}")]
    Unreachable {
        /// The endpoint.
        endpoint: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One side broke off.
    #[error("broken off: {0}")]
    Aborted(#[source] io::Error),
    /// Nothing moved for too long.
    #[error("nothing was sent for too long")]
    Idle,
}

/// A connection in the metrics: dropping it says that it is over.
#[derive(Debug)]
pub(super) struct Counted {
    metrics: Arc<Metrics>,
    family: Family,
}

impl Counted {
    pub(super) fn new(metrics: Arc<Metrics>, family: Family) -> Self {
        metrics.relay_begun(family);
        Self { metrics, family }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.relay_ended(self.family);
    }
}

/// Relays a client to the first of these endpoints that takes it.
pub(super) async fn relay(
    mut client: TcpStream,
    endpoints: &[SocketAddr],
    patience: Patience,
    counted: &Counted,
) -> Result<(), Broken> {
    let result = match connect(endpoints, patience.connect).await {
        Ok(mut endpoint) => {
            let result = both_ways(&mut client, &mut endpoint, patience).await;
            if result.is_err() {
                reset(&endpoint);
            }
            result
        }
        Err(error) => {
            counted.metrics.relay_failed(counted.family);
            Err(error)
        }
    };
    if result.is_err() {
        reset(&client);
    }
    result
}

/// Tries one endpoint after the other; each has its share of the time.
async fn connect(endpoints: &[SocketAddr], patience: Duration) -> Result<TcpStream, Broken> {
    let share = patience / u32::try_from(endpoints.len().max(1)).unwrap_or(u32::MAX);
    let mut broken = Broken::NoEndpoint;
    for endpoint in endpoints {
        let deadline = Instant::now() + share;
        let connected = timeout_at(deadline, TcpStream::connect(endpoint)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok(stream) => return Ok(stream),
            Err(source) => {
                broken = Broken::Unreachable {
                    endpoint: *endpoint,
                    source,
                };
            }
        }
    }
    Err(broken)
}

async fn both_ways(
    client: &mut TcpStream,
    endpoint: &mut TcpStream,
    patience: Patience,
) -> Result<(), Broken> {
    for stream in [&*client, &*endpoint] {
        // Small answers are not held back a second time.
        stream.set_nodelay(true).map_err(Broken::Aborted)?;
    }
    let (from_client, to_client) = client.split();
    let (from_endpoint, to_endpoint) = endpoint.split();
    let (moved, moves) = watch::channel(State {
        at: Instant::now(),
        is_half_closed: false,
    });
    let copy = async {
        let up = one_way(from_client, to_endpoint, &moved);
        let down = one_way(from_endpoint, to_client, &moved);
        let ended = futures::try_join!(up, down);
        ended.map(drop).map_err(Broken::Aborted)
    };
    tokio::select! {
        ended = copy => ended,
        () = idle(moves, patience) => Err(Broken::Idle),
    }
}

/// When something moved last.
#[derive(Debug, Clone, Copy)]
struct State {
    at: Instant,
    is_half_closed: bool,
}

/// Ends when nothing has moved for too long.
async fn idle(moves: watch::Receiver<State>, patience: Patience) {
    loop {
        let State { at, is_half_closed } = *moves.borrow();
        let patience_now = if is_half_closed {
            patience.half_closed
        } else {
            patience.idle
        };
        let until = at + patience_now;
        if until <= Instant::now() {
            return;
        }
        // What moves meanwhile is seen afterwards; that a side has ended makes the wait shorter.
        sleep_until(until.min(Instant::now() + patience.half_closed)).await;
    }
}

/// Passes on what comes, and its end.
async fn one_way(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    moved: &watch::Sender<State>,
) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let length = match from.try_read_buf(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if length == 0 {
            moved.send_modify(|state| {
                state.at = Instant::now();
                state.is_half_closed = true;
            });
            return to.shutdown().await;
        }
        to.write_all(&buffer).await?;
        moved.send_modify(|state| state.at = Instant::now());
    }
}

/// Makes the other side see that the connection broke off, rather than that all was said.
fn reset(stream: &TcpStream) {
    // Where it cannot be had, the socket ends in the usual way.
    let _ = stream.set_zero_linger();
}
