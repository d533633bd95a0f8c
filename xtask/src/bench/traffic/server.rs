//! The server pod's side of the traffic: takes connections, answers, or swallows what comes.
//!
//! A thread for each port. They have no state and end with this process.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::Result;
use nix::sys::socket::{Backlog, listen};
use proxyd_tests::netns::Netns;

/// The ports of a server, as distances from the first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Port {
    /// Takes TCP connections, and does nothing with them.
    Connect = 0,
    /// Answers every byte of a TCP connection.
    Exchange = 1,
    /// Reads a TCP connection to its end, and then says so with a byte.
    Bulk = 2,
    /// Answers every datagram.
    Datagram = 3,
}

impl Port {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Connect, Self::Exchange, Self::Bulk, Self::Datagram];

    /// The protocol, in Kubernetes' words.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Connect | Self::Exchange | Self::Bulk => "TCP",
            Self::Datagram => "UDP",
        }
    }

    /// Its number, where the first of them is `first`.
    pub(super) fn number(self, first: u16) -> u16 {
        first + self as u16
    }
}

/// How many connections may wait to be accepted: the thread that does may have no CPU for a while. 128, as the
/// standard library has it, would drop the next SYN, and the client would send it again after a second.
const BACKLOG: i32 = 4096;

/// How many connections are kept before the first is closed. The client has reset it by then, so nothing is sent.
const KEPT: usize = 64;

const BULK_BUFFER: usize = 256 * 1024;

/// Serves all ports from `first` up in a namespace. They are open when this returns.
pub(super) fn start(netns: &Netns, first: u16) -> Result<()> {
    let bind = |port: Port| -> io::Result<TcpListener> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.number(first)))?;
        // Again, for a longer queue.
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(listener)
    };
    let [connect, exchange, bulk] = netns.enter(|| -> io::Result<_> {
        Ok([
            bind(Port::Connect)?,
            bind(Port::Exchange)?,
            bind(Port::Bulk)?,
        ])
    })?;
    let socket =
        netns.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, Port::Datagram.number(first))))?;
    thread::spawn(move || keep(&connect));
    thread::spawn(move || each(&exchange, answer));
    thread::spawn(move || each(&bulk, swallow));
    thread::spawn(move || answer_datagrams(&socket));
    Ok(())
}

fn keep(listener: &TcpListener) {
    let mut kept = VecDeque::with_capacity(KEPT);
    for stream in listener.incoming() {
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(stream);
    }
}

/// Serves one connection after the other: a client has one at a time. One that fails is the client's to report.
fn each(listener: &TcpListener, serve: fn(TcpStream) -> io::Result<()>) {
    for stream in listener.incoming() {
        drop(stream.and_then(serve));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = [0];
    while stream.read(&mut question)? > 0 {
        stream.write_all(&question)?;
    }
    Ok(())
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BUFFER];
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[0])
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut question = [0; 64];
    loop {
        // An error is an ICMP message about an earlier answer.
        if let Ok((length, client)) = socket.recv_from(&mut question) {
            drop(socket.send_to(&question[..length], client));
        }
    }
}
