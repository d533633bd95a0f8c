//! The client's side of the traffic: loads of some milliseconds each, and the figures that they give.
//!
//! All of it runs on threads inside the client's namespace. Connections are closed as applications do, by a FIN of the
//! client and then one of the server, so they stay in TIME_WAIT with the client, and are tracked for as long as that on
//! the node. Ports do not run out: the client's kernel uses them again after a second ([`REUSE`]). Every wait has a time-out.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::super::percentile;
use super::server::Port;

/// How long a single step of a load may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets a namespace connect from a port whose last connection, to the same address, has been in TIME_WAIT for a second
/// (ip-sysctl.rst): whole rounds take less than the minute that they would have to wait.
pub(super) const REUSE: (&str, &str) = ("net/ipv4/tcp_tw_reuse", "1");

/// How much of each load is not counted: its thread is new, and has to come to its CPU.
const WARM_UP: usize = 5;

/// Connections by one client.
const CONNECTS: usize = 200;

/// Clients that connect at the same time, and the connections of each.
const CLIENTS: usize = 2;
const CONNECTS_OF_EACH: usize = 200;

const EXCHANGES: usize = 500;

const BULK_BYTES: usize = 64 * 1024 * 1024;
const BULK_CHUNK: usize = 256 * 1024;

const DATAGRAMS: usize = 100;

/// What the client does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// One client connects, again and again.
    Connect,
    /// Several clients do.
    Connects,
    /// A byte there, a byte back, on one connection.
    Exchange,
    /// Many bytes there, on one connection.
    Bulk,
    /// A datagram there, a datagram back, each from a new port.
    Datagram,
}

/// Every load.
pub(super) const ALL: &[Load] = &[
    Load::Connect,
    Load::Connects,
    Load::Exchange,
    Load::Bulk,
    Load::Datagram,
];

/// What is told of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// Connections per second, of several clients.
    Connects,
    /// From the SYN to the answer, that is, the first packet of a flow there and the one back.
    ConnectP50,
    /// The same.
    ConnectP99,
    /// Requests per second, with their answers.
    Requests,
    /// Gigabits per second.
    Bulk,
    /// The first datagram of a flow there and the one back.
    DatagramP50,
    /// The same.
    DatagramP99,
}

impl Figure {
    /// All of them, in the order in which they are printed.
    pub(super) const ALL: [Self; 7] = [
        Self::Connects,
        Self::ConnectP50,
        Self::ConnectP99,
        Self::Requests,
        Self::Bulk,
        Self::DatagramP50,
        Self::DatagramP99,
    ];

    /// What readers see.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Connects => "connects/s",
            Self::ConnectP50 => "connect p50",
            Self::ConnectP99 => "connect p99",
            Self::Requests => "requests/s",
            Self::Bulk => "bulk",
            Self::DatagramP50 => "first datagram p50",
            Self::DatagramP99 => "first datagram p99",
        }
    }

    /// Its name in JSON, without its unit, and the unit.
    pub(super) fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Connects => ("connects", "per_second"),
            Self::ConnectP50 => ("connect_p50", "us"),
            Self::ConnectP99 => ("connect_p99", "us"),
            Self::Requests => ("requests", "per_second"),
            Self::Bulk => ("bulk", "gbit_per_second"),
            Self::DatagramP50 => ("first_datagram_p50", "us"),
            Self::DatagramP99 => ("first_datagram_p99", "us"),
        }
    }

    /// A value for readers, with its unit.
    pub(super) fn shown(self, value: f64) -> String {
        match self {
            Self::Connects | Self::Requests => format!("{value:.0}"),
            Self::ConnectP50 | Self::ConnectP99 | Self::DatagramP50 | Self::DatagramP99 => {
                format!("{value:.1} µs")
            }
            Self::Bulk => format!("{value:.1} Gbit/s"),
        }
    }
}

/// A value for each figure.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures([f64; Figure::ALL.len()]);

impl Figures {
    /// A value, in the figure's unit.
    pub(super) fn get(&self, figure: Figure) -> f64 {
        self.0[figure as usize]
    }

    /// The same value for all.
    #[cfg(test)]
    pub(super) fn all(value: f64) -> Self {
        Self([value; Figure::ALL.len()])
    }

    fn set(&mut self, figure: Figure, value: f64) {
        self.0[figure as usize] = value;
    }

