//! The kernel's connection tracking: reads flows, and deletes the stale ones: of UDP, and those of TCP and SCTP that nobody has answered. I/O: two netlink sockets, blocking.
//!
//! The table belongs to a network namespace, which is that of the thread that opens the sockets. However large it
//! is, one buffer's worth of it is in memory at a time.

mod codec;

use std::fs;
use std::io;
use std::ops::AddAssign;
use std::time::Duration;

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::model::{Family, PerFamily, Protocol};
use crate::plan::Flow;
use codec::Answer;

/// How much is received at once. The kernel fills dumps up to 32 KiB into a buffer of that size or more.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The most deletions that are sent at once: their answers have to fit the socket's buffer of 208 KiB, where each
/// takes 1 KiB at most.
const DELETIONS: usize = 128;

/// How many flows are tracked.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// How long the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why flows were not read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No socket could be had, or what was asked was not sent or not answered.
    #[error("talking to the kernel's connection tracking: {0}")]
    Socket(#[from] io::Error),
    /// The kernel has no connection tracking over netlink, or does not let us.
    #[error("listing tracked flows: {0}")]
    List(#[source] io::Error),
    /// A flow was not deleted.
    #[error("deleting a tracked flow: {0}")]
    Delete(#[source] io::Error),
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many flows were looked at: of UDP, and those that nobody has answered.
    pub seen: u64,
    /// How many were stale, and were deleted.
    pub deleted: PerFamily<u64>,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.seen += other.seen;
        for family in Family::ALL {
            *self.deleted.get_mut(family) += other.deleted.get(family);
        }
    }
}

/// A walk through flows, a few at a time.
pub trait Steps {
    /// Reads the next few flows; tells whether there are any more.
    ///
    /// # Errors
    /// Why flows could not be read. The walk is over then.
    fn read(&mut self) -> Result<bool, ConntrackError>;

    /// Deletes those of the flows read last that are stale, and counts them.
    ///
    /// # Errors
    /// Why flows could not be deleted. The walk is over then.
    fn delete_stale(&mut self, is_stale: impl Fn(&Flow) -> bool) -> Result<Counts, ConntrackError>;
}

/// One walk through the kernel's table.
#[derive(Debug)]
pub struct Walk {
    flows: Socket,
    deletions: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    ended: bool,
}

impl Walk {
    /// Asks for the flows, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// That no socket could be had, or nothing sent.
    pub fn start() -> Result<Self, ConntrackError> {
        let walk = Self {
            flows: open()?,
            deletions: open()?,
            sequence: 1,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
            ended: false,
        };
        walk.flows.send(&codec::dump(walk.sequence), 0)?;
        Ok(walk)
    }
}

impl Steps for Walk {
    fn read(&mut self) -> Result<bool, ConntrackError> {
        if self.ended {
            return Ok(false);
        }
        receive(&self.flows, &mut self.buffer)?;
        Ok(true)
    }

    fn delete_stale(&mut self, is_stale: impl Fn(&Flow) -> bool) -> Result<Counts, ConntrackError> {
        let mut counts = Counts::default();
        let mut requests = Vec::new();
        let mut pending = 0;
        let mut ended = None;
        for (_, answer) in codec::answers(&self.buffer) {
            match answer {
                // Connections that are open, most of a large table, are not looked up.
                Answer::Flow(entry)
                    if entry.flow.protocol == Protocol::Udp || !entry.flow.answered =>
                {
                    counts.seen += 1;
                    if is_stale(&entry.flow) {
                        self.sequence = self.sequence.wrapping_add(1);
                        codec::delete(&mut requests, &entry, self.sequence);
                        let family = Family::of(entry.flow.destination.ip());
                        *counts.deleted.get_mut(family) += 1;
                        pending += 1;
                    }
                }
                Answer::End(number) => ended = Some(number),
                Answer::Flow(_) | Answer::Other => (),
            }
            if pending == DELETIONS {
                commit(&self.deletions, &mut requests, pending)?;
                pending = 0;
            }
        }
        commit(&self.deletions, &mut requests, pending)?;
        self.ended = ended.is_some();
        match ended.filter(|number| *number != 0) {
            None => Ok(counts),
            Some(number) => Err(ConntrackError::List(error(number))),
        }
    }
}

/// Whether any flow is one of those.
///
/// # Errors
/// Why flows could not be read.
pub fn any(is_one: impl Fn(&Flow) -> bool) -> Result<bool, ConntrackError> {
    // The kernel walks through an empty table as slowly as through a full one.
    if fs::read_to_string(COUNT).is_ok_and(|count| count.trim() == "0") {
        return Ok(false);
    }
    let socket = open()?;
    socket.send(&codec::dump(1), 0)?;
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    loop {
        receive(&socket, &mut buffer)?;
        for (_, answer) in codec::answers(&buffer) {
            match answer {
                Answer::Flow(entry) if is_one(&entry.flow) => return Ok(true),
                Answer::End(0) => return Ok(false),
                Answer::End(number) => return Err(ConntrackError::List(error(number))),
                Answer::Flow(_) | Answer::Other => (),
            }
        }
    }
}

/// Sends requests to delete, and waits for the answers.
fn commit(socket: &Socket, requests: &mut Vec<u8>, count: usize) -> Result<(), ConntrackError> {
    if count == 0 {
        return Ok(());
    }
    socket.send(requests, 0)?;
    requests.clear();
    let mut answered = 0;
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    while answered < count {
        receive(socket, &mut buffer)?;
        for (_, answer) in codec::answers(&buffer) {
            let Answer::End(number) = answer else {
                continue;
            };
            answered += 1;
            // One that is not there has ended by itself.
            if number != 0 && Errno::from_raw(-number) != Errno::ENOENT {
                return Err(ConntrackError::Delete(error(number)));
            }
        }
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    // A refusal need not repeat what was refused.
    socket.set_cap_ack(true)?;
    Ok(socket)
}

fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    loop {
        match socket.recv(buffer, 0) {
            // A socket with a timeout is not restarted after a signal (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => return result.map(drop),
        }
    }
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(-number)
}
