//! A way out of a namespace that has none: connections to a loopback address there go to a server outside.
//!
//! What the server sends is counted on the way, whoever it is for: as it is on the wire, encrypted and compressed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use anyhow::Result;
use proxyd_tests::netns::Netns;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// How much is read at once: as much as a server writes of a large list.
const BUFFER_BYTES: usize = 64 * 1024;

/// A relay at work. Dropping it closes all that goes through it.
pub(super) struct Relay {
    /// Where it listens in the namespace.
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens in a namespace, and connects to `host:port` from the one that the threads of the runtime are in. Adds
    /// what comes from there to `received`.
    pub(super) fn start(
        runtime: &Runtime,
        netns: &Netns,
        to: (String, u16),
        received: Arc<AtomicU64>,
    ) -> Result<Self> {
        let listener = netns.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let _context = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let task = runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((inside, _)) = listener.accept().await {
                connections.spawn(relay(inside, to.clone(), received.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Either side hears of a failure by the end of its connection.
async fn relay(
    mut inside: TcpStream,
    to: (String, u16),
    received: Arc<AtomicU64>,
) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    inside.set_nodelay(true)?;
    stream.set_nodelay(true)?;
    let mut outside = Counted { stream, received };
    copy_bidirectional_with_sizes(&mut inside, &mut outside, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

/// A connection of which the bytes that are read are counted.
struct Counted {
    stream: TcpStream,
    received: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        let count = u64::try_from(count).expect("a buffer is short");
        self.received.fetch_add(count, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