    fn set_latencies(&mut self, figures: [Figure; 2], mut latencies: Vec<Duration>) {
        for (figure, percent) in figures.into_iter().zip([50, 99]) {
            let value = percentile(&mut latencies, percent).as_secs_f64() * 1e6;
            self.set(figure, value);
        }
    }
}

/// Puts a load on the calling thread's namespace, to the server whose ports begin at `first`, and notes the figures.
pub(super) fn run(load: Load, ip: IpAddr, first: u16, figures: &mut Figures) -> Result<()> {
    let to = |port: Port| SocketAddr::new(ip, port.number(first));
    match load {
        Load::Connect => {
            let latencies = connects(to(Port::Connect), CONNECTS)?;
            figures.set_latencies([Figure::ConnectP50, Figure::ConnectP99], latencies);
        }
        Load::Connects => figures.set(Figure::Connects, connects_rate(to(Port::Connect))?),
        Load::Exchange => figures.set(Figure::Requests, exchanges_rate(to(Port::Exchange))?),
        Load::Bulk => figures.set(Figure::Bulk, bulk_rate(to(Port::Bulk))?),
        Load::Datagram => {
            let latencies = datagrams(to(Port::Datagram))?;
            figures.set_latencies([Figure::DatagramP50, Figure::DatagramP99], latencies);
        }
    }
    Ok(())
}

/// Connects once, and tells how long that took. The socket is made before.
pub(super) fn connect_once(to: SocketAddr) -> Result<(TcpStream, Duration)> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // This is what limits connect(2): socket(7).
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    let stream = TcpStream::from(socket);
    let address = SockaddrStorage::from(to);
    let started = Instant::now();
    connect(stream.as_raw_fd(), &address).with_context(|| format!("connecting to {to}"))?;
    let took = started.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok((stream, took))
}

fn connects(to: SocketAddr, count: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(count);
    for number in 0..count + WARM_UP {
        let (_, took) = connect_once(to)?;
        if number >= WARM_UP {
            latencies.push(took);
        }
    }
    Ok(latencies)
}

fn connects_rate(to: SocketAddr) -> Result<f64> {
    let ready = Barrier::new(CLIENTS);
    let client = || {
        let warm_up = connects(to, 0);
        ready.wait();
        warm_up?;
        let started = Instant::now();
        for _ in 0..CONNECTS_OF_EACH {
            connect_once(to)?;
        }
        anyhow::Ok((started, Instant::now()))
    };
    let spans = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let join = |client: thread::ScopedJoinHandle<'_, _>| client.join();
        clients.into_iter().map(join).collect::<Vec<_>>()
    });
    let mut all = None;
    for span in spans {
        let (started, ended) = span.expect("the client does not panic")?;
        let (first, last) = all.unwrap_or((started, ended));
        all = Some((first.min(started), last.max(ended)));
    }
    let (first, last) = all.context("there are clients")?;
    Ok((CLIENTS * CONNECTS_OF_EACH) as f64 / (last - first).as_secs_f64())
}

fn exchanges_rate(to: SocketAddr) -> Result<f64> {
    let (mut stream, _) = connect_once(to)?;
    stream.set_nodelay(true)?;
    let mut exchange = || -> Result<()> {
        let mut answer = [0];
        stream.write_all(&[1])?;
        stream.read_exact(&mut answer)?;
        Ok(())
    };
    for _ in 0..WARM_UP {
        exchange()?;
    }
    let started = Instant::now();
    for _ in 0..EXCHANGES {
        exchange()?;
    }
    Ok(EXCHANGES as f64 / started.elapsed().as_secs_f64())
}

/// The time ends with the server's byte, which comes when it has read everything.
fn bulk_rate(to: SocketAddr) -> Result<f64> {
    let (mut stream, _) = connect_once(to)?;
    let chunk = vec![0; BULK_CHUNK];
    let started = Instant::now();
    for _ in 0..BULK_BYTES / BULK_CHUNK {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(BULK_BYTES as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9)
}

fn datagrams(to: SocketAddr) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(DATAGRAMS);
    for number in 0..DATAGRAMS + WARM_UP {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        let started = Instant::now();
        socket.send(&[1])?;
        let length = socket.recv(&mut [0; 64])?;
        let took = started.elapsed();
        ensure!(length == 1, "an answer of {length} bytes");
        if number >= WARM_UP {
            latencies.push(took);
        }
    }
    Ok(latencies)
}
