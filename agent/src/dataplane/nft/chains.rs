//! Chains that balance → netlink messages.
//!
//! Pure. They have to be made while the agent runs, when a Service first has so many endpoints, and in the
//! same transaction as the elements that go there. The `nft` program cannot add them: up to 1.0.6 it fails on
//! a table that already has maps with `typeof … th dport` ("conflicting protocols specified"). So their rules
//! are written twice, here and as text in [`super::skeleton::Skeleton::chains_text`]; the test
//! `the_agent_and_the_dry_run_load_the_same_table` in `tests/` holds the two together.

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey,
    NfTablesMessage, Payload, Register, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};

use super::elements::{At, Chain, Set};
use super::skeleton::{MARK_CHAIN, POD_NETWORKS, TABLE};
use crate::model::Family;
use crate::plan::Masquerade;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_NG_DREG: u16 = 1;
const NFTA_NG_MODULUS: u16 = 2;
const NFTA_NG_TYPE: u16 = 3;
const NFT_NG_RANDOM: u32 = 1;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

/// Messages, with their flags, that make a chain and its rules.
pub(super) fn messages(
    chain: Chain,
    family: Family,
    has_pod_networks: bool,
) -> Vec<(NfTablesMessage, u16)> {
    let Chain::Balance {
        at,
        masquerade,
        count,
    } = chain
    else {
        return Vec::new();
    };
    let name = chain.to_string();
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(name.clone()),
    ];
    let mut messages = vec![(
        NfTablesMessage::NewChain(ChainMessage { attributes }),
        NLM_F_CREATE,
    )];
    let mut rules = Vec::new();
    match masquerade {
        Masquerade::Always => rules.push(vec![jump_to_mark()]),
        Masquerade::OutsidePods if has_pod_networks => rules.push(mark_outside_pods(family)),
        Masquerade::OutsidePods => {}
    }
    rules.push(translate(at, family, count));
    messages.extend(rules.into_iter().map(|expressions| {
        let attributes = vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(name.clone()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ];
        (
            NfTablesMessage::NewRule(RuleMessage { attributes }),
            NLM_F_CREATE | NLM_F_APPEND,
        )
    }));
    messages
}

/// The bytes of a chain's messages, for the version of the program.
pub(super) fn bytes(chain: Chain, family: Family, has_pod_networks: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (message, _) in messages(chain, family, has_pod_networks) {
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.emit(&mut bytes[start..]);
    }
    bytes
}

/// `jump mark-for-masquerade`
fn jump_to_mark() -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![
            VerdictAttribute::Code(Verdict::Jump),
            VerdictAttribute::Chain(MARK_CHAIN.to_owned()),
        ])),
    ])
}

/// `ip saddr != @pod-networks jump mark-for-masquerade`
fn mark_outside_pods(family: Family) -> Vec<Expressions> {
    let (source, length) = match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    };
    vec![
        load(NFT_PAYLOAD_NETWORK_HEADER, source, length, register(0)),
        Expressions::Lookup(vec![
            Lookup::Set(POD_NETWORKS.to_owned()),
            Lookup::SourceRegister(register(0)),
            Lookup::Flags(NFT_LOOKUP_F_INV),
        ]),
        jump_to_mark(),
    ]
}

/// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod COUNT map @endpoints`, and the same
/// without the address at NodePorts.
fn translate(at: At, family: Family, count: u16) -> Vec<Expressions> {
    let (destination, length, nfproto) = match family {
        Family::V4 => (16, 4, NFPROTO_IPV4),
        Family::V6 => (24, 16, NFPROTO_IPV6),
    };
    let address_words = length / 4;
    let mut expressions = Vec::new();
    let (set, protocol) = match at {
        At::NodePort => (Set::NodePortEndpoints, 0),
        At::Address => {
            expressions.push(load(
                NFT_PAYLOAD_NETWORK_HEADER,
                destination,
                length,
                register(0),
            ));
            (Set::Endpoints, address_words)
        }
    };
    expressions.extend([
        Expressions::Meta(vec![
            Meta::Key(MetaKey::L4Proto),
            Meta::DestinationRegister(register(protocol)),
        ]),
        load(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, register(protocol + 1)),
        other(
            "numgen",
            &[
                (NFTA_NG_DREG, register(protocol + 2).into()),
                (NFTA_NG_MODULUS, count.into()),
                (NFTA_NG_TYPE, NFT_NG_RANDOM),
            ],
        ),
        Expressions::Lookup(vec![
            Lookup::Set(set.name().to_owned()),
            Lookup::SourceRegister(register(0)),
            Lookup::DestinationRegister(register(0)),
        ]),
        other(
            "nat",
            &[
                (NFTA_NAT_TYPE, NFT_NAT_DNAT),
                (NFTA_NAT_FAMILY, nfproto),
                (NFTA_NAT_REG_ADDR_MIN, register(0).into()),
                (NFTA_NAT_REG_PROTO_MIN, register(address_words).into()),
            ],
        ),
    ]);
    expressions
}

/// The register of 32 bits with this number, from 0 up.
fn register(number: u32) -> Register {
    Register::from(u32::from(Register::Reg32_00) + number)
}

fn load(base: u32, offset: u32, length: u32, into: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(into),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// An expression that the crate has no type for, of attributes that are numbers of 32 bits.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let nla = |(kind, value): &(u16, u32)| DefaultNla::new(*kind, value.to_be_bytes().to_vec());
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes.iter().map(nla).collect(),
    }
}
