//! The kernel's answers → what it holds.
//!
//! Pure. `None` means that something is not of the kind that proxyd writes. Elements are taken apart one by one:
//! the crate's type for a whole list of them takes time that grows with the square of the list (0.4.0 prints
//! the list into an error message that it then does not need, once for each element).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NlasIterator, Parseable as _};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ListAttribute, SetElementAttribute,
    TableAttribute, TableMessage, Verdict as NlVerdict, VerdictAttribute,
};

use super::elements::{Chain, Set};
use super::skeleton::TABLE;
use crate::diff::{Held, Verdict};
use crate::model::{Family, Frontend, Port, Protocol};
use crate::plan::Backend;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// The length of the header before a message's attributes: `struct nfgenmsg`.
const NETFILTER_HEADER_LENGTH: usize = 4;

/// The attributes of a message of nf_tables, not yet taken apart.
#[derive(Debug)]
pub(super) struct Answer(Vec<u8>);

impl NetlinkDeserializable for Answer {
    type Error = std::convert::Infallible;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(
            payload
                .get(NETFILTER_HEADER_LENGTH..)
                .unwrap_or_default()
                .to_vec(),
        ))
    }
}

/// The comment in a table's user data: a list of (type, length, bytes), where type 0 is the comment
/// (libnftnl `include/libnftnl/udata.h`).
pub(super) fn table_comment(answer: &Answer) -> Option<String> {
    let table = TableMessage::parse(answer.0.as_slice()).ok()?;
    let mut data = table
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TableAttribute::UserData(data) => Some(data.as_slice()),
            _ => None,
        })?;
    while let [kind, length, rest @ ..] = data {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        data = next;
    }
    None
}

/// The chain that an answer shows, if it is one of our table that balances.
pub(super) fn balancing_chain(answer: &Answer) -> Option<Chain> {
    let chain = ChainMessage::parse(answer.0.as_slice()).ok()?;
    if !chain
        .attributes
        .contains(&ChainAttribute::Table(TABLE.to_owned()))
    {
        return None;
    }
    chain
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            ChainAttribute::Name(name) => {
                Chain::parse(name).filter(|chain| *chain != Chain::Reject)
            }
            _ => None,
        })
}

/// Adds the elements of one message of a set's dump to what is held.
pub(super) fn note_elements(
    held: &mut Held,
    set: Set,
    family: Family,
    answer: &Answer,
) -> Option<()> {
    for attribute in NlasIterator::new(&answer.0) {
        let attribute = attribute.ok()?;
        if attribute.kind() != NFTA_SET_ELEM_LIST_ELEMENTS {
            continue;
        }
        for element in NlasIterator::new(attribute.value()) {
            match ListAttribute::<SetElementAttribute>::parse(&element.ok()?).ok()? {
                ListAttribute::Element(attributes) => note_element(held, set, family, &attributes)?,
                _ => return None,
            }
        }
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
            let chain = goto_of(attributes)?;
            let verdict = chain.verdict();
            // One front end in both maps, or in a chain made for others, is not of our making.
            let ours = Chain::of(frontend, verdict) == chain
                && (verdict == Verdict::Reject)
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
