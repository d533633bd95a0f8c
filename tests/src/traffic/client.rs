//! The client: asks an address, from inside a namespace, who answers there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Type};

use super::Protocol;
use super::sctp::Association;
use crate::netns::Netns;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// Where the question came from, as the server saw it.
    pub seen: SocketAddr,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// A reset in answer to the first packet, or an ICMP port unreachable: nobody listens, or a rule rejects.
    Refused,
    /// Nothing came back: something drops.
    TimedOut,
    /// A connection that was there is no more.
    Reset,
    /// Anything else, such as [`io::ErrorKind::HostUnreachable`].
    Other(io::ErrorKind),
}

/// The result of many questions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many answers each server gave.
    pub servers: BTreeMap<String, usize>,
    /// The source addresses that servers saw.
    pub seen: BTreeSet<IpAddr>,
    /// The questions without an answer.
    pub failures: BTreeMap<Failure, usize>,
}

/// An open TCP connection, or a UDP or SCTP client that keeps its port.
#[derive(Debug)]
pub struct Conversation(Socket);

#[derive(Debug)]
enum Socket {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
    Sctp(Association),
}

/// Asks once, from a new source port, and waits for the connection and for the answer for up to `timeout` each.
///
/// # Errors
/// The reason why there was no answer.
pub fn ask(
    from: &Netns,
    protocol: Protocol,
    to: SocketAddr,
    timeout: Duration,
) -> Result<Answer, Failure> {
    from.enter(|| Conversation::open_here(protocol, to, timeout, any(to))?.ask())
}

/// As [`ask`], from this of the namespace's addresses.
///
/// # Errors
/// The reason why there was no answer.
pub fn ask_from(
    from: &Netns,
    source: IpAddr,
    protocol: Protocol,
    to: SocketAddr,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let source = SocketAddr::new(source, 0);
    from.enter(|| Conversation::open_here(protocol, to, timeout, source)?.ask())
}

/// As [`ask`], from a port of the caller's choice, which no socket may have now.
///
/// # Errors
/// The reason why there was no answer.
pub fn ask_from_port(
    from: &Netns,
    source_port: u16,
    protocol: Protocol,
    to: SocketAddr,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let source = SocketAddr::new(any(to).ip(), source_port);
    from.enter(|| Conversation::open_here(protocol, to, timeout, source)?.ask())
}

/// Asks `count` times, one after the other, each time from a new source port.
///
/// `timeout` is for each question as in [`ask`].
pub fn ask_many(
    from: &Netns,
    protocol: Protocol,
    to: SocketAddr,
    timeout: Duration,
    count: usize,
) -> Tally {
    from.enter(|| {
        let mut tally = Tally::default();
        // A UDP port that is free again may be given to the next one, by chance.
        let mut kept = Vec::new();
        for _ in 0..count {
            let asked =
                Conversation::open_here(protocol, to, timeout, any(to)).and_then(|mut open| {
                    let answer = open.ask();
                    if protocol == Protocol::Udp {
                        kept.push(open);
                    }
                    answer
                });
            match asked {
                Ok(answer) => {
                    *tally.servers.entry(answer.server).or_default() += 1;
                    tally.seen.insert(answer.seen.ip());
                }
                Err(failure) => *tally.failures.entry(failure).or_default() += 1,
            }
        }
        tally
    })
}

impl Conversation {
    /// Connects; over UDP and SCTP this sends nothing yet.
    ///
    /// # Errors
    /// If the connection cannot be made within `timeout`, which is also the time that each answer may take.
    pub fn open(
        from: &Netns,
        protocol: Protocol,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        from.enter(|| Self::open_here(protocol, to, timeout, any(to)))
    }

    /// As [`open`](Self::open), over UDP from a port of the caller's choice.
    ///
    /// # Errors
    /// If the port is taken or there is no route.
    pub fn open_udp_from_port(
        from: &Netns,
        source_port: u16,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let source = SocketAddr::new(any(to).ip(), source_port);
        from.enter(|| Self::open_here(Protocol::Udp, to, timeout, source))
    }

    /// Gives each answer this much time from now on.
    ///
    /// # Panics
    /// If it is zero.
    pub fn set_timeout(&mut self, timeout: Duration) {
        let set = match &mut self.0 {
            Socket::Tcp(stream) => stream.get_ref().set_read_timeout(Some(timeout)),
            Socket::Udp(socket) => socket.set_read_timeout(Some(timeout)),
            Socket::Sctp(association) => {
                association.set_timeout(timeout);
                Ok(())
            }
        };
        set.expect("some time is given");
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The reason why there was no answer.
    pub fn ask(&mut self) -> Result<Answer, Failure> {
        let line = match &mut self.0 {
            Socket::Tcp(stream) => {
                stream.get_mut().write_all(b"who?\n")?;
                let mut line = String::new();
                stream.read_line(&mut line)?;
                line
            }
            Socket::Udp(socket) => {
                // Connected, so that the kernel hands us the ICMP errors; one that is pending fails the send.
                socket.send(b"who?\n")?;
                let mut datagram = [0; 256];
                let length = socket.recv(&mut datagram)?;
                String::from_utf8_lossy(&datagram[..length]).into_owned()
            }
            Socket::Sctp(association) => return association.ask(),
        };
        Answer::parse(&line).ok_or(if line.is_empty() {
            Failure::Reset
        } else {
            Failure::Other(io::ErrorKind::InvalidData)
        })
    }

    /// Connects from the calling thread's namespace; what is unspecified in the source is any.
    fn open_here(
        protocol: Protocol,
        to: SocketAddr,
        timeout: Duration,
        source: SocketAddr,
    ) -> Result<Self, Failure> {
        let socket = match protocol {
            Protocol::Tcp => {
                connect_tcp(to, timeout, source).map(|stream| Socket::Tcp(BufReader::new(stream)))
            }
            Protocol::Udp => connect_udp(to, timeout, source).map(Socket::Udp),
            Protocol::Sctp => Association::open(source.ip(), to, timeout).map(Socket::Sctp),
        };
        Ok(Self(socket?))
    }
}

impl Answer {
    /// Reads `name address:port`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (server, seen) = line.trim_end().rsplit_once(' ')?;
        Some(Self {
            server: server.to_owned(),
            seen: seen.parse().ok()?,
        })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            // A socket's own time-out is EAGAIN, a connection attempt's is ETIMEDOUT.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            kind => Self::Other(kind),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Reset => f.write_str("reset"),
            Self::Other(kind) => kind.fmt(f),
        }
    }
}

fn connect_tcp(to: SocketAddr, timeout: Duration, source: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if source != any(to) {
        // An earlier connection from this port, to somebody else, may be on its way out.
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    socket.connect_timeout(&to.into(), timeout)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connect_udp(to: SocketAddr, timeout: Duration, source: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(source)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

/// Any source of a destination's family.
fn any(to: SocketAddr) -> SocketAddr {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(any, 0)
}
