//! The kernel's answers → what it holds.
//!
//! Pure. `None` means that something is not of the kind that proxyd writes. Elements are taken apart by hand, where they
//! lie: the crate's type for a list of them takes time that grows with the square of the list (0.4.0 prints the list into
//! an error message that it then does not need, once for each element), and its type for one takes memory for each part.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NlaBuffer, NlasIterator, Parseable as _,
};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, TableAttribute, TableMessage};

use super::elements::Set;
use super::encode::after;
use super::expressions::NF_DROP;
use super::keys::{Reader, Subject, subject};
use super::shapes::Chain;
use super::skeleton::USER_DATA_COMMENT;
use crate::diff::{Held, Verdict};
use crate::model::{Family, Frontend, Port, Protocol};
use crate::plan::{Affinity, Backend, Member};

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_GOTO: i32 = -4;

/// The length of the header before a message's attributes: `struct nfgenmsg`.
pub(super) const NETFILTER_HEADER_LENGTH: usize = 4;

/// The attribute of everything in a table that holds the table's name.
pub(super) const TABLE_NAME: u16 = 1;

/// The attributes of a message of nf_tables, not yet taken apart.
#[derive(Debug)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// The attributes, one after the other.
    pub(super) fn attributes(&self) -> &[u8] {
        &self.0
    }
}

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

/// The comment in a table's user data: a list of (type, length, bytes).
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
        if *kind == USER_DATA_COMMENT {
            return Some(String::from_utf8_lossy(text(value)).into_owned());
        }
        data = next;
    }
    None
}

/// The generation of the rules.
pub(super) fn generation(answer: &Answer) -> Option<u32> {
    let message = GenMessage::parse(answer.0.as_slice()).ok()?;
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            GenAttribute::Id(number) => Some(*number),
            _ => None,
        })
}

/// One element, as far as it is of interest.
#[derive(Debug, Default)]
struct Element<'a> {
    key: &'a [u8],
    /// The last key of an interval.
    last: Option<&'a [u8]>,
    /// What a data map gives.
    data: Option<&'a [u8]>,
    /// What a verdict map gives: the code, and the chain to go on in.
    verdict: Option<(i32, Option<&'a str>)>,
    /// Whether it is the first address after an interval.
    is_end: bool,
    /// How long it is still there.
    left: Option<Duration>,
}

impl<'a> Element<'a> {
    fn parse(attributes: &'a [u8]) -> Option<Self> {
        let mut element = Self::default();
        for attribute in NlasIterator::new(attributes) {
            let (kind, value) = kind_and_value(attribute.ok()?)?;
            match kind {
                NFTA_SET_ELEM_KEY => element.key = child(value, NFTA_DATA_VALUE)?,
                NFTA_SET_ELEM_KEY_END => element.last = Some(child(value, NFTA_DATA_VALUE)?),
                NFTA_SET_ELEM_DATA => {
                    element.data = child(value, NFTA_DATA_VALUE);
                    element.verdict = child(value, NFTA_DATA_VERDICT).and_then(verdict);
                }
                NFTA_SET_ELEM_FLAGS => {
                    let flags = u32::from_be_bytes(value.try_into().ok()?);
                    element.is_end = flags & NFT_SET_ELEM_INTERVAL_END != 0;
                }
                NFTA_SET_ELEM_EXPIRATION => {
                    let milliseconds = u64::from_be_bytes(value.try_into().ok()?);
                    element.left = Some(Duration::from_millis(milliseconds));
                }
                _ => {}
            }
        }
        (!element.key.is_empty()).then_some(element)
    }

    /// The chain to go on in.
    fn goto(&self) -> Option<Chain> {
        match self.verdict? {
            (NFT_GOTO, Some(chain)) => Chain::parse(chain),
            _ => None,
        }
    }
}

/// The value of the first attribute of a kind.
pub(super) fn child(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    NlasIterator::new(attributes)
        .map_while(|attribute| kind_and_value(attribute.ok()?))
        .find_map(|(found, value)| (found == kind).then_some(value))
}

/// The kind and the value of an attribute, which outlives it.
fn kind_and_value(attribute: NlaBuffer<&[u8]>) -> Option<(u16, &[u8])> {
    let (kind, length) = (attribute.kind(), attribute.value_length());
    let value = attribute.into_inner().get(NLA_HEADER_SIZE..)?;
    Some((kind, value.get(..length)?))
}

