//! Elements → netlink messages, with the types of `netlink-packet-netfilter`.
//!
//! Pure. The kernel keeps each field of a concatenation in registers of 32 bits: numbers of one or two bytes
//! stand at the front of a zeroed register, in network order; the index of `numgen` is in host order
//! (Linux `net/netfilter/nft_payload.c`, `nft_numgen.c`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementFlags,
    SetElementList, SetElementMessage, TableAttribute, TableMessage, Verdict as NlVerdict,
    VerdictAttribute,
};

use super::elements::{Data, Element, Field, Set, frontend_key, shared_key};
use super::expressions::NF_DROP;
use super::forget::Kept;
use super::skeleton::{AFFINITY, TABLE};
use crate::plan::Backend;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFTA_DATA_VALUE: u16 = 1;

/// How many elements go into one message. The attribute that holds them is limited to 65,535 bytes, and the
/// largest element (an allowed IPv6 source) takes 112.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// How many clients go into one message: one of IPv6 takes 112 bytes.
const KEPT_PER_MESSAGE: usize = 500;

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
                        chunk
                            .iter()
                            .flat_map(|element| list_items(element))
                            .collect(),
                    ),
                ],
            })
            .collect();
        messages
    })
}

/// Our table, by its name.
pub(super) fn our_table() -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    }
}

/// The request for every element of a set.
pub(super) fn dump(set: Set) -> NfTablesMessage {
    dump_of(set.name())
}

/// The request for every choice that is remembered for a client.
pub(super) fn dump_affinity() -> NfTablesMessage {
    dump_of(AFFINITY)
}

fn dump_of(set: &str) -> NfTablesMessage {
    NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.to_owned()),
        ],
    })
}

/// The request for the element of a key.
pub(super) fn ask(set: Set, key: &[u8]) -> NfTablesMessage {
    NfTablesMessage::GetSetElement(with_keys(set.name(), [key]))
}

/// The message that removes the element of a key.
pub(super) fn removal(set: Set, key: &[u8]) -> NfTablesMessage {
    NfTablesMessage::DeleteSetElement(with_keys(set.name(), [key]))
}

/// Messages that have clients remembered.
pub(super) fn remember(kept: &[Kept]) -> impl Iterator<Item = NfTablesMessage> {
    kept.chunks(KEPT_PER_MESSAGE).map(|chunk| {
        let elements = chunk.iter().map(|kept| {
            let key = [vec![Field::Ip(kept.client)], frontend_key(kept.key, 0)].concat();
            let Backend { ip, port } = kept.backend;
            let data = key_bytes(&[Field::Ip(ip), Field::Port(port)]);
            let timeout = 1000 * u64::from(kept.timeout.seconds());
            let left = u64::try_from(kept.left.as_millis()).unwrap_or(timeout);
            ListAttribute::Element(vec![
                SetElementAttribute::Key(DataAttribute::Value(key_bytes(&key))),
                SetElementAttribute::Data(DataAttribute::Value(data)),
                SetElementAttribute::Timeout(timeout),
                SetElementAttribute::Expiration(left),
            ])
        });
        NfTablesMessage::NewSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(TABLE.to_owned()),
                SetElementList::Set(AFFINITY.to_owned()),
                SetElementList::Elements(elements.collect()),
            ],
        })
    })
}

/// Messages that forget choices, by the bytes of their keys.
pub(super) fn forget(keys: &[Vec<u8>]) -> impl Iterator<Item = NfTablesMessage> {
    let chunks = keys.chunks(ELEMENTS_PER_MESSAGE);
    chunks.map(|chunk| {
        let keys = chunk.iter().map(Vec::as_slice);
        NfTablesMessage::DeleteSetElement(with_keys(AFFINITY, keys))
    })
}

fn with_keys<'a>(set: &str, keys: impl IntoIterator<Item = &'a [u8]>) -> SetElementMessage {
    let items = keys.into_iter().map(|key| {
        let key = SetElementAttribute::Key(DataAttribute::Value(key.to_vec()));
        ListAttribute::Element(vec![key])
    });
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(items.collect()),
        ],
    }
}

/// What the kernel calls elements: one, or two for a network, the first address and the one after the last.
fn list_items(element: &Element) -> Vec<ListAttribute<SetElementAttribute>> {
    if let [Field::Net(network)] = element.key.as_slice() {
        let key = |ip| SetElementAttribute::Key(DataAttribute::Value(key_bytes(&[Field::Ip(ip)])));
        let end = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
        let after = after(network).map(|ip| ListAttribute::Element(vec![key(ip), end]));
        let first = ListAttribute::Element(vec![key(network.network())]);
        return [first].into_iter().chain(after).collect();
    }
    let value = key_bytes(&element.key);
    let end = last_bytes(&element.key);
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(value))];
    attributes.extend(
        end.map(|end| SetElementAttribute::KeyEnd(vec![DefaultNla::new(NFTA_DATA_VALUE, end)])),
    );
    let verdict = |verdict| SetElementAttribute::Data(DataAttribute::Verdict(verdict));
    match element.data {
        Data::None => {}
        Data::Backend(Backend { ip, port }) => {
            let bytes = key_bytes(&[Field::Ip(ip), Field::Port(port)]);
            attributes.push(SetElementAttribute::Data(DataAttribute::Value(bytes)));
        }
        Data::Key(frontend) => {
            let bytes = key_bytes(&shared_key(frontend));
            attributes.push(SetElementAttribute::Data(DataAttribute::Value(bytes)));
        }
        Data::Drop => {
            let code = VerdictAttribute::Code(NlVerdict::Other(NF_DROP));
            attributes.push(verdict(vec![code]));
        }
        Data::Goto(chain) => attributes.push(verdict(vec![
            VerdictAttribute::Code(NlVerdict::Goto),
            VerdictAttribute::Chain(chain.to_string()),
        ])),
    }
    vec![ListAttribute::Element(attributes)]
}

/// The address after the last of a network; `None` if there is none.
pub(super) fn after(network: &IpNet) -> Option<IpAddr> {
    Some(match network.broadcast() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().checked_add(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().checked_add(1)?).into(),
    })
}

/// The key, with the first address of a network.
pub(super) fn key_bytes(fields: &[Field]) -> Vec<u8> {
    bytes(fields, IpNet::network)
}

/// The key with the last address of a network; `None` if there is no network in it.
fn last_bytes(fields: &[Field]) -> Option<Vec<u8>> {
    let is_network = |field: &Field| matches!(field, Field::Net(_));
    let any = fields.iter().any(is_network);
    any.then(|| bytes(fields, IpNet::broadcast))
}

fn bytes(fields: &[Field], address_of: fn(&IpNet) -> IpAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    let ip_bytes = |bytes: &mut Vec<u8>, ip: IpAddr| match ip {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    };
    for field in fields {
        match *field {
            Field::Ip(ip) => ip_bytes(&mut bytes, ip),
            Field::Net(network) => ip_bytes(&mut bytes, address_of(&network)),
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
