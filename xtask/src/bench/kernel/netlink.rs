//! Questions to nf_tables of one network namespace, over netlink: single elements and single chains of family `ip`.
//!
//! Each takes microseconds, whatever the size of the table, and no lock that a transaction waits for: the kernel
//! answers all of them under RCU.

use anyhow::{Context as _, Result, bail, ensure};
use netlink_packet_core::{
    NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use proxyd_tests::netns::Netns;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h
const NFT_MSG_NEWCHAIN: u16 = 0x0a03;
const NFT_MSG_GETCHAIN: u16 = 0x0a04;
const NFT_MSG_NEWRULE: u16 = 0x0a06;
const NFT_MSG_GETRULE: u16 = 0x0a07;
const NFT_MSG_NEWSETELEM: u16 = 0x0a0c;
const NFT_MSG_GETSETELEM: u16 = 0x0a0d;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// Those of netlink and of netfilter.
const HEADERS_BYTES: usize = 20;

const AF_INET: u8 = 2;
const ENOENT: i32 = 2;

/// Asks the nf_tables of one namespace.
pub(in super::super) struct NfTables(Socket);

impl NfTables {
    /// Opens a socket in a namespace.
    pub(super) fn of(netns: &Netns) -> Result<Self> {
        netns.enter(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            Ok(Self(socket))
        })
    }

    /// The kernel's answer about an element of a map, if there is one.
    pub(super) fn element(&self, table: &str, map: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = Vec::new();
        put(&mut value, NFTA_DATA_VALUE, key);
        let element = nested(NFTA_LIST_ELEM, &nested(NFTA_SET_ELEM_KEY, &value));
        let mut attributes = Vec::new();
        put_name(&mut attributes, NFTA_SET_ELEM_LIST_TABLE, table);
        put_name(&mut attributes, NFTA_SET_ELEM_LIST_SET, map);
        let kind = NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED;
        put(&mut attributes, kind, &element);
        self.ask_one(NFT_MSG_GETSETELEM, &attributes, NFT_MSG_NEWSETELEM)
    }

    /// Whether a chain is there, and something leads to it: a rule of another chain, or an element of a map.
    ///
    /// The kernel counts who uses a chain: its own rules, and all that leads to it.
    pub(super) fn is_used(&self, table: &str, chain: &str) -> Result<bool> {
        let mut attributes = Vec::new();
        put_name(&mut attributes, NFTA_CHAIN_TABLE, table);
        put_name(&mut attributes, NFTA_CHAIN_NAME, chain);
        let answer = self.ask_one(NFT_MSG_GETCHAIN, &attributes, NFT_MSG_NEWCHAIN)?;
        let Some(answer) = answer else {
            return Ok(false);
        };
        let users = answer.get(HEADERS_BYTES..);
        let users = users.and_then(|attributes| get(attributes, NFTA_CHAIN_USE)?.try_into().ok());
        let users = users.map(u32::from_be_bytes).context("no use counter")?;
        let rules = self.rules(table, chain)?.len();
        Ok(usize::try_from(users)? > rules)
    }

    /// Whether the rules of a chain have this value in an anonymous map, as that of `dnat to numgen … map { … }`.
    pub(super) fn maps_to(&self, table: &str, chain: &str, value: &[u8]) -> Result<bool> {
        for rule in self.rules(table, chain)? {
            let Some(map) = anonymous_map(&rule) else {
                continue;
            };
            let mut attributes = Vec::new();
            put_name(&mut attributes, NFTA_SET_ELEM_LIST_TABLE, table);
            put_name(&mut attributes, NFTA_SET_ELEM_LIST_SET, map);
            for elements in self.dump(NFT_MSG_GETSETELEM, &attributes, NFT_MSG_NEWSETELEM)? {
                if elements.windows(value.len()).any(|window| window == value) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The kernel's messages about the rules of a chain; none, if it is gone.
    fn rules(&self, table: &str, chain: &str) -> Result<Vec<Vec<u8>>> {
        let mut attributes = Vec::new();
        put_name(&mut attributes, NFTA_RULE_TABLE, table);
        put_name(&mut attributes, NFTA_RULE_CHAIN, chain);
        self.dump(NFT_MSG_GETRULE, &attributes, NFT_MSG_NEWRULE)
    }

    fn dump(&self, kind: u16, attributes: &[u8], wanted: u16) -> Result<Vec<Vec<u8>>> {
        let request = request(kind, NLM_F_REQUEST | NLM_F_DUMP, attributes);
        self.0.send(&request, 0)?;
        let mut messages = Vec::new();
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let header = NetlinkBuffer::new_checked(rest)?;
                let length = usize::try_from(header.length())?;
                match header.message_type() {
                    kind if kind == wanted => messages.push(rest[..length].to_vec()),
                    NLMSG_DONE => return Ok(messages),
                    NLMSG_ERROR => {
                        let code = error(rest);
                        ensure!(code == Some(-ENOENT), "nf_tables answers {code:?}");
                        return Ok(Vec::new());
                    }
                    other => bail!("nf_tables answers with a message of type {other:#x}"),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn ask_one(&self, kind: u16, attributes: &[u8], wanted: u16) -> Result<Option<Vec<u8>>> {
        self.0.send(&request(kind, NLM_F_REQUEST, attributes), 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        let header = NetlinkBuffer::new_checked(&answer)?;
        match header.message_type() {
            kind if kind == wanted => Ok(Some(answer)),
            NLMSG_ERROR => {
                // So it is also where there is no such table.
                let code = error(&answer);
                ensure!(code == Some(-ENOENT), "nf_tables answers {code:?}");
                Ok(None)
            }
            other => bail!("nf_tables answers with a message of type {other:#x}"),
        }
    }
}

/// The data of the element in the kernel's answer about it.
pub(super) fn data(answer: &[u8]) -> Option<&[u8]> {
    let path = [
        NFTA_SET_ELEM_LIST_ELEMENTS,
        NFTA_LIST_ELEM,
        NFTA_SET_ELEM_DATA,
        NFTA_DATA_VALUE,
    ];
    let attributes = answer.get(HEADERS_BYTES..)?;
    path.iter()
        .try_fold(attributes, |bytes, kind| get(bytes, *kind))
}

/// The name of the first anonymous map in a message about a rule: nft's own name for it, and the kernel's number.
fn anonymous_map(rule: &[u8]) -> Option<&str> {
    const PREFIX: &[u8] = b"__map";
    let start = rule
        .windows(PREFIX.len())
        .position(|window| window == PREFIX)?;
    let name = rule[start..].split(|byte| *byte == 0).next()?;
    std::str::from_utf8(name).ok()
}

/// The code in an error message of netlink.
fn error(message: &[u8]) -> Option<i32> {
    let code = message.get(16..20)?.try_into().ok()?;
    Some(i32::from_ne_bytes(code))
}

fn request(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; HEADERS_BYTES];
    buffer[16] = AF_INET;
    buffer.extend(attributes);
    let length = u32::try_from(buffer.len()).expect("a request is short");
    let mut header = NetlinkBuffer::new(&mut buffer);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(flags);
    buffer
}

/// The value of the first attribute of a kind.
fn get(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (length, rest) = bytes.split_first_chunk()?;
        let (found, _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes(*found) & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Appends an attribute.
pub(in super::super) fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

fn put_name(buffer: &mut Vec<u8>, kind: u16, name: &str) {
    put(buffer, kind, &[name.as_bytes(), &[0]].concat());
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::new();
    put(&mut attribute, kind | NLA_F_NESTED, value);
    attribute
}
