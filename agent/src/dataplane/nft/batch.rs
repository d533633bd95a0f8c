//! Messages → the bytes that are sent on a netlink socket: one request, or a whole transaction.
//!
//! Pure: sequence numbers come from the caller, who finds the answers by them.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::decode::{NETFILTER_HEADER_LENGTH, child, text};
use super::elements::{Elements, chains, elements};
use super::encode;
use super::skeleton::Skeleton;
use crate::diff::Delta;
use crate::model::Family;

/// The subsystem that messages and batches are of: `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM_NFTABLES: u16 = 10;

/// A message with its flags.
pub(super) type Flagged = (NfTablesMessage, u16);

/// Messages that remove and add elements, in this order.
pub(super) fn changes(elements: &Elements) -> impl Iterator<Item = Flagged> {
    let removals = encode::removals(&elements.removed).map(|message| (message, 0));
    let additions = encode::additions(&elements.added).map(|message| (message, NLM_F_CREATE));
    removals.chain(additions)
}

/// One request by itself.
pub(super) fn request(family: Family, (message, flags): Flagged, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, netfilter(family, message), flags, sequence);
    bytes
}

/// Messages as one transaction. They are numbered from the one behind `sequence` up, and so are its beginning, before
/// them, and its end. Also returns the numbers of the beginning and of the last message, which the kernel acknowledges
/// when all of it is done.
pub(super) fn transaction(
    family: Family,
    messages: Vec<Flagged>,
    sequence: u32,
) -> (Vec<u8>, u32, u32) {
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES);
        NetfilterMessage::new(header, message)
    };
    let mut bytes = Vec::new();
    let first = sequence.wrapping_add(1);
    append(&mut bytes, control(ControlMessage::BatchBegin), 0, first);
    let mut last = first;
    let count = messages.len();
    for (i, (message, flags)) in messages.into_iter().enumerate() {
        last = last.wrapping_add(1);
        // The kernel answers a message that asks for it, and any that fails, after the whole batch.
        let ack = if i + 1 == count { NLM_F_ACK } else { 0 };
        append(&mut bytes, netfilter(family, message), flags | ack, last);
    }
    let end = control(ControlMessage::BatchEnd);
    append(&mut bytes, end, 0, last.wrapping_add(1));
    (bytes, first, last)
}

/// Messages that put a table in the place of the one that is there, or make it.
pub(super) fn replacement(table: Vec<Flagged>, elements: &Elements) -> Vec<Flagged> {
    // Made first, so that there is one to delete in any case.
    let old = [
        (NfTablesMessage::NewTable(encode::our_table()), NLM_F_CREATE),
        (NfTablesMessage::DeleteTable(encode::our_table()), 0),
    ];
    let new = table.into_iter().chain(changes(elements));
    old.into_iter().chain(new).collect()
}

/// What the message of this number in a transaction is about, for people.
pub(super) fn subject(transaction: &[u8], sequence: u32) -> Option<String> {
    let mut rest = transaction;
    loop {
        let header = NetlinkBuffer::new_checked(rest).ok()?;
        let length = header.length() as usize;
        if header.sequence_number() == sequence {
            let [kind, _] = header.message_type().to_le_bytes();
            let attributes = header.payload().get(NETFILTER_HEADER_LENGTH..)?;
            return subject_of(kind, attributes);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// From Linux' `include/uapi/linux/netfilter/nf_tables.h`: `NFT_MSG_*`, and the attribute of each with the name.
fn subject_of(kind: u8, attributes: &[u8]) -> Option<String> {
    let (what, name) = match kind {
        3 => ("chain", 3),
        6 => ("a rule of chain", 2),
        9 => ("set", 2),
        12 | 14 => ("elements of", 2),
        _ => return Some("the table".to_owned()),
    };
    let name = String::from_utf8_lossy(text(child(attributes, name)?));
    Some(format!("{what} {name}"))
}

/// The transaction that makes a table with what a delta adds, for `tests/tests/tables.rs`.
pub fn made(skeleton: &Skeleton, delta: &Delta) -> Vec<u8> {
    let table = skeleton.messages(&chains(delta, skeleton.detector()));
    let messages = replacement(table, &elements(delta));
    transaction(skeleton.family(), messages, 0).0
}

/// The transaction that commits a delta's elements, for `agent/benches/pure/`.
pub fn encoded(family: Family, delta: &Delta) -> Vec<u8> {
    let messages = changes(&elements(delta)).collect();
    transaction(family, messages, 0).0
}

fn netfilter(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn append(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize((start + message.buffer_len()).next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}
