//! SCTP where the kernel has no such sockets: the first two packets of an association, over raw sockets.
//!
//! Such a kernel still tracks, translates and refuses SCTP. A client sends an INIT; a server answers with an INIT ACK,
//! whose state cookie is the server's own affair: here, the line that it would answer with over TCP. Both sides check the
//! checksum. It covers the ports, so whoever translates those has to compute it anew. Layouts are those of RFC 9260.
//!
//! A raw socket hears every packet of its protocol in the namespace, and one for ICMP every error: each is told apart by
//! addresses and ports.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crc::{CRC_32_ISCSI, Crc};
use socket2::{Domain, Protocol, Socket, Type};

use super::client::{Answer, Failure};
use crate::wait::poll;

static CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// SCTP's number among the protocols of IP.
const NUMBER: u8 = 132;

/// The length of SCTP's header, and of that of a chunk.
const HEADER: usize = 12;
const CHUNK_HEADER: usize = 4;

/// The length of an INIT chunk, and of an INIT ACK one without parameters.
const INIT: usize = 20;

/// Longer than any packet that is sent here, and than any error about one.
const MAX_LENGTH: usize = 2_048;

/// A parameter's type.
const STATE_COOKIE: u16 = 7;

/// The next source port. Every association has its own, and so have the errors about it.
static SOURCE_PORT: AtomicU16 = AtomicU16::new(40_000);

/// What is said in a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunk {
    /// Somebody wants an association.
    Init,
    /// Somebody agrees, and says this.
    InitAck(String),
}

/// An SCTP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    source_port: u16,
    destination_port: u16,
    /// What the receiver knows the association by; 0 before it has one.
    verification_tag: u32,
    /// What the sender will know it by.
    initiate_tag: u32,
    chunk: Chunk,
}

impl Packet {
    fn to_bytes(&self) -> Vec<u8> {
        let (kind, parameters) = match &self.chunk {
            Chunk::Init => (1, Vec::new()),
            Chunk::InitAck(cookie) => (2, parameter(cookie)),
        };
        let length = u16::try_from(INIT + parameters.len()).expect("cookies are short");
        let mut bytes = Vec::new();
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.verification_tag.to_be_bytes());
        // The checksum, once it is known.
        bytes.extend([0; 4]);
        bytes.extend([kind, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.initiate_tag.to_be_bytes());
        // A window of 64 KiB, one stream there and one back, and the first sequence number.
        bytes.extend(65_536_u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(parameters);
        let checksum = CHECKSUM.checksum(&bytes);
        bytes[8..HEADER].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a packet; `None` if its checksum is wrong or it is of no kind that is sent here.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(8..HEADER)?.fill(0);
        if CHECKSUM.checksum(&zeroed).to_le_bytes() != bytes[8..HEADER] {
            return None;
        }
        let chunk = bytes.get(HEADER..HEADER + INIT)?;
        let parameters = &bytes[HEADER + INIT..];
        Some(Self {
            source_port: u16_at(bytes, 0)?,
            destination_port: u16_at(bytes, 2)?,
            verification_tag: u32_at(bytes, 4)?,
            initiate_tag: u32_at(chunk, CHUNK_HEADER)?,
            chunk: match chunk[0] {
                1 => Chunk::Init,
                2 => Chunk::InitAck(String::from_utf8(parameters.get(4..)?.to_vec()).ok()?),
                _ => return None,
            },
        })
    }
}

/// A state cookie, filled up with spaces to a multiple of four bytes.
fn parameter(cookie: &str) -> Vec<u8> {
    let mut value = cookie.as_bytes().to_vec();
    value.resize(value.len().next_multiple_of(4), b' ');
    let length = u16::try_from(4 + value.len()).expect("cookies are short");
    let mut bytes = STATE_COOKIE.to_be_bytes().to_vec();
    bytes.extend(length.to_be_bytes());
    bytes.extend(value);
    bytes
}

/// A client's side of an association that never gets past its first two packets. It keeps its source port.
#[derive(Debug)]
pub(super) struct Association {
    socket: UdpSocket,
    errors: UdpSocket,
    source_port: u16,
    to: SocketAddr,
    timeout: Duration,
}

impl Association {
    /// Gives each answer this much time from now on.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Makes the sockets in the calling thread's namespace; sends nothing yet. An unspecified source is any.
    pub(super) fn open(source: IpAddr, to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let icmp = match to {
            SocketAddr::V4(_) => Protocol::ICMPV4,
            SocketAddr::V6(_) => Protocol::ICMPV6,
        };
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::SCTP))?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: socket.into(),
            errors: raw(Domain::for_address(to), icmp)?,
            source_port: SOURCE_PORT.fetch_add(1, Ordering::Relaxed),
            to,
            timeout,
        })
    }

    /// Sends an INIT and waits for the INIT ACK.
    pub(super) fn ask(&self) -> Result<Answer, Failure> {
        let tag = 0x5c70_0000 | u32::from(self.source_port);
        let init = Packet {
            source_port: self.source_port,
            destination_port: self.to.port(),
            verification_tag: 0,
            initiate_tag: tag,
            chunk: Chunk::Init,
        };
        let sent = self.socket.send_to(&init.to_bytes(), without_port(self.to));
        let silence = match sent {
            Ok(_) => Failure::TimedOut,
            // A rule of this host's dropped it, and may have said why by ICMP.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error.into(),
            Err(error) => return Err(error.into()),
        };
        let heard = poll(self.timeout, || {
            let answers = received(&self.socket).filter(|(from, _)| *from == self.to.ip());
            let mut answers = answers.filter_map(|(_, bytes)| self.answer(tag, &bytes));
            let mut errors = received(&self.errors);
            let answered = answers.next().map(Ok);
            answered.or_else(|| errors.find_map(|(_, bytes)| self.failure(&bytes)).map(Err))
        });
        heard.unwrap_or(Err(silence))
    }

    /// The server's answer, if a packet from its address is that.
    fn answer(&self, tag: u32, bytes: &[u8]) -> Option<Answer> {
        let packet = Packet::parse(bytes)?;
        let ports = (packet.source_port, packet.destination_port);
        let is_ours = ports == (self.to.port(), self.source_port) && packet.verification_tag == tag;
        match packet.chunk {
            Chunk::InitAck(line) if is_ours => Answer::parse(&line),
            _ => None,
        }
    }

    /// What an ICMP message says of our packet, if it is about that.
    fn failure(&self, bytes: &[u8]) -> Option<Failure> {
        let quoted = bytes.get(8..)?;
        let (protocol, to, packet) = match self.to.ip() {
            IpAddr::V4(_) => {
                let to = <[u8; 4]>::try_from(quoted.get(16..20)?).ok()?;
                let header = usize::from(quoted[0] & 0xf) * 4;
                (quoted[9], IpAddr::from(to), quoted.get(header..)?)
            }
            IpAddr::V6(_) => {
                let to = <[u8; 16]>::try_from(quoted.get(24..40)?).ok()?;
                (quoted[6], IpAddr::from(to), quoted.get(40..)?)
            }
        };
        let ports = (u16_at(packet, 0)?, u16_at(packet, 2)?);
        let is_ours =
            protocol == NUMBER && to == self.to.ip() && ports == (self.source_port, self.to.port());
        let port_unreachable = if to.is_ipv4() { [3, 3] } else { [1, 4] };
        is_ours.then(|| {
            if bytes.starts_with(&port_unreachable) {
                Failure::Refused
            } else {
                Failure::Other(io::ErrorKind::HostUnreachable)
            }
        })
    }
}