fn verdict(attributes: &[u8]) -> Option<(i32, Option<&str>)> {
    let code = i32::from_be_bytes(child(attributes, NFTA_VERDICT_CODE)?.try_into().ok()?);
    let chain = child(attributes, NFTA_VERDICT_CHAIN);
    let chain = chain.and_then(|name| std::str::from_utf8(text(name)).ok());
    Some((code, chain))
}

/// A string of the kernel's without the zero at its end.
pub(super) fn text(value: &[u8]) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}

/// Calls `note` with each element of one message of a set's dump.
fn each_element(answer: &Answer, mut note: impl FnMut(&Element<'_>) -> Option<()>) -> Option<()> {
    for attribute in NlasIterator::new(&answer.0) {
        let attribute = attribute.ok()?;
        if attribute.kind() != NFTA_SET_ELEM_LIST_ELEMENTS {
            continue;
        }
        for element in NlasIterator::new(attribute.value()) {
            let element = element.ok()?;
            if element.kind() != NFTA_LIST_ELEM {
                return None;
            }
            note(&Element::parse(element.value())?)?;
        }
    }
    Some(())
}

/// The keys of the elements in one message. `None` if one has none, as one for all keys that are not there.
pub(super) fn keys(answer: &Answer) -> Option<impl Iterator<Item = Vec<u8>>> {
    let mut keys = Vec::new();
    each_element(answer, |element| {
        keys.push(element.key.to_vec());
        Some(())
    })?;
    Some(keys.into_iter())
}

/// What was read of a table so far, in the order of [`Set::ALL`].
pub(super) struct Reading {
    family: Family,
    held: Held,
    /// Who remembers the clients of front ends, until their own elements are read.
    affinities: BTreeMap<Frontend, Chain>,
    /// Under whose key those are, if not under its own.
    affinity_keys: BTreeMap<Frontend, Frontend>,
    /// Where the networks of a set begin and end: address, and whether it is the first after the end of one.
    bounds: BTreeMap<Set, Vec<(IpAddr, bool)>>,
}

impl Reading {
    /// Nothing was read yet.
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            held: Held::default(),
            affinities: BTreeMap::new(),
            affinity_keys: BTreeMap::new(),
            bounds: BTreeMap::new(),
        }
    }

    /// Adds the elements of one message of a set's dump.
    pub(super) fn note(&mut self, set: Set, answer: &Answer) -> Option<()> {
        each_element(answer, |element| self.note_element(set, element))
    }

    /// Everything that the table holds.
    pub(super) fn finish(mut self) -> Option<Held> {
        for (set, mut bounds) in std::mem::take(&mut self.bounds) {
            let member = match set {
                Set::ServiceNetworks => Member::ServiceNetwork,
                _ => Member::PodNetwork,
            };
            // An end that is the next one's beginning comes before it.
            bounds.sort_by_key(|(ip, is_end)| (*ip, !is_end));
            let mut first = None;
            for (ip, is_end) in bounds {
                match (first.take(), is_end) {
                    (Some(first), true) => {
                        let network = network(first, Some(ip))?;
                        self.held.members.insert(member(network));
                    }
                    (None, false) => first = Some(ip),
                    // nft puts an end at the lowest address.
                    (None, true) => {}
                    (Some(_), false) => return None,
                }
            }
            if let Some(first) = first {
                self.held.members.insert(member(network(first, None)?));
            }
        }
        let is_whole = self.affinities.is_empty() && self.affinity_keys.is_empty();
        is_whole.then_some(self.held)
    }

    fn note_element(&mut self, set: Set, element: &Element<'_>) -> Option<()> {
        let family = self.family;
        let reader = |bytes| Reader::new(bytes, family);
        let mut key = reader(element.key);
        let member = match set {
            Set::ServiceNetworks | Set::PodNetworks => {
                let bounds = self.bounds.entry(set).or_default();
                bounds.push((key.ip()?, element.is_end));
                return Some(());
            }
            Set::AllowedSources => {
                let (frontend, first) = (key.frontend(true)?, key.ip()?);
                let mut end = reader(element.last?);
                end.frontend(true)?;
                let last = IpNet::from(end.ip()?);
                Member::AllowedSource(frontend, network(first, after(&last))?)
            }
            _ => match subject(set, element.key, family)? {
                Subject::Member(member) => member,
                Subject::Frontend(frontend) => return self.note_frontend(set, frontend, element),
                Subject::Slot(slot) => {
                    let backend = reader(element.data?).backend()?;
                    self.held.set_backend(slot, Some(backend));
                    return Some(());
                }
            },
        };
        self.held.members.insert(member);
        Some(())
    }

    fn note_frontend(&mut self, set: Set, frontend: Frontend, element: &Element<'_>) -> Option<()> {
        match set {
            Set::Affinities | Set::NodePortAffinities => {
                self.affinities.insert(frontend, element.goto()?);
            }
            Set::AffinityKeys | Set::NodePortAffinityKeys => {
                let mut data = Reader::new(element.data?, self.family);
                data.protocol()?;
                let key = data.frontend(true)?;
                self.affinity_keys.insert(frontend, key);
            }
            _ => return self.note_verdict(set, frontend, element),
        }
        Some(())
    }

    /// How clients of a front end keep their back ends that goes on in a chain. `None` if that is not of our making.
    fn take_affinity(&mut self, frontend: Frontend, chain: Chain) -> Option<Option<Affinity>> {
        let remembering = self.affinities.remove(&frontend);
        let key = self.affinity_keys.remove(&frontend);
        let Some(Chain::Remember { timeout, .. }) = remembering else {
            return (remembering.is_none() && key.is_none()).then_some(None);
        };
        let affinity = Affinity {
            timeout,
            key: key.unwrap_or(frontend),
            is_mixed: chain.is_by_address(),
        };
        let is_ours = Some(Chain::remembering(frontend, affinity)) == remembering;
        is_ours.then_some(Some(affinity))
    }

    fn note_verdict(&mut self, set: Set, frontend: Frontend, element: &Element<'_>) -> Option<()> {
        let is_refused = matches!(set, Set::NoEndpoints | Set::NoEndpointNodePorts);
        let chain = element.goto();
        let verdict = match chain {
            None => {
                (element.verdict?.0.cast_unsigned() == NF_DROP).then_some(())?;
                Verdict::Drop
            }
            Some(Chain::Reject) => Verdict::Reject,
            Some(chain) => {
                let (policy, count, local) = chain.balances()?;
                Verdict::Balance {
                    policy,
                    count,
                    local,
                    affinity: self.take_affinity(frontend, chain)?,
                }
            }
        };
        // One front end in both maps, or in a chain made for others, is not of our making.
        let entry = self.held.entries.get(&frontend);
        let ours = Chain::of(frontend, verdict) == chain
            && (verdict == Verdict::Reject) == is_refused
            && entry.is_none_or(|entry| entry.verdict.is_none());
        ours.then(|| self.held.set_verdict(frontend, Some(verdict)))
    }
}

