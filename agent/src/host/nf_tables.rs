//! What nf_tables has, asked by name: nothing is listed, and nothing is changed. I/O: a netlink socket, blocking.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::model::Family;

// Defined in Linux: include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

/// The length of `struct nlmsghdr`.
const HEADER_LENGTH: usize = 16;

/// How long the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to nf_tables of the network namespace that it was opened in.
#[derive(Debug)]
pub struct NfTables(Socket);

impl NfTables {
    /// Opens a connection.
    ///
    /// # Errors
    /// That no socket could be had.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self(socket))
    }

    /// Whether there is a table of this name.
    ///
    /// # Errors
    /// That the kernel was not asked, or does not permit it.
    pub fn has_table(&self, family: Family, table: &str) -> io::Result<bool> {
        let names = [(NFTA_TABLE_NAME, table)];
        self.has(&message(NFT_MSG_GETTABLE, 0, family, &names))
    }

    /// Whether there is a chain of this name.
    ///
    /// # Errors
    /// That the kernel was not asked, or does not permit it.
    pub fn has_chain(&self, family: Family, table: &str, chain: &str) -> io::Result<bool> {
        let names = [(NFTA_CHAIN_TABLE, table), (NFTA_CHAIN_NAME, chain)];
        self.has(&message(NFT_MSG_GETCHAIN, 0, family, &names))
    }

    /// Whether there can be tables of a family. A transaction is begun that would make one, and never ended, so the kernel takes it
    /// back.
    ///
    /// # Errors
    /// That the kernel was not asked, or does not permit it.
    pub fn can_have(&self, family: Family) -> io::Result<bool> {
        let mut batch = begin();
        let flags = NLM_F_CREATE | NLM_F_ACK;
        let names = [(NFTA_TABLE_NAME, "proxyd-asks")];
        batch.extend(message(NFT_MSG_NEWTABLE, flags, family, &names));
        match self.ask(&batch)?.map(Errno::from_raw) {
            None => Ok(true),
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => Ok(false),
            Some(errno) => Err(errno.into()),
        }
    }

    fn has(&self, request: &[u8]) -> io::Result<bool> {
        match self.ask(request)?.map(Errno::from_raw) {
            None => Ok(true),
            Some(Errno::ENOENT) => Ok(false),
            Some(errno) => Err(errno.into()),
        }
    }

    /// Sends a request; returns the number of the error that is the answer, if it is one.
    fn ask(&self, request: &[u8]) -> io::Result<Option<i32>> {
        self.0.send(request, 0)?;
        let mut answer = Vec::with_capacity(8 * 1024);
        self.0.recv(&mut answer, 0)?;
        let answer = NetlinkBuffer::new_checked(answer.as_slice());
        let answer = answer.map_err(|_| io::ErrorKind::InvalidData)?;
        if answer.message_type() != NLMSG_ERROR {
            return Ok(None);
        }
        let number = answer.payload().first_chunk().copied();
        let number = number.map(i32::from_ne_bytes).unwrap_or_default();
        Ok(Some(-number).filter(|number| *number != 0))
    }
}

/// A message to nf_tables: names, each as the value of an attribute.
fn message(kind: u16, flags: u16, family: Family, names: &[(u16, &str)]) -> Vec<u8> {
    let family = match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    };
    let family = u8::try_from(family).expect("families are small numbers");
    let mut payload = vec![family, 0, 0, 0];
    for (kind, name) in names {
        // With the byte that ends it.
        let length = 4 + name.len() + 1;
        let length_bytes = u16::try_from(length)
            .expect("a name is short")
            .to_ne_bytes();
        payload.extend(length_bytes);
        payload.extend(kind.to_ne_bytes());
        payload.extend(name.as_bytes());
        payload.resize(payload.len() + 1 + length.next_multiple_of(4) - length, 0);
    }
    with_header(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, &payload)
}

/// The beginning of a transaction of nf_tables.
fn begin() -> Vec<u8> {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    with_header(NFNL_MSG_BATCH_BEGIN, 0, &[0, 0, high, low])
}

fn with_header(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = HEADER_LENGTH + payload.len();
    let mut buffer = vec![0; HEADER_LENGTH];
    buffer.extend(payload);
    let mut header = NetlinkBuffer::new(&mut buffer);
    header.set_length(u32::try_from(length).expect("a request is short"));
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | flags);
    buffer
}
