//! The echo server: answers every line with its name and the address that it saw.
//!
//! Each server is a thread with a runtime of its own; its sockets were bound inside the namespace and stay there.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread::{self, JoinHandle};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::oneshot;

use super::sctp;
use crate::netns::Netns;

/// A server on one port of a namespace: TCP, UDP and SCTP, both families, every address. Stops when it is dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts a server that calls itself `name`. It accepts connections before this returns.
    ///
    /// # Panics
    /// If the port is taken.
    pub fn start(netns: &Netns, name: &str, port: u16) -> Self {
        let (listener, socket, [v4, v6]) = netns
            .enter(|| bind(port))
            .unwrap_or_else(|error| panic!("{name} cannot listen on port {port}: {error}"));
        let (stop, stopped) = oneshot::channel();
        let name = name.to_owned();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("a runtime needs a few descriptors only");
            let answer_sctp = |peer| answer(&name, peer);
            // Connections are tasks of this runtime, so they end with it.
            runtime.block_on(async {
                tokio::select! {
                    result = serve_tcp(listener, &name) => panic!("{name}: {result:?}"),
                    result = serve_udp(socket, &name) => panic!("{name}: {result:?}"),
                    result = sctp::serve(v4, port, answer_sctp) => panic!("{name}: {result:?}"),
                    result = sctp::serve(v6, port, answer_sctp) => panic!("{name}: {result:?}"),
                    _ = stopped => (),
                }
            });
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Joined, so that the port is closed when this returns. A panic of the server's has been printed already.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Sockets that take both families (`bindv6only` is 0 in a new namespace), and those for SCTP.
fn bind(port: u16) -> io::Result<(TcpListener, UdpSocket, [UdpSocket; 2])> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok((listener, socket, sctp::listen()?))
}

async fn serve_tcp(listener: TcpListener, name: &str) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut stream, peer) = listener.accept().await?;
        let answer = answer(name, peer);
        tokio::spawn(async move {
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read).lines();
            // A client may go at any time; that is no failure of the server's.
            while let Ok(Some(_)) = lines.next_line().await {
                if write.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn serve_udp(socket: UdpSocket, name: &str) -> io::Result<()> {
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let mut question = [0; 64];
    loop {
        let (_, peer) = socket.recv_from(&mut question).await?;
        // A reply that cannot be sent is like one that was lost on the way.
        socket
            .send_to(answer(name, peer).as_bytes(), peer)
            .await
            .ok();
    }
}

/// The line to answer with. IPv4 clients look like `::ffff:a.b.c.d` to the socket and like themselves in the answer.
fn answer(name: &str, peer: SocketAddr) -> String {
    format!(
        "{name} {}\n",
        SocketAddr::new(peer.ip().to_canonical(), peer.port())
    )
}
