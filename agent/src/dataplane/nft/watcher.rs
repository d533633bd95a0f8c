//! Hears at once when someone else changes our tables. I/O: a netlink socket, and a thread that waits for it.
//!
//! It costs nothing while nothing happens. But as long as anyone on the machine listens, the kernel makes a message for
//! every element of every commit, which takes longer than the commit itself (design: 225,000 elements in 0.4 s, or 1 to
//! 4 s). So the watcher is deaf while the agent commits much, and the generation of the rules tells whether someone else
//! committed meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tracing::warn;

use super::super::DataplaneError;
use super::notice::{Meddling, Notice, Notices};
use crate::event::Event;
use crate::model::Family;

/// The group of those who are told of changes: `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// How much may wait to be heard: a commit of some thousand elements. What is lost is noticed all the same.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Who changed the rules, if that is not known.
const SOMEONE: &str = "someone";

/// What was changed in which table.
pub(super) type Heard = (Family, Meddling);

/// The thread, as seen from those who commit.
#[derive(Clone)]
pub(super) struct Watcher {
    socket: Arc<Socket>,
    heard: Sender<Heard>,
    report: Arc<dyn Fn(Event) -> bool + Send + Sync>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl Watcher {
    /// Starts the thread, which hears what happens in the network namespace of the calling one. What others than the
    /// sockets of the ports `own` do can be received, and is reported, until `report` says that nobody listens.
    ///
    /// # Errors
    /// That no socket or thread could be had, or that the kernel does not permit listening.
    pub(super) fn start(
        own: [u32; 2],
        report: impl Fn(Event) -> bool + Send + Sync + 'static,
    ) -> Result<(Self, Receiver<Heard>), DataplaneError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(DataplaneError::Netlink)?;
        socket.bind_auto().map_err(DataplaneError::Netlink)?;
        // Without the privilege it stays smaller.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        socket
            .add_membership(GROUP)
            .map_err(DataplaneError::Netlink)?;
        let (heard, received) = mpsc::channel();
        let watcher = Self {
            socket: Arc::new(socket),
            heard,
            report: Arc::new(report),
        };
        let thread = thread::Builder::new().name("watch-rules".to_owned());
        let for_thread = watcher.clone();
        thread
            .spawn(move || for_thread.listen(own))
            .map_err(DataplaneError::Netlink)?;
        Ok((watcher, received))
    }

    /// From now on nothing is heard.
    pub(super) fn deafen(&self) -> Result<(), DataplaneError> {
        self.socket
            .drop_membership(GROUP)
            .map_err(DataplaneError::Netlink)
    }

    /// From now on everything is heard again.
    pub(super) fn listen_again(&self) -> Result<(), DataplaneError> {
        self.socket
            .add_membership(GROUP)
            .map_err(DataplaneError::Netlink)
    }

    /// Something happened that was not heard.
    pub(super) fn report_unheard(&self) -> bool {
        Family::ALL
            .into_iter()
            .all(|family| self.report_change((family, Meddling::unheard()), SOMEONE))
    }

    /// What was changed is there to be received when the event comes.
    fn report_change(&self, heard: Heard, by: &str) -> bool {
        let (family, by) = (heard.0, by.to_owned());
        self.heard.send(heard).is_ok() && (self.report)(Event::KernelChanged { family, by })
    }

    fn listen(&self, own: [u32; 2]) {
        let mut notices = Notices::default();
        loop {
            let goes_on = match self.socket.recv_from_full() {
                Ok((datagram, _)) => messages(&datagram)
                    .filter(|(port, _)| !own.contains(port))
                    .filter_map(|(_, notice)| notices.take(notice))
                    .all(|(changed, by)| {
                        changed
                            .into_iter()
                            .all(|heard| self.report_change(heard, &by))
                    }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
                // More was told than there was room for (ENOBUFS): anything may have happened. It may go on: the kernel tells nothing
                // more, nor that it does not, until all that is there was received.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    notices = Notices::default();
                    self.socket.set_non_blocking(true).is_ok() && self.report_unheard()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.set_non_blocking(false).is_ok() && self.report_unheard()
                }
                Err(error) => {
                    warn!("what others do to the rules is not heard any more: {error}");
                    return;
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// The port of the socket that the kernel gave an open socket.
pub(super) fn port_of(socket: &Socket) -> io::Result<u32> {
    let mut address = SocketAddr::new(0, 0);
    socket.get_address(&mut address)?;
    Ok(address.port_number())
}

/// The messages of a datagram, each with the port of the socket that caused it.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, Notice)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkMessage::<Notice>::deserialize(rest).ok()?;
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        let notice = match message.payload {
            NetlinkPayload::InnerMessage(notice) => notice,
            _ => Notice::Other,
        };
        Some((message.header.port_number, notice))
    })
}
