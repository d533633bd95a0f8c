//! The generation number of a namespace's nftables rules: it grows with every transaction that anyone commits.
//!
//! Asking for it costs microseconds and, unlike listening for nf_tables events, does not slow the commits down.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use crate::netns::Netns;

/// Reads the generation number of one namespace.
#[derive(Debug)]
pub struct Generation {
    socket: Socket,
    request: Vec<u8>,
}

impl Generation {
    /// Opens a socket in a namespace.
    ///
    /// # Errors
    /// That no socket could be had.
    pub fn of(netns: &Netns) -> io::Result<Self> {
        let socket = netns.enter(|| -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            Ok(socket)
        })?;
        let message = NfTablesMessage::GetGen(GenMessage {
            attributes: Vec::new(),
        });
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
        message.header.flags = NLM_F_REQUEST;
        message.finalize();
        let mut request = vec![0; message.buffer_len()];
        message.serialize(&mut request);
        Ok(Self { socket, request })
    }

    /// The number now.
    ///
    /// # Errors
    /// That the kernel does not answer, or not with a number.
    pub fn get(&self) -> io::Result<u32> {
        self.socket.send(&self.request, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let number = match answer.payload {
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(message)),
                ..
            }) => message
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    GenAttribute::Id(number) => Some(number),
                    _ => None,
                }),
            _ => None,
        };
        number.ok_or_else(|| io::Error::other("the answer holds no generation number"))
    }
}
