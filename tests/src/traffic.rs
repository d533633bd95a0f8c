//! Traffic: servers that say who they are and whom they saw, and clients that ask them.
//!
//! A question and an answer are one line each, over TCP, UDP or SCTP. The answer names the server and the address that the
//! question came from, so it shows which endpoint was chosen and whether the source was masqueraded.

mod client;
mod sctp;
mod server;

pub use client::{Answer, Conversation, Failure, Tally, ask, ask_from, ask_from_port, ask_many};
pub use server::EchoServer;

use std::fmt;

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// A datagram there, a datagram back.
    Udp,
    /// The first packet of an association and the answer to it, over raw sockets.
    Sctp,
}

impl Protocol {
    /// All that Services know.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}
