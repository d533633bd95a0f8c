//! What the kernel tells of commits → what others changed in our tables.
//!
//! Pure. Each commit is told as one message for each thing that it changed, then one that it is over, which names the
//! process. All of them carry the port of the socket that asked for it.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, Parseable as _};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage};

use super::batch::SUBSYSTEM_NFTABLES;
use super::decode::{Answer, TABLE_NAME, child, keys, text};
use super::elements::Set;
use super::skeleton::{AFFINITY, TABLE};
use crate::model::Family;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWGEN: u16 = 15;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;

/// How many changed elements are worth asking for one by one.
const MOST_KEYS: usize = 4_096;

/// What someone changed in one of our tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Meddling {
    /// Elements that may have come, gone or changed, by their keys.
    pub(super) keys: BTreeSet<(Set, Vec<u8>)>,
    /// Sets of intervals, which the kernel does not show one by one.
    pub(super) intervals: BTreeSet<Set>,
    /// Something else: rules, chains, sets, the table.
    pub(super) program: bool,
    /// What else was changed was not heard.
    pub(super) unheard: bool,
}

impl Meddling {
    /// Nobody knows what was changed.
    pub(super) fn unheard() -> Self {
        Self {
            program: true,
            unheard: true,
            ..Self::default()
        }
    }

    /// Something was changed that is no element.
    fn program() -> Self {
        Self {
            program: true,
            ..Self::default()
        }
    }

    /// What the message about elements says.
    fn elements(answer: &Answer) -> Self {
        let name = child(answer.attributes(), NFTA_SET_ELEM_LIST_SET).map(text);
        let is_of = |set: &Set| name == Some(set.name().as_bytes());
        let mut meddling = Self::default();
        match (Set::ALL.into_iter().find(is_of), keys(answer)) {
            (Some(set), _) if set.is_of_intervals() => meddling.intervals.extend([set]),
            (Some(set), Some(keys)) => meddling.keys.extend(keys.map(|key| (set, key))),
            (Some(_), None) => return Self::unheard(),
            // The kernel's own, which is looked through whatever was changed.
            (None, _) if name == Some(AFFINITY.as_bytes()) => {}
            (None, _) => return Self::program(),
        }
        meddling
    }

    /// Adds what was changed later.
    pub(super) fn add(&mut self, later: Self) {
        self.keys.extend(later.keys);
        self.intervals.extend(later.intervals);
        self.program |= later.program;
        self.unheard |= later.unheard;
        if self.unheard || self.keys.len() > MOST_KEYS {
            *self = Self::unheard();
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// Something of our table of a family was changed.
    Changed(Family, Meddling),
    /// A commit is over; who did it.
    Committed(String),
    /// Something of nobody's interest.
    Other,
}

/// What was heard of a commit that is not over yet.
#[derive(Debug, Default)]
pub(super) struct Notices {
    changed: BTreeMap<Family, Meddling>,
}

impl Notices {
    /// Takes a message of a commit that is not ours. Returns what was changed of our tables, and by whom, when the
    /// commit is over.
    pub(super) fn take(&mut self, notice: Notice) -> Option<(BTreeMap<Family, Meddling>, String)> {
        match notice {
            Notice::Changed(family, meddling) => {
                self.changed.entry(family).or_default().add(meddling);
                None
            }
            Notice::Committed(by) => {
                let changed = std::mem::take(&mut self.changed);
                (!changed.is_empty()).then_some((changed, by))
            }
            Notice::Other => None,
        }
    }
}

impl NetlinkDeserializable for Notice {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let answer = Answer::deserialize(header, payload)?;
        let [subsystem, kind] = header.message_type.to_be_bytes().map(u16::from);
        if subsystem != SUBSYSTEM_NFTABLES {
            return Ok(Self::Other);
        }
        if kind == NFT_MSG_NEWGEN {
            return Ok(Self::Committed(author(answer.attributes())));
        }
        let family = match payload.first().map(|family| i32::from(*family)) {
            Some(libc::AF_INET) => Family::V4,
            Some(libc::AF_INET6) => Family::V6,
            _ => return Ok(Self::Other),
        };
        if child(answer.attributes(), TABLE_NAME).map(text) != Some(TABLE.as_bytes()) {
            return Ok(Self::Other);
        }
        let meddling = match kind {
            NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => Meddling::elements(&answer),
            _ => Meddling::program(),
        };
        Ok(Self::Changed(family, meddling))
    }
}

/// Who committed, from the attributes of the last message.
fn author(attributes: &[u8]) -> String {
    let attributes = GenMessage::parse(attributes).map(|message| message.attributes);
    let attributes = attributes.unwrap_or_default();
    let name = attributes.iter().find_map(|attribute| match attribute {
        GenAttribute::ProcName(name) => Some(name.as_str()),
        _ => None,
    });
    let process = attributes.iter().find_map(|attribute| match attribute {
        GenAttribute::ProcPid(process) => Some(*process),
        _ => None,
    });
    match (name, process) {
        (Some(name), Some(process)) => format!("{name} (process {process})"),
        _ => "someone".to_owned(),
    }
}