/// A choice that is remembered for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// The key's bytes.
    pub(super) key: Vec<u8>,
    /// The client's address.
    pub(super) client: IpAddr,
    /// The address of the front end under which it is remembered.
    pub(super) called: IpAddr,
    /// The protocol.
    pub(super) protocol: Protocol,
    /// The port.
    pub(super) port: Port,
    /// Whom it was sent to.
    pub(super) backend: Backend,
    /// How long it is still remembered, if nobody renews it.
    pub(super) left: Duration,
}

/// The choices in one message of a dump. What cannot be understood is left out.
pub(super) fn choices(answer: &Answer, family: Family) -> Vec<Choice> {
    let mut choices = Vec::new();
    // Each is taken for itself, so none ends the others.
    each_element(answer, |element| {
        choices.extend(choice(element, family));
        Some(())
    });
    choices
}

fn choice(element: &Element<'_>, family: Family) -> Option<Choice> {
    let reader = |bytes| Reader::new(bytes, family);
    let mut key = reader(element.key);
    Some(Choice {
        client: key.ip()?,
        key: element.key.to_vec(),
        called: key.ip()?,
        protocol: key.protocol()?,
        port: key.port()?,
        backend: reader(element.data?).backend()?,
        // One without a time is remembered for ever.
        left: element.left.unwrap_or(Duration::MAX),
    })
}

/// The network from one address up to before another, or up to the last one there is; `None` if it is none.
fn network(first: IpAddr, end: Option<IpAddr>) -> Option<IpNet> {
    let bits = if first.is_ipv4() { 32 } else { 128 };
    let candidates = (0..=bits).filter_map(|prefix| IpNet::new(first, prefix).ok());
    let mut exact = candidates.filter(|net| net.network() == first && after(net) == end);
    exact.next()
}
