//! Serving HTTP on a listening socket, and getting one in the first place.
//!
//! These ports are open to the network, so a client costs little: connections are few, short, and closed when
//! nothing comes. Dropping the future closes the listener and every connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::LISTEN_AGAIN;
use super::listen::listen;

/// How many connections a listener has at once; more wait in its backlog.
const MOST_CONNECTIONS: usize = 128;

/// How long a client may take to send a request, and to read the last answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection is kept for more requests.
const LONGEST_CONNECTION: Duration = Duration::from_secs(120);

/// How long to wait when the kernel has no file descriptor left for a connection.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A server at an address from a setting.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// What it serves, for the log.
    pub what: &'static str,
    /// The setting that says where: a flag, or a field and its file.
    pub place: String,
    /// Where.
    pub address: SocketAddr,
}

impl Endpoint {
    /// Serves for ever. While the address is refused, says so once for each reason and tries again every 5 s,
    /// as kube-proxy does.
    pub async fn serve(self, router: Router) -> Infallible {
        let Self {
            what,
            place,
            address,
        } = self;
        let mut reported = String::new();
        loop {
            match listen(address) {
                Ok(listener) => {
                    info!(
                        "{what} at http://{}",
                        listener.local_addr().unwrap_or(address)
                    );
                    return serve(listener, router).await;
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != reported {
                        warn!("{place}: {text}; no {what} until then, trying again");
                        reported = text;
                    }
                    sleep(LISTEN_AGAIN).await;
                }
            }
        }
    }
}

/// Serves on a listener for ever.
pub async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        let is_free = connections.len() < MOST_CONNECTIONS;
        tokio::select! {
            accepted = listener.accept(), if is_free => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(answer(stream, router.clone()));
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    debug!("accepting a connection: {error}");
                    sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A server at work. Dropping it closes its listener and connections soon, [`Listening::stop`] for certain.
#[derive(Debug)]
pub(crate) struct Listening(JoinHandle<Infallible>);

impl Listening {
    /// Starts a server on the tokio runtime.
    pub(crate) fn start(server: impl Future<Output = Infallible> + Send + 'static) -> Self {
        Self(tokio::spawn(server))
    }

    /// Stops it; its port is free when this returns.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        // What ended the task does not matter now.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a connection was gone before it was accepted.
pub(crate) fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// Answers the requests of one connection. Its errors concern the client alone.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(LONGEST_CONNECTION) => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(PATIENCE, connection).await;
}

#[cfg(test)]
mod tests {
    use super::super::testing::{free_address, get, serve_here, try_get};
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn hello() -> Router {
        Router::new().fallback(|| async { "hello" })
    }

    /// Time stands still while there is work, and else jumps to the next timer.
    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_taken_is_served_once_it_is_free() {
        let address = free_address();
        let holder = listen(address).unwrap();
        let endpoint = Endpoint {
            what: "greetings",
            place: "--greet-at".to_owned(),
            address,
        };
        let server = tokio::spawn(endpoint.serve(hello()));
        sleep_past(LISTEN_AGAIN * 2).await;
        assert!(!server.is_finished());
        drop(holder);
        sleep_past(LISTEN_AGAIN).await;
        assert_eq!(get(address, "/").await.body, "hello");
        server.abort();
    }

    /// Moves the stopped clock on, and lets what waited for it run.
    async fn sleep_past(duration: Duration) {
        tokio::time::advance(duration + Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_sent_away() {
        let (address, _server) = serve_here(hello());
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        let before = tokio::time::Instant::now();
        let mut rest = Vec::new();
        // Whether it is a clean end or a reset does not matter.
        let _ = stream.read_to_end(&mut rest).await;
        let waited = before.elapsed();
        assert!(waited >= PATIENCE && waited < PATIENCE * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_idle_clients_do_not_use_up_the_files_of_the_agent() {
        let (address, server) = serve_here(hello());
        let mut clients = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut byte = [0];
        let patience = Duration::from_secs(1);
        timeout(patience, late.read(&mut byte)).await.unwrap_err();
        clients.pop();
        assert_eq!(late.read(&mut byte).await.unwrap(), 1);
        drop(server);
    }

    #[tokio::test]
    async fn the_end_of_a_server_is_the_end_of_its_connections() {
        let (address, server) = serve_here(hello());
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut buffer = [0; 512];
        assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
        server.stop().await;
        // At once, not when the server would have lost patience.
        let end = timeout(PATIENCE / 2, stream.read(&mut buffer)).await;
        assert_eq!(end.expect("a closed connection").unwrap_or(0), 0);
        try_get(address, "/").await.unwrap_err();
    }
}
