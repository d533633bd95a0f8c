//! Requests to the kernel's connection tracking, and its answers, as bytes.
//!
//! Pure. Answers are taken apart where they lie: a dump has up to a million flows, of which a few attributes are looked at;
//! netlink-packet-netfilter's types copy every attribute of each into lists of their own. To delete a flow, what names
//! it is sent back as it came, which those types cannot do (0.4.0 loses the flag of nested attributes).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{
    NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer,
};

use crate::model::Protocol;
use crate::plan::Flow;

// Defined in Linux: include/uapi/linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

// Defined in Linux: include/uapi/linux/netfilter/nf_conntrack_common.h, nf_conntrack_tcp.h
const IPS_SEEN_REPLY: u32 = 1 << 1;
const TCP_CONNTRACK_SYN_SENT: u8 = 1;

const AF_UNSPEC: u8 = 0;

/// The subsystem that a message is for: `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM_CTNETLINK: u16 = 1;

/// The length of the header of every message: `struct nlmsghdr`.
const NETLINK_HEADER_LENGTH: usize = 16;

/// The length of the header before a message's attributes: `struct nfgenmsg`.
const NETFILTER_HEADER_LENGTH: usize = 4;

/// The length of an attribute's header: `struct nlattr`.
const ATTRIBUTE_HEADER_LENGTH: usize = 4;

/// The length of an error's number, in front of what it is about: `struct nlmsgerr`.
const ERROR_LENGTH: usize = 4;

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// A flow of TCP, UDP or SCTP.
    Flow(Entry<'a>),
    /// The end of a dump, or of a request that was to be acknowledged; not 0 is the number of an error.
    End(i32),
    /// What else there may be, such as a flow of another protocol.
    Other,
}

/// A tracked flow, with what names it to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) flow: Flow,
    family: u8,
    /// The value of `CTA_TUPLE_ORIG`.
    original: &'a [u8],
    /// The value of `CTA_ID`, which a later flow of the same addresses does not share.
    id: Option<&'a [u8]>,
    /// The value of `CTA_ZONE`, if the flow is not in the default one.
    zone: Option<&'a [u8]>,
}

/// A request for every flow of every protocol and family.
///
/// Since 5.8 the kernel could leave out what is not UDP (`CTA_FILTER`), and it always could leave out a family. But it
/// fills a buffer with soft interrupts off, and what it leaves out fills none: the machine's packets would wait while it
/// walks through a table of TCP connections, 80 ms for 200,000 of them (net/netfilter/nf_conntrack_netlink.c,
/// `ctnetlink_dump_table`). Without a filter it stops after 32 KiB, some hundreds of flows.
pub(super) fn dump(sequence: u32) -> Vec<u8> {
    let mut buffer = Vec::new();
    let kind = (IPCTNL_MSG_CT_GET, NLM_F_DUMP);
    message(&mut buffer, kind, AF_UNSPEC, sequence, |_| ());
    buffer
}

/// Appends a request to delete a flow. It is answered with an [`Answer::End`].
pub(super) fn delete(buffer: &mut Vec<u8>, entry: &Entry<'_>, sequence: u32) {
    let kind = (IPCTNL_MSG_CT_DELETE, NLM_F_ACK);
    message(buffer, kind, entry.family, sequence, |attributes| {
        put(attributes, CTA_TUPLE_ORIG | NLA_F_NESTED, entry.original);
        if let Some(id) = entry.id {
            put(attributes, CTA_ID, id);
        }
        if let Some(zone) = entry.zone {
            put(attributes, CTA_ZONE, zone);
        }
    });
}

/// The messages in what was received, each with the sequence number of its request. What is cut off is left out.
pub(super) fn answers(received: &[u8]) -> impl Iterator<Item = (u32, Answer<'_>)> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        let payload = message.payload();
        let answer = match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                let number = payload.first_chunk::<ERROR_LENGTH>();
                Answer::End(number.map_or(0, |number| i32::from_ne_bytes(*number)))
            }
            _ => entry(payload).map_or(Answer::Other, Answer::Flow),
        };
        Some((message.sequence_number(), answer))
    })
}

