//! Talks nf_tables netlink with the kernel. I/O: one socket, blocking; answers take microseconds.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::super::DataplaneError;
use super::batch::{self, Flagged};
use super::decode::{self, Answer, Choice, Reading};
use super::elements::{Elements, Set};
use super::encode;
use super::program::{Kind, Program};
use super::watcher;
use crate::diff::Held;
use crate::model::Family;
use crate::plan::Member;

/// How often a dump is begun anew because somebody changed the rules meanwhile.
const DUMP_TRIES: usize = 10;

/// How much is received at once. The kernel fills dumps up to 32 KiB into a buffer of that size or more; into
/// smaller ones it writes less at a time, and begins each time at the front of the set to find its place.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Is there where the kernel tracks connections.
const CONNTRACK_SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// How long the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A netlink socket in the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    /// Opens a socket.
    ///
    /// # Errors
    /// That the kernel has no nfnetlink, or no socket could be had.
    pub(super) fn open() -> Result<Self, DataplaneError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(DataplaneError::Netlink)?;
        socket.bind_auto().map_err(DataplaneError::Netlink)?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| DataplaneError::Netlink(errno.into()))?;
        // A refusal need not repeat what was refused, so that every answer fits the buffer.
        socket.set_cap_ack(true).map_err(DataplaneError::Netlink)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The comment of our table; `None` if the table is not there.
    pub(super) fn table_comment(
        &mut self,
        family: Family,
    ) -> Result<Option<String>, DataplaneError> {
        let request = NfTablesMessage::GetTable(encode::our_table());
        match self.request(family, request, 0) {
            Ok(answers) => Ok(Some(
                answers
                    .iter()
                    .find_map(decode::table_comment)
                    .unwrap_or_default(),
            )),
            Err(error) if is(&error, Errno::ENOENT) => Ok(None),
            Err(error) => Err(refused("to show our table", error)),
        }
    }

    /// Everything that our table holds. `None` if some of it is not of our making.
    pub(super) fn read_back(&mut self, family: Family) -> Result<Option<Held>, DataplaneError> {
        let mut reading = Reading::new(family);
        for set in Set::ALL {
            if self.read_set(family, set, &mut reading)?.is_none() {
                return Ok(None);
            }
        }
        Ok(reading.finish())
    }

    /// Reads all elements of a set. `None` if some of it is not of our making, or the set is not there.
    fn read_set(
        &mut self,
        family: Family,
        set: Set,
        reading: &mut Reading,
    ) -> Result<Option<()>, DataplaneError> {
        let answers = match self.request(family, encode::dump(set), NLM_F_DUMP) {
            Err(error) if is(&error, Errno::ENOENT) => return Ok(None),
            result => result.map_err(|error| {
                refused(&format!("to list the elements of {}", set.name()), error)
            })?,
        };
        Ok(answers
            .iter()
            .try_for_each(|answer| reading.note(set, answer)))
    }

    /// What our table consists of beside the elements of its sets; `None` if the table is not there.
    pub(super) fn program(&mut self, family: Family) -> Result<Option<Program>, DataplaneError> {
        let mut program = Program::default();
        for kind in Kind::ALL {
            let (request, is_list) = kind.request();
            let flags = if is_list { NLM_F_DUMP } else { 0 };
            let answers = match self.request(family, request, flags) {
                Err(error) if is(&error, Errno::ENOENT) => return Ok(None),
                result => result.map_err(|error| refused("to list the rules", error))?,
            };
            answers.iter().for_each(|answer| program.note(kind, answer));
        }
        Ok(Some(program))
    }

    /// Whether a set has an element of this key.
    pub(super) fn has(
        &mut self,
        family: Family,
        set: Set,
        key: &[u8],
    ) -> Result<bool, DataplaneError> {
        match self.request(family, encode::ask(set, key), 0) {
            Err(error) if is(&error, Errno::ENOENT) => Ok(false),
            result => result
                .map(|answers| !answers.is_empty())
                .map_err(|error| refused("to show an element", error)),
        }
    }

    /// The members that a set of intervals holds. `None` if some of it is not of our making.
    pub(super) fn intervals(
        &mut self,
        family: Family,
        set: Set,
    ) -> Result<Option<BTreeSet<Member>>, DataplaneError> {
        let mut reading = Reading::new(family);
        let is_ours = self.read_set(family, set, &mut reading)?;
        let held = is_ours.and_then(|()| reading.finish());
        Ok(held.map(|held| held.members))
    }

    /// The generation of the rules of this network namespace, which grows with every commit of anyone.
    pub(super) fn generation(&mut self) -> Result<u32, DataplaneError> {
        let attributes = Vec::new();
        let request = NfTablesMessage::GetGen(GenMessage { attributes });
        let answers = self
            .request(Family::V4, request, 0)
            .map_err(|error| refused("to tell the generation of the rules", error))?;
        answers
            .iter()
            .find_map(decode::generation)
            .ok_or_else(|| DataplaneError::Netlink(io::ErrorKind::InvalidData.into()))
    }

    /// The port by which the kernel knows the socket.
    pub(super) fn port(&self) -> Result<u32, DataplaneError> {
        watcher::port_of(&self.socket).map_err(DataplaneError::Netlink)
    }

    /// The choices that are remembered for clients.
    pub(super) fn choices(&mut self, family: Family) -> Result<Vec<Choice>, DataplaneError> {
        let answers = self
            .request(family, encode::dump_affinity(), NLM_F_DUMP)
            .map_err(|error| refused("to list who is remembered", error))?;
        let choices = answers.iter().flat_map(|a| decode::choices(a, family));
        Ok(choices.collect())
    }

    /// The same, where there may be no table, or one of an earlier version.
    pub(super) fn choices_if_any(&mut self, family: Family) -> Result<Vec<Choice>, DataplaneError> {
        match self.choices(family) {
            Err(DataplaneError::Refused { source, .. }) if is(&source, Errno::ENOENT) => {
                Ok(Vec::new())
            }
            result => result,
        }
    }

    /// Forgets choices, by the bytes of their keys. Tells whether all of them were still there; if not, none
    /// was forgotten.
    pub(super) fn forget(
        &mut self,
        family: Family,
        keys: &[Vec<u8>],
    ) -> Result<bool, DataplaneError> {
        let messages = encode::forget(keys).map(|message| (message, 0));
        match self.batch(family, messages.collect()) {
            Err((error, _)) if is(&error, Errno::ENOENT) => Ok(false),
            result => result
                .map(|()| true)
                .map_err(|(error, _)| refused("to forget clients", error)),
        }
    }

    /// Commits removals and additions of elements, and what has to come `before` them, as one transaction.
    pub(super) fn commit(
        &mut self,
        family: Family,
        before: Vec<Flagged>,
        elements: &Elements,
    ) -> Result<(), DataplaneError> {
        let messages = before.into_iter().chain(batch::changes(elements)).collect();
        let result = self.batch(family, messages);
        result.map_err(|(error, subject)| match errno(&error) {
            Some(Errno::ENOENT | Errno::EEXIST) => DataplaneError::ChangedByOthers(error),
            _ => refused_change(subject, error),
        })
    }

    /// Makes our table, with these elements, in the place of the one that is there, if any, in one transaction.
    pub(super) fn replace(
        &mut self,
        family: Family,
        table: Vec<Flagged>,
        elements: &Elements,
    ) -> Result<(), DataplaneError> {
        let messages = batch::replacement(table, elements);
        let result = self.batch(family, messages);
        result.map_err(|(error, subject)| refused_change(subject, error))
    }

    /// Deletes our table; tells whether it was there.
    pub(super) fn delete_table(&mut self, family: Family) -> Result<bool, DataplaneError> {
        match self.batch(
            family,
            vec![(NfTablesMessage::DeleteTable(encode::our_table()), 0)],
        ) {
            Err((error, _)) if is(&error, Errno::ENOENT) => Ok(false),
            result => result
                .map(|()| true)
                .map_err(|(error, _)| refused("to delete our table", error)),
        }
    }

    /// Sends one request and collects its answers. A dump that a change ran into is begun anew.
    fn request(
        &mut self,
        family: Family,
        request: NfTablesMessage,
        flags: u16,
    ) -> io::Result<Vec<Answer>> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.sequence.wrapping_add(1);
            self.sequence = sequence;
            let flags = if flags == 0 { NLM_F_ACK } else { flags };
            let request = batch::request(family, (request.clone(), flags), sequence);
            self.socket.send(&request, 0)?;
            let answers = self.answers(sequence, sequence);
            let (answers, interrupted) = answers.map_err(|(error, _)| error)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(io::Error::other(
            "the rules are changed by others faster than they can be read",
        ))
    }

    /// Sends messages as one transaction. An error tells what the kernel refused, where it says so.
    fn batch(
        &mut self,
        family: Family,
        messages: Vec<Flagged>,
    ) -> Result<(), (io::Error, Option<String>)> {
        if messages.is_empty() {
            return Ok(());
        }
        let (bytes, first, last) = batch::transaction(family, messages, self.sequence);
        // The end has a number too.
        self.sequence = last.wrapping_add(1);
        self.make_room(bytes.len());
        self.socket.send(&bytes, 0).map_err(|error| (error, None))?;
        match self.answers(first, last) {
            Ok(_) => Ok(()),
            Err((error, refused)) => {
                let refused = refused.filter(|sequence| *sequence != first);
                let subject = refused.and_then(|sequence| batch::subject(&bytes, sequence));
                Err((error, subject))
            }
        }
    }

    /// Grows the socket's send buffer so that a batch fits. Beyond `net.core.wmem_max` this needs
    /// CAP_NET_ADMIN in the first user namespace; the send fails with EMSGSIZE if it is not to be had.
    fn make_room(&self, batch: usize) {
        let wanted = batch + 4096;
        if setsockopt(&self.socket, sockopt::SndBufForce, &wanted).is_err() {
            // The result shows when sending.
            let _ = setsockopt(&self.socket, sockopt::SndBuf, &wanted);
        }
    }

    /// Reads the answers to the requests with sequence numbers from `first` to `last`, up to the one that ends
    /// the last; tells whether a dump was interrupted by a change. Late answers to earlier requests are skipped. An error
    /// comes with the number of what was refused, if something was.
    fn answers(
        &self,
        first: u32,
        last: u32,
    ) -> Result<(Vec<Answer>, bool), (io::Error, Option<u32>)> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        let mut failure = None;
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                // A socket with a timeout is not restarted after a signal (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| (error, None))?,
            };
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<Answer>::deserialize(rest)
                    .map_err(|error| (io::Error::new(io::ErrorKind::InvalidData, error), None))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                let sequence = message.header.sequence_number;
                if !(first..=last).contains(&sequence) {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                let ended = match message.payload {
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        false
                    }
                    NetlinkPayload::Done(_) => true,
                    NetlinkPayload::Error(error) => {
                        let failed = error.code.is_some();
                        if failed {
                            failure.get_or_insert((error.to_io(), Some(sequence)));
                        }
                        // A batch that fails as a whole is answered with the number of its beginning.
                        sequence == last || (failed && sequence == first)
                    }
                    _ => false,
                };
                if ended {
                    return failure.map_or(Ok((answers, interrupted)), Err);
                }
            }
        }
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

