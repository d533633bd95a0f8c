//! Elements ↔ netlink messages, with the types of `netlink-packet-netfilter`.
//!
//! Pure. The kernel keeps each field of a concatenation in registers of 32 bits: numbers of one or two bytes
//! stand at the front of a zeroed register, in network order; the index of `numgen` is in host order
//! (Linux `net/netfilter/nft_payload.c`, `nft_numgen.c`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, Verdict as NlVerdict, VerdictAttribute,
};

use super::elements::{Chain, Data, Element, Field, Set};
use super::skeleton::TABLE;
use crate::diff::Held;
use crate::model::{Family, Frontend, Port, Protocol};
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
        let of_set: Vec<_> = elements
            .iter()
            .filter(|element| element.set == set)
            .map(list_item)
            .collect();
        let chunks: Vec<_> = of_set
            .chunks(ELEMENTS_PER_MESSAGE)
            .map(<[_]>::to_vec)
            .collect();
        chunks.into_iter().map(move |chunk| SetElementMessage {
            attributes: vec![
                SetElementList::Table(TABLE.to_owned()),
                SetElementList::Set(set.name().to_owned()),
                SetElementList::Elements(chunk),
            ],
        })
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

/// Adds the elements of a dump's message to what is held. `None` if one of them is not of the kind that
/// proxyd writes.
pub(super) fn note_elements(
    held: &mut Held,
    set: Set,
    family: Family,
    message: &SetElementMessage,
) -> Option<()> {
    let lists = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            SetElementList::Elements(list) => Some(list),
            _ => None,
        });
    for item in lists.flatten() {
        let ListAttribute::Element(attributes) = item else {
            return None;
        };
        note_element(held, set, family, attributes)?;
    }
    Some(())
}

fn note_element(
    held: &mut Held,
    set: Set,
    family: Family,
    attributes: &[SetElementAttribute],
) -> Option<()> {
    let mut key = attributes.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Key(DataAttribute::Value(bytes)) => Some(Reader { bytes, family }),
        _ => None,
    })?;
    match set {
        Set::Services | Set::NodePorts | Set::NoEndpoints | Set::NoEndpointNodePorts => {
            let frontend = key.frontend(matches!(set, Set::Services | Set::NoEndpoints))?;
            let verdict = goto_of(attributes)?.verdict();
            // One front end in both maps, or in a chain made for others, is not of our making.
            let ours = Chain::of(frontend, verdict) == goto_of(attributes)?
                && (verdict == crate::diff::Verdict::Reject)
                    == matches!(set, Set::NoEndpoints | Set::NoEndpointNodePorts)
                && held
                    .entries
                    .get(&frontend)
                    .is_none_or(|entry| entry.verdict.is_none());
            ours.then(|| held.set_verdict(frontend, Some(verdict)))
        }
        Set::Endpoints | Set::NodePortEndpoints => {
            let frontend = key.frontend(set == Set::Endpoints)?;
            let index = key.index()?;
            let mut data = attributes.iter().find_map(|attribute| match attribute {
                SetElementAttribute::Data(DataAttribute::Value(bytes)) => {
                    Some(Reader { bytes, family })
                }
                _ => None,
            })?;
            let backend = Backend {
                ip: data.ip()?,
                port: data.port()?,
            };
            held.set_backend(frontend, index, Some(backend));
            Some(())
        }
        Set::Hairpin => {
            let (from, to) = (key.ip()?, key.ip()?);
            (from == to).then(|| held.hairpin.insert(from)).map(drop)
        }
        Set::NodePortAddresses => {
            held.node_port_addresses.insert(key.ip()?);
            Some(())
        }
    }
}

fn goto_of(attributes: &[SetElementAttribute]) -> Option<Chain> {
    let verdict = attributes.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Data(DataAttribute::Verdict(verdict)) => Some(verdict),
        _ => None,
    })?;
    let is_goto = verdict.contains(&VerdictAttribute::Code(NlVerdict::Goto));
    verdict
        .iter()
        .filter(|_| is_goto)
        .find_map(|attribute| match attribute {
            VerdictAttribute::Chain(name) => Chain::parse(name),
            _ => None,
        })
}

/// Takes the fields of a key apart, from the front.
struct Reader<'a> {
    bytes: &'a [u8],
    family: Family,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*taken)
    }

    fn ip(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }

    fn port(&mut self) -> Option<Port> {
        let [high, low, ..] = self.take::<4>()?;
        Port::new(u16::from_be_bytes([high, low]))
    }

    fn index(&mut self) -> Option<u16> {
        u16::try_from(u32::from_ne_bytes(self.take::<4>()?)).ok()
    }

    fn frontend(&mut self, with_address: bool) -> Option<Frontend> {
        Some(if with_address {
            Frontend::Address {
                ip: self.ip()?,
                protocol: self.protocol()?,
                port: self.port()?,
            }
        } else {
            Frontend::NodePort {
                family: self.family,
                protocol: self.protocol()?,
                port: self.port()?,
            }
        })
    }
}