/// Takes apart a flow; `None` if it is not one of TCP, UDP or SCTP.
fn entry(payload: &[u8]) -> Option<Entry<'_>> {
    let family = *payload.first()?;
    let (mut original, mut reply, mut id, mut zone) = (None, None, None, None);
    let (mut status, mut of_protocol) = (None, None);
    for (kind, value) in attributes(payload.get(NETFILTER_HEADER_LENGTH..)?) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(value),
            CTA_TUPLE_REPLY => reply = Some(value),
            CTA_STATUS => status = value.first_chunk(),
            CTA_PROTOINFO => of_protocol = Some(value),
            CTA_ID => id = Some(value),
            CTA_ZONE => zone = Some(value),
            _ => (),
        }
    }
    let original = original?;
    let (protocol, _, destination) = ends(original)?;
    let (_, reply_source, _) = ends(reply?)?;
    Some(Entry {
        flow: Flow {
            protocol,
            destination,
            reply_source,
            answered: is_answered(protocol, status, of_protocol),
        },
        family,
        original,
        id,
        zone,
    })
}

/// Whether anybody has answered. What the kernel does not tell counts as yes, and so does a connection of TCP that has come further than
/// its SYN, of which the answers go another way.
fn is_answered(protocol: Protocol, status: Option<&[u8; 4]>, of_protocol: Option<&[u8]>) -> bool {
    let is_seen = status.is_none_or(|status| u32::from_be_bytes(*status) & IPS_SEEN_REPLY != 0);
    let is_begun = || {
        let tcp = find(of_protocol?, CTA_PROTOINFO_TCP)?;
        find(tcp, CTA_PROTOINFO_TCP_STATE)?.first().copied()
    };
    is_seen || protocol == Protocol::Tcp && is_begun() != Some(TCP_CONNTRACK_SYN_SENT)
}

/// The value of an attribute in a list of them.
fn find(list: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = attributes(list).filter(|(kind, _)| *kind == wanted);
    found.next().map(|(_, value)| value)
}

/// The protocol, the source and the destination in a tuple.
fn ends(tuple: &[u8]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (mut ips, mut of) = (None, None);
    for (kind, value) in attributes(tuple) {
        match kind {
            CTA_TUPLE_IP => ips = addresses(value),
            CTA_TUPLE_PROTO => of = ports(value),
            _ => (),
        }
    }
    let ((source, destination), (protocol, source_port, destination_port)) = (ips?, of?);
    Some((
        protocol,
        SocketAddr::new(source, source_port),
        SocketAddr::new(destination, destination_port),
    ))
}

fn addresses(ip: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for (kind, value) in attributes(ip) {
        match kind {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(value),
            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(value),
            _ => (),
        }
    }
    Some((source?, destination?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn ports(proto: &[u8]) -> Option<(Protocol, u16, u16)> {
    let (mut protocol, mut source, mut destination) = (None, None, None);
    for (kind, value) in attributes(proto) {
        let port = || {
            value
                .first_chunk::<2>()
                .map(|port| u16::from_be_bytes(*port))
        };
        match kind {
            CTA_PROTO_NUM => protocol = value.first(),
            CTA_PROTO_SRC_PORT => source = port(),
            CTA_PROTO_DST_PORT => destination = port(),
            _ => (),
        }
    }
    let number = protocol?;
    let mut all = Protocol::ALL.into_iter();
    let protocol = all.find(|protocol| protocol.number() == *number)?;
    Some((protocol, source?, destination?))
}

/// The attributes in a list of them: kind and value.
fn attributes(list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk::<ATTRIBUTE_HEADER_LENGTH>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(ATTRIBUTE_HEADER_LENGTH..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value))
    })
}

/// Appends a message of a kind and its flags, with what `fill` appends to it.
fn message(
    buffer: &mut Vec<u8>,
    (kind, flags): (u16, u16),
    family: u8,
    sequence: u32,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.resize(start + NETLINK_HEADER_LENGTH, 0);
    buffer.extend([family, 0, 0, 0]);
    fill(buffer);
    let length = buffer.len() - start;
    let mut header = NetlinkBuffer::new(&mut buffer[start..]);
    header.set_length(u32::try_from(length).expect("a request is short"));
    header.set_message_type(SUBSYSTEM_CTNETLINK << 8 | kind);
    header.set_flags(NLM_F_REQUEST | flags);
    header.set_sequence_number(sequence);
}

/// Appends an attribute.
fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = ATTRIBUTE_HEADER_LENGTH + value.len();
    let padding = length.next_multiple_of(4) - length;
    let length = u16::try_from(length).expect("an attribute is short");
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.extend(&[0; 3][..padding]);
}

#[cfg(test)]
mod tests;