fn is(error: &io::Error, wanted: Errno) -> bool {
    errno(error) == Some(wanted)
}

/// That the kernel refused a transaction, or something in it.
fn refused_change(subject: Option<String>, error: io::Error) -> DataplaneError {
    let subject = subject.unwrap_or_else(|| "a change of the rules".to_owned());
    let hint = hint(Path::new(CONNTRACK_SYSCTL), &error);
    refused(&(subject + hint), error)
}

/// What may be the cause of a refusal. `conntrack_sysctl` exists where the kernel tracks connections.
fn hint(conntrack_sysctl: &Path, error: &io::Error) -> &'static str {
    match errno(error) {
        Some(Errno::ENOENT | Errno::EOPNOTSUPP) if !conntrack_sysctl.exists() => {
            " (this kernel has no connection tracking, which NAT needs; load the module nf_conntrack, \
             or use a kernel with CONFIG_NF_CONNTRACK and CONFIG_NF_NAT)"
        }
        _ => "",
    }
}

/// Our table is not there though it was made.
pub(super) fn gone() -> DataplaneError {
    DataplaneError::ChangedByOthers(Errno::ENOENT.into())
}

/// Something is in our table that we did not make.
pub(super) fn not_ours() -> DataplaneError {
    DataplaneError::ChangedByOthers(Errno::EEXIST.into())
}

fn refused(what: &str, error: io::Error) -> DataplaneError {
    match errno(&error) {
        Some(Errno::EPERM | Errno::EACCES) => DataplaneError::NotPermitted,
        Some(Errno::EMSGSIZE) => DataplaneError::Refused {
            what: format!(
                "{what} (raise the sysctl net.core.wmem_max, or run as root of the first user namespace)"
            ),
            source: error,
        },
        _ => DataplaneError::Refused {
            what: what.to_owned(),
            source: error,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_without_conntrack_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let sysctl = dir.path().join("nf_conntrack_max");
        let refused = Errno::ENOENT.into();
        assert!(hint(&sysctl, &refused).contains("nf_conntrack"));
        assert_eq!(hint(&sysctl, &Errno::EBUSY.into()), "");
        std::fs::write(&sysctl, "262144").unwrap();
        assert_eq!(hint(&sysctl, &refused), "");
    }
}
