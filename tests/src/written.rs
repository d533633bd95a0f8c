//! Counts what is written to a namespace's nftables rules, as the kernel tells of it after each transaction.

use std::io;

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Netns;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// `NFNL_SUBSYS_NFTABLES`, which is the high byte of a message's type.
const SUBSYSTEM: u8 = 10;

/// Room for the news of many transactions: what does not fit is lost, and that is an error.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Hears of every transaction in a namespace.
#[derive(Debug)]
pub struct Written(Socket);

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Transactions.
    pub transactions: usize,
    /// Elements that were added to a map or set.
    pub added: usize,
    /// Elements that were removed.
    pub removed: usize,
    /// Chains that were added.
    pub chains: usize,
    /// Anything else but the rules of those chains: tables, sets, removed chains.
    pub others: usize,
}

impl Written {
    /// Listens from now on.
    ///
    /// # Errors
    /// That no socket could be had.
    pub fn listen(netns: &Netns) -> io::Result<Self> {
        let socket = netns.enter(|| -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            socket.add_membership(GROUP)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        })?;
        Ok(Self(socket))
    }

    /// What was written since this was asked last. The kernel tells of a transaction before it answers whoever
    /// committed it.
    ///
    /// # Errors
    /// That so much was written that some of it was not heard of.
    pub fn take(&self) -> io::Result<Count> {
        let mut count = Count::default();
        loop {
            let datagram = match self.0.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error),
            };
            let mut rest = datagram.as_slice();
            while let [a, b, c, d, kind, SUBSYSTEM, ..] = *rest {
                count.note(kind);
                let length = u32::from_ne_bytes([a, b, c, d]) as usize;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

impl Count {
    /// Counts a message by its type: `enum nf_tables_msg_types` of linux/netfilter/nf_tables.h.
    fn note(&mut self, kind: u8) {
        match kind {
            3 => self.chains += 1,
            // A rule, with the chain that it is of.
            6 => {}
            12 => self.added += 1,
            14 => self.removed += 1,
            15 => self.transactions += 1,
            _ => self.others += 1,
        }
    }
}
