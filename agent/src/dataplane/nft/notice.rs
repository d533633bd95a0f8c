//! What the kernel tells of commits → who changed our tables.
//!
//! Pure. Each commit is told as one message for each thing that it changed, then one that it is over, which names the
//! process. All of them carry the port of the socket that asked for it.

use std::collections::BTreeSet;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, Parseable as _};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage};

use super::batch::SUBSYSTEM_NFTABLES;
use super::decode::{NETFILTER_HEADER_LENGTH, TABLE_NAME, child, text};
use super::skeleton::TABLE;
use crate::model::Family;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_NEWGEN: u16 = 15;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// Something of our table of a family was changed.
    Changed(Family),
    /// A commit is over; who did it.
    Committed(String),
    /// Something of nobody's interest.
    Other,
}

/// What was heard of a commit that is not over yet.
#[derive(Debug, Default)]
pub(super) struct Notices {
    changed: BTreeSet<Family>,
}

impl Notices {
    /// Takes a message of a commit that is not ours. Returns what was changed of our tables, and by whom, when the
    /// commit is over.
    pub(super) fn take(&mut self, notice: Notice) -> Option<(BTreeSet<Family>, String)> {
        match notice {
            Notice::Changed(family) => {
                self.changed.insert(family);
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
        let attributes = payload.get(NETFILTER_HEADER_LENGTH..).unwrap_or_default();
        let [subsystem, kind] = header.message_type.to_be_bytes().map(u16::from);
        if subsystem != SUBSYSTEM_NFTABLES {
            return Ok(Self::Other);
        }
        if kind == NFT_MSG_NEWGEN {
            return Ok(Self::Committed(author(attributes)));
        }
        let family = match payload.first().map(|family| i32::from(*family)) {
            Some(libc::AF_INET) => Family::V4,
            Some(libc::AF_INET6) => Family::V6,
            _ => return Ok(Self::Other),
        };
        let is_ours = child(attributes, TABLE_NAME).map(text) == Some(TABLE.as_bytes());
        Ok(if is_ours {
            Self::Changed(family)
        } else {
            Self::Other
        })
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
