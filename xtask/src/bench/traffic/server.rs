//! The server pod's side of the traffic: takes connections, answers, or swallows what comes.
//!
//! A thread for each port. They have no state and end with this process.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::Result;
use nix::sys::socket::{Backlog, listen};
use proxyd_tests::netns::Netns;

/// The ports of a server, as distances from the first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Port {
    /// Takes TCP connections, and closes each when its client has.
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
    thread::spawn(move || each(&connect, await_end));
    thread::spawn(move || each(&exchange, answer));
    thread::spawn(move || each(&bulk, swallow));
    thread::spawn(move || answer_datagrams(&socket));
    Ok(())
}

/// Serves one connection after the other: clients have one at a time, and do not need it to be accepted. One that fails
/// is the client's to report.
fn each(listener: &TcpListener, serve: fn(TcpStream) -> io::Result<()>) {
    for stream in listener.incoming() {
        drop(stream.and_then(serve));
    }
}

fn await_end(mut stream: TcpStream) -> io::Result<()> {
    stream.read(&mut [0]).map(drop)
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::SocketAddr;
    use std::time::Duration;

    use proxyd_tests::wait::eventually;

    use super::super::load::{REUSE, connect_once};
    use super::*;

    /// Of a connection in TIME_WAIT, in `/proc/net/tcp`.
    const TIME_WAIT: &str = "06";

    /// The states of all TCP sockets of the calling thread's namespace that do not listen.
    fn states() -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let lines = table.lines().skip(1);
        let states = lines.map(|line| line.split_ascii_whitespace().nth(3).unwrap().to_owned());
        states.filter(|state| state != "0A").collect()
    }

    #[test]
    fn connections_end_in_time_wait_and_ports_do_not_run_out() {
        let netns = Netns::new().unwrap();
        netns.sysctls(&[REUSE, ("net/ipv4/ip_local_port_range", "40000 40019")]);
        // At 127.0.0.1 the kernel would let ports be used again anyway.
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let added = format!("{address}/32");
        let added = netns.run("ip", &["address", "add", &added, "dev", "lo"], "");
        assert!(added.unwrap().status.success());
        start(&netns, 8080).unwrap();
        let to = SocketAddr::from((address, Port::Connect.number(8080)));
        netns.enter(|| {
            for _ in 0..20 {
                connect_once(to).unwrap();
            }
            // Nothing of the server's side is left: the client was the first to close.
            let patience = Duration::from_secs(10);
            eventually("the ends", patience, || states() == [TIME_WAIT; 20]);
            eventually("a port", patience, || connect_once(to).is_ok());
        });
    }
}
