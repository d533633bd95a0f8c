//! Elements → netlink messages, with the types of `netlink-packet-netfilter`.
//!
//! Pure. The kernel keeps each field of a concatenation in registers of 32 bits: numbers of one or two bytes
//! stand at the front of a zeroed register, in network order; the index of `numgen` is in host order
//! (Linux `net/netfilter/nft_payload.c`, `nft_numgen.c`).

use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, Verdict as NlVerdict, VerdictAttribute,
};

use super::elements::{Data, Element, Field, Set};
use super::skeleton::TABLE;
use crate::plan::Backend;

/// How many elements go into one message. The attribute that holds them is limited to 65,535 bytes, and the
/// largest element (an IPv6 endpoint) takes 84.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Messages that remove elements.
pub(super) fn removals(elements: &[Element]) -> impl Iterator<Item = NfTablesMessage> {
    messages(elements).map(NfTablesMessage::DeleteSetElement)
}

/// Messages that add elements.
pub(super) fn additions(elements: &[Element]) -> impl Iterator<Item = NfTablesMessage> {
    messages(elements).map(NfTablesMessage::NewSetElement)
}

fn messages(elements: &[Element]) -> impl Iterator<Item = SetElementMessage> {
    Set::ALL.into_iter().flat_map(move |set| {
        let of_set: Vec<&Element> = elements
            .iter()
            .filter(|element| element.set == set)
            .collect();
        let messages: Vec<_> = of_set
            .chunks(ELEMENTS_PER_MESSAGE)
            .map(|chunk| SetElementMessage {
                attributes: vec![
                    SetElementList::Table(TABLE.to_owned()),
                    SetElementList::Set(set.name().to_owned()),
                    SetElementList::Elements(
                        chunk.iter().map(|element| list_item(element)).collect(),
                    ),
                ],
            })
            .collect();
        messages
    })
}

/// The request for every element of a set.
pub(super) fn dump(set: Set) -> NfTablesMessage {
    NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.name().to_owned()),
        ],
    })
}

fn list_item(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(key_bytes(
        &element.key,
    )))];
    match element.data {
        Data::None => {}
        Data::Backend(Backend { ip, port }) => {
            let bytes = key_bytes(&[Field::Ip(ip), Field::Port(port)]);
            attributes.push(SetElementAttribute::Data(DataAttribute::Value(bytes)));
        }
        Data::Goto(chain) => {
            let verdict = vec![
                VerdictAttribute::Code(NlVerdict::Goto),
                VerdictAttribute::Chain(chain.to_string()),
            ];
            attributes.push(SetElementAttribute::Data(DataAttribute::Verdict(verdict)));
        }
    }
    ListAttribute::Element(attributes)
}

fn key_bytes(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    for field in fields {
        match *field {
            Field::Ip(IpAddr::V4(ip)) => bytes.extend(ip.octets()),
            Field::Ip(IpAddr::V6(ip)) => bytes.extend(ip.octets()),
            Field::Protocol(protocol) => bytes.extend([protocol.number(), 0, 0, 0]),
            Field::Port(port) => {
                bytes.extend(port.get().to_be_bytes());
                bytes.extend([0, 0]);
            }
            Field::Index(index) => bytes.extend(u32::from(index).to_ne_bytes()),
        }
    }
    bytes
}
