//! A way out of a namespace that has none: connections to a loopback address there go to a server outside.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Result;
use proxyd_tests::netns::Netns;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// A relay at work. Dropping it closes all that goes through it.
pub(super) struct Relay {
    /// Where it listens in the namespace.
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens in a namespace, and connects to `host:port` from the one that the threads of the runtime are in.
    pub(super) fn start(runtime: &Runtime, netns: &Netns, to: (String, u16)) -> Result<Self> {
        let listener = netns.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let _context = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let task = runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((inside, _)) = listener.accept().await {
                connections.spawn(relay(inside, to.clone()));
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
async fn relay(mut inside: TcpStream, to: (String, u16)) -> std::io::Result<()> {
    let mut outside = TcpStream::connect(to).await?;
    inside.set_nodelay(true)?;
    outside.set_nodelay(true)?;
    copy_bidirectional(&mut inside, &mut outside).await?;
    Ok(())
}
