//! Delta → the bytes that its elements take on a netlink socket, for the benches in `agent/benches/pure/`.
//!
//! Pure. `netlink` sends the same messages, with sequence numbers, and between two that begin and end a batch.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::elements::elements;
use super::encode;
use crate::diff::Delta;
use crate::model::Family;

/// The messages that remove and add a delta's elements, one behind the other.
pub fn bytes(family: Family, delta: &Delta) -> Vec<u8> {
    let elements = elements(delta);
    let removals = encode::removals(&elements.removed).map(|message| (message, 0));
    let additions = encode::additions(&elements.added).map(|message| (message, NLM_F_CREATE));
    let mut bytes = Vec::new();
    removals
        .chain(additions)
        .for_each(|(message, flags)| append(&mut bytes, family, message, flags));
    bytes
}

fn append(bytes: &mut Vec<u8>, family: Family, message: NfTablesMessage, flags: u16) {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    let header = NetfilterHeader::new(family, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let start = bytes.len();
    bytes.resize((start + message.buffer_len()).next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}
