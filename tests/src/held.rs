//! What the kernel holds of a namespace's tables beside elements, attribute for attribute; and messages that are sent to it as they are.
//!
//! No program is between: what `nft` would print, or whether it can print anything, has no part in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use crate::netns::Netns;

/// `NFNL_SUBSYS_NFTABLES << 8`, and kinds of messages, of Linux' include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const NFTABLES: u16 = 10 << 8;
const GET_TABLE: u16 = NFTABLES | 1;
const GET_CHAIN: u16 = NFTABLES | 4;
const GET_RULE: u16 = NFTABLES | 7;
const GET_SET: u16 = NFTABLES | 10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;

/// The length of the headers before attributes: `struct nlmsghdr`, `struct nfgenmsg`.
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// What a chain, a set or a rule is made of: attributes by their numbers.
pub type Attributes = BTreeMap<u16, Vec<u8>>;

/// What one table consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The table's own attributes.
    pub table: Attributes,
    /// Sets and maps, by their names.
    pub sets: BTreeMap<String, Attributes>,
    /// Chains, by their names.
    pub chains: BTreeMap<String, Attributes>,
    /// The rules of each chain that has some: of each the expressions, in order.
    pub rules: BTreeMap<String, Vec<Vec<Expression>>>,
}

/// One expression of a rule: its kind, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// As the kernel calls it.
    pub kind: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A socket in a namespace.
#[derive(Debug)]
pub struct Kernel(Socket);

impl Kernel {
    /// Opens a socket in a namespace.
    ///
    /// # Errors
    /// That no socket could be had.
    pub fn of(netns: &Netns) -> io::Result<Self> {
        let socket = netns.enter(|| -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            Ok(socket)
        })?;
        Ok(Self(socket))
    }

    /// Sends a transaction that asks for one acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn commit(&self, transaction: &[u8]) -> io::Result<()> {
        self.0.send(transaction, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        each_message(&answer, |kind, payload| match kind {
            NLMSG_ERROR => acknowledged(payload),
            _ => Ok(()),
        })
    }

    /// What a table of a family (`NFPROTO_IPV4` and so on) consists of.
    ///
    /// # Errors
    /// That the kernel does not answer.
    ///
    /// # Panics
    /// If the table is not there.
    pub fn held(&self, family: u8, table: &str) -> io::Result<Held> {
        // Left out are handles and places, which no two tables share, and what counts uses and elements. The kinds of
        // implementation (NFTA_SET_TYPE) are addresses in the kernel. Each kind has the table's name first.
        let list = |kind, name: u16, left_out: &[u16]| -> io::Result<Vec<(String, Attributes)>> {
            let own = |attributes: &Attributes| text(&attributes[&1]) == table;
            let all = self.list(kind, family)?.into_iter().filter(own);
            Ok(all
                .map(|mut attributes| {
                    let name = text(&attributes[&name]);
                    attributes.retain(|number, _| !left_out.contains(number));
                    (name, attributes)
                })
                .collect())
        };
        let tables = list(GET_TABLE, 1, &[3, 4])?;
        let mut rules: BTreeMap<String, Vec<Vec<Expression>>> = BTreeMap::new();
        for (chain, attributes) in list(GET_RULE, 2, &[3, 6])? {
            let expressions = &attributes[&NFTA_RULE_EXPRESSIONS];
            let expressions = parse(expressions).into_iter().map(|(_, bytes)| {
                let parts: Attributes = parse(&bytes).into_iter().collect();
                let kind = text(&parts[&NFTA_EXPR_NAME]);
                Expression { kind, bytes }
            });
            rules.entry(chain).or_default().push(expressions.collect());
        }
        Ok(Held {
            table: tables.into_iter().next().expect("the table is there").1,
            sets: list(GET_SET, 2, &[16, 19, 20])?.into_iter().collect(),
            chains: list(GET_CHAIN, 3, &[2, 6])?.into_iter().collect(),
            rules,
        })
    }

    /// The names of the tables of a family.
    ///
    /// # Errors
    /// That the kernel does not answer.
    pub fn tables(&self, family: u8) -> io::Result<BTreeSet<String>> {
        let tables = self.list(GET_TABLE, family)?;
        Ok(tables.iter().map(|table| text(&table[&1])).collect())
    }

    fn list(&self, kind: u16, family: u8) -> io::Result<Vec<Attributes>> {
        let request = message(kind, NLM_F_DUMP, family, &[]);
        self.0.send(&request, 0)?;
        let (mut all, mut is_done) = (Vec::new(), false);
        while !is_done {
            let (answer, _) = self.0.recv_from_full()?;
            each_message(&answer, |kind, payload| {
                match kind {
                    NLMSG_DONE => is_done = true,
                    NLMSG_ERROR => return acknowledged(payload),
                    _ => all.push(parse(&payload[NETFILTER_HEADER..]).into_iter().collect()),
                }
                Ok(())
            })?;
        }
        Ok(all)
    }
}

/// One message about nftables, with its flags beside `NLM_F_REQUEST`.
pub fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(NETLINK_HEADER + NETFILTER_HEADER + attributes.len());
    let length = length.expect("a message is short").to_ne_bytes();
    let flags = (NLM_F_REQUEST | flags).to_ne_bytes();
    let header = [&length[..], &kind.to_ne_bytes(), &flags, &[0; 8]].concat();
    // The version of nfnetlink is 0; beginnings and ends of transactions name the subsystem there.
    let resource = if kind >> 8 == 0 { NFTABLES >> 8 } else { 0 };
    let netfilter = [&[family, 0][..], &resource.to_be_bytes()].concat();
    [header, netfilter, attributes.to_vec()].concat()
}

/// One attribute.
pub fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    let mut bytes = [&length.to_ne_bytes()[..], &number.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn each_message(
    answer: &[u8],
    mut take: impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = answer;
    while let Ok(header) = NetlinkBuffer::new_checked(rest) {
        take(header.message_type(), header.payload())?;
        let length = usize::try_from(header.length()).expect("a length fits");
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// The number in front of an answer is 0 where all went well.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    let code = payload
        .first_chunk()
        .map(|bytes| i32::from_ne_bytes(*bytes));
    match code {
        Some(0) => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code.unwrap_or(-5))),
    }
}

fn parse(attributes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    NlasIterator::new(attributes)
        .map(|attribute| attribute.expect("the kernel writes whole attributes"))
        .map(|attribute| (attribute.kind(), attribute.value().to_vec()))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