/// A server's sockets, one for each family.
pub(super) fn listen() -> io::Result<[UdpSocket; 2]> {
    let [v4, v6] = [Domain::IPV4, Domain::IPV6].map(|family| raw(family, Protocol::SCTP));
    Ok([v4?, v6?])
}

/// Answers on one of those sockets what is for a port, with the line that `answer` makes for a client.
pub(super) async fn serve(
    socket: UdpSocket,
    port: u16,
    answer: impl Fn(SocketAddr) -> String,
) -> io::Result<()> {
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let mut buffer = [0; MAX_LENGTH];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let init = Packet::parse(payload(from, &buffer[..length]));
        let Some(init) = init.filter(|packet| {
            packet.chunk == Chunk::Init
                && packet.destination_port == port
                && packet.verification_tag == 0
        }) else {
            continue;
        };
        let client = SocketAddr::new(from.ip(), init.source_port);
        let ack = Packet {
            source_port: port,
            destination_port: init.source_port,
            verification_tag: init.initiate_tag,
            initiate_tag: !init.initiate_tag,
            chunk: Chunk::InitAck(answer(client)),
        };
        // A reply that cannot be sent is like one that was lost on the way.
        socket
            .send_to(&ack.to_bytes(), without_port(from))
            .await
            .ok();
    }
}

/// A raw socket that never waits. Its calls are those of a UDP socket, but for the ports of its addresses, which are 0.
fn raw(family: Domain, protocol: Protocol) -> io::Result<UdpSocket> {
    let socket = Socket::new(family, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What a raw socket has received by now: who sent it, and what comes after the header of IP.
fn received(socket: &UdpSocket) -> impl Iterator<Item = (IpAddr, Vec<u8>)> {
    let mut buffer = [0; MAX_LENGTH];
    std::iter::from_fn(move || {
        // An error is "nothing more".
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        Some((from.ip(), payload(from, &buffer[..length]).to_vec()))
    })
}

/// What comes after the header of IP. The kernel hands out that of IPv4 only; raw(7), ipv6(7).
fn payload(from: SocketAddr, bytes: &[u8]) -> &[u8] {
    let header = match from {
        SocketAddr::V4(_) => usize::from(bytes[0] & 0xf) * 4,
        SocketAddr::V6(_) => 0,
    };
    &bytes[header..]
}

fn without_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), 0)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..offset + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
