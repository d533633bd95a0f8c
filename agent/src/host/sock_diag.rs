//! The kernel's sockets: finds those that are connected, and closes them from outside. I/O: a netlink socket, blocking.
//!
//! It sees one network namespace, that of the thread that opens it (`NETLINK_SOCK_DIAG`, sock_diag(7)). A socket that is
//! closed fails its next calls with `ECONNABORTED`, and wakes up whoever waits at it (`SOCK_DESTROY`, Linux 4.9 for UDP).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::dataplane::ebpf::peer::{Peer, Question};
use crate::model::{Family, Protocol};

/// How much is received at once. The kernel fills dumps up to 32 KiB into a buffer of that size or more.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How long the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a socket was not found or not closed.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// The kernel was built without it.
    #[error(
        "this kernel cannot close sockets from outside (CONFIG_INET_DIAG_DESTROY, CONFIG_INET_UDP_DIAG)"
    )]
    Unsupported,
    /// The kernel could not be asked.
    #[error("talking to the kernel about sockets: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

/// The sockets of one network namespace.
pub struct SockDiag {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// A socket that is connected to somebody.
#[derive(Debug)]
pub struct Connected {
    /// Which it is, and to whom.
    pub peer: Peer,
    family: u8,
    id: SocketId,
}

impl SockDiag {
    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// That no socket could be had.
    pub fn open() -> Result<Self, SockDiagError> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(io::Error::from)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
            sequence: 0,
        })
    }

    /// The connected sockets that answer a question, and that are wanted.
    ///
    /// # Errors
    /// The kernel's refusal, or that it cannot be asked.
    pub fn connected(
        &mut self,
        question: &Question,
        is_wanted: impl Fn(&Peer) -> bool,
    ) -> Result<Vec<Connected>, SockDiagError> {
        let (family, mut id) = match question.family {
            Family::V4 => (AF_INET, SocketId::new_v4()),
            Family::V6 => (AF_INET6, SocketId::new_v6()),
        };
        id.destination_port = question.port.unwrap_or(0);
        let request = SockDiagMessage::InetRequest(InetRequest {
            states: states(question.protocol),
            ..request(family, question.protocol, id)
        });
        self.send(request, NLM_F_DUMP)?;
        let mut found = Vec::new();
        let end = self.receive(|message| {
            let SockDiagMessage::InetResponse(response) = message else {
                return;
            };
            let id = response.header.socket_id;
            let to = id.destination_address.to_canonical();
            let connected = Connected {
                peer: Peer {
                    protocol: question.protocol,
                    cookie: cookie(id.cookie),
                    backend: SocketAddr::new(to, id.destination_port),
                },
                family: response.header.family,
                id,
            };
            if is_wanted(&connected.peer) {
                found.push(connected);
            }
        })?;
        match end {
            Ok(()) => Ok(found),
            // Nobody answers for this protocol.
            Err(Errno::ENOENT) => Err(SockDiagError::Unsupported),
            Err(errno) => Err(refused("listing sockets", errno)),
        }
    }

    /// Closes a socket. One that is gone, or connected to another by now, is left.
    ///
    /// # Errors
    /// The kernel's refusal, or that it cannot be asked.
    pub fn close(&mut self, connected: &Connected) -> Result<(), SockDiagError> {
        let Connected { peer, family, id } = connected;
        let request = request(*family, peer.protocol, id.clone());
        let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        self.send(request, NLM_F_ACK)?;
        match self.receive(|_| ())? {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EOPNOTSUPP) => Err(SockDiagError::Unsupported),
            Err(errno) => Err(refused("closing a socket (it takes CAP_NET_ADMIN)", errno)),
        }
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Takes the answers to what was sent last, up to their end; tells how it ended.
    fn receive(&mut self, mut take: impl FnMut(SockDiagMessage)) -> io::Result<Result<(), Errno>> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                // A socket with a timeout is not restarted after a signal (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            let mut rest = &self.buffer[..];
            while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
                let length = (buffer.length() as usize).next_multiple_of(4);
                let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => take(message),
                    NetlinkPayload::Done(done) => return Ok(result(done.code)),
                    NetlinkPayload::Error(error) => {
                        return Ok(result(error.code.map_or(0, i32::from)));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The cookie, of which the kernel tells the lower half first.
fn cookie([a, b, c, d, e, f, g, h]: [u8; 8]) -> u64 {
    let half = |bytes| u64::from(u32::from_ne_bytes(bytes));
    half([e, f, g, h]) << 32 | half([a, b, c, d])
}

/// A request about sockets in any state.
fn request(family: u8, protocol: Protocol, id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: match protocol {
            Protocol::Tcp => IPPROTO_TCP,
            _ => IPPROTO_UDP,
        },
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: id,
    }
}

/// The states of a socket that somebody may wait at for the other side. A connected UDP socket is established.
fn states(protocol: Protocol) -> StateFlags {
    match protocol {
        Protocol::Tcp => {
            let closing = StateFlags::FIN_WAIT1 | StateFlags::FIN_WAIT2 | StateFlags::CLOSE_WAIT;
            StateFlags::SYN_SENT | StateFlags::ESTABLISHED | closing
        }
        _ => StateFlags::ESTABLISHED,
    }
}

/// A number at the end of an answer: zero, or that of an error, below zero.
fn result(code: i32) -> Result<(), Errno> {
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code)),
    }
}

fn refused(what: &'static str, errno: Errno) -> SockDiagError {
    let source = errno.into();
    SockDiagError::Refused { what, source }
}
