//! What rules are made of: nf_tables expressions, with the types of `netlink-packet-netfilter` where it has them.
//!
//! Pure. Values that make up a key lie side by side in registers of 32 bits, from the first one up, each with
//! as many registers as it needs.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload, Register,
    Verdict, VerdictAttribute,
};

use crate::model::{AffinityTimeout, Family};

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_NG_DREG: u16 = 1;
const NFTA_NG_MODULUS: u16 = 2;
const NFTA_NG_TYPE: u16 = 3;
const NFTA_NG_OFFSET: u16 = 4;
const NFT_NG_RANDOM: u32 = 1;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1;
/// `RTN_LOCAL` of include/uapi/linux/rtnetlink.h
const RTN_LOCAL: u32 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const NFT_CT_PROTO_DST: u32 = 12;
const NFT_CT_DST_IP: u32 = 20;
const NFT_CT_DST_IP6: u32 = 22;
/// `IP_CT_DIR_ORIGINAL`
const ORIGINAL: u8 = 0;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_SREG_DATA: u16 = 5;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFT_DYNSET_OP_UPDATE: u32 = 1;
/// `NF_DROP` of include/uapi/linux/netfilter.h
pub(super) const NF_DROP: u32 = 0;
/// The space for an interface's name, with the zero at its end.
const IFNAMSIZ: usize = 16;

/// A value that can be part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// `ip saddr`
    Source,
    /// `ip daddr`
    Destination,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `ct original ip daddr`
    CalledAddress,
    /// `ct original proto-dst`
    CalledPort,
}

/// Hands out registers, one value after the other.
pub(super) struct Registers {
    family: Family,
    used: u32,
}

impl Registers {
    /// All registers are free.
    pub(super) fn new(family: Family) -> Self {
        Self { family, used: 0 }
    }

    /// The next free register.
    pub(super) fn next(&self) -> Register {
        register(self.used)
    }

    fn take(&mut self, count: u32) -> Register {
        let first = self.next();
        self.used += count;
        first
    }
}

/// How many registers an address takes.
fn address_registers(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// The register of 32 bits with this number, from 0 up.
fn register(number: u32) -> Register {
    Register::from(u32::from(Register::Reg32_00) + number)
}

/// Loads a value into the next registers.
pub(super) fn load(key: Key, registers: &mut Registers) -> Expressions {
    let family = registers.family;
    let count = match key {
        Key::Source | Key::Destination | Key::CalledAddress => address_registers(family),
        Key::Protocol | Key::Port | Key::CalledPort => 1,
    };
    let into = registers.take(count);
    // Offsets in the IP header (RFC 791, RFC 8200) and in those of TCP, UDP and SCTP.
    match (key, family) {
        (Key::Source, Family::V4) => payload(NFT_PAYLOAD_NETWORK_HEADER, 12, 4, into),
        (Key::Source, Family::V6) => payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 16, into),
        (Key::Destination, Family::V4) => payload(NFT_PAYLOAD_NETWORK_HEADER, 16, 4, into),
        (Key::Destination, Family::V6) => payload(NFT_PAYLOAD_NETWORK_HEADER, 24, 16, into),
        (Key::Port, _) => payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, into),
        (Key::Protocol, _) => meta(MetaKey::L4Proto, into),
        (Key::CalledAddress, Family::V4) => conntrack(NFT_CT_DST_IP, into),
        (Key::CalledAddress, Family::V6) => conntrack(NFT_CT_DST_IP6, into),
        (Key::CalledPort, _) => conntrack(NFT_CT_PROTO_DST, into),
    }
}

/// A random index into the next register.
pub(super) fn numgen(first: u16, count: u16, registers: &mut Registers) -> Expressions {
    let mut attributes = vec![
        number(NFTA_NG_DREG, registers.take(1).into()),
        number(NFTA_NG_MODULUS, count.into()),
        number(NFTA_NG_TYPE, NFT_NG_RANDOM),
    ];
    attributes.extend((first > 0).then(|| number(NFTA_NG_OFFSET, first.into())));
    other("numgen", attributes)
}

/// Looks up the key in a map; what is found takes its place in the registers.
pub(super) fn lookup(map: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(register(0)),
        Lookup::DestinationRegister(register(0)),
    ])
}

/// Goes on if the key is in a set.
pub(super) fn contains(set: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(register(0)),
    ])
}

/// Goes on if the key is not in a set.
pub(super) fn lookup_not(set: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(register(0)),
        Lookup::Flags(NFT_LOOKUP_F_INV),
    ])
}

/// Goes on if the first registers compare so with these bytes.
pub(super) fn compare(operator: Operator, bytes: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register(0)),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes)),
    ])
}

/// `iifname NAME`, or `iifname != NAME`; a prefix stands for all names that begin with it.
pub(super) fn interface_is(name: &str, prefix: bool, wanted: bool) -> Vec<Expressions> {
    let mut bytes = name.as_bytes().to_vec();
    if !prefix {
        bytes.resize(IFNAMSIZ, 0);
    }
    let operator = if wanted {
        Operator::Equal
    } else {
        Operator::NotEqual
    };
    vec![
        meta(MetaKey::Iifname, register(0)),
        compare(operator, bytes),
    ]
}

/// `fib saddr type local`
pub(super) fn fib_source_is_local() -> Vec<Expressions> {
    let fib = other(
        "fib",
        vec![
            number(NFTA_FIB_DREG, register(0).into()),
            number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
            number(NFTA_FIB_FLAGS, NFTA_FIB_F_SADDR),
        ],
    );
    let local = RTN_LOCAL.to_ne_bytes().to_vec();
    vec![fib, compare(Operator::Equal, local)]
}

/// Jumps or goes to a chain.
pub(super) fn go(verdict: Verdict, chain: &str) -> Expressions {
    let chain = VerdictAttribute::Chain(chain.to_owned());
    verdict_of(vec![VerdictAttribute::Code(verdict), chain])
}

/// `drop`
pub(super) fn drop_it() -> Expressions {
    verdict_of(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])
}

/// Translates the destination to the address and port in the first registers.
pub(super) fn nat(family: Family) -> Expressions {
    let nfproto = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let port = register(address_registers(family));
    other(
        "nat",
        vec![
            number(NFTA_NAT_TYPE, NFT_NAT_DNAT),
            number(NFTA_NAT_FAMILY, nfproto),
            number(NFTA_NAT_REG_ADDR_MIN, register(0).into()),
            number(NFTA_NAT_REG_PROTO_MIN, port.into()),
        ],
    )
}

/// Adds the key in the first registers to a map, with the data from a register up; it goes after a time, which begins
/// anew if it is there already.
pub(super) fn update(map: &str, data: Register, timeout: AffinityTimeout) -> Expressions {
    let milliseconds = u64::from(timeout.seconds()) * 1000;
    let mut name = map.as_bytes().to_vec();
    name.push(0);
    other(
        "dynset",
        vec![
            number(NFTA_DYNSET_SREG_KEY, register(0).into()),
            number(NFTA_DYNSET_SREG_DATA, data.into()),
            number(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE),
            DefaultNla::new(NFTA_DYNSET_SET_NAME, name),
            DefaultNla::new(NFTA_DYNSET_TIMEOUT, milliseconds.to_be_bytes().to_vec()),
        ],
    )
}

fn payload(base: u32, offset: u32, length: u32, into: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(into),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn meta(key: MetaKey, into: Register) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(into)])
}

/// A value of the tracked connection, as its first packet had it.
fn conntrack(key: u32, into: Register) -> Expressions {
    other(
        "ct",
        vec![
            number(NFTA_CT_DREG, into.into()),
            number(NFTA_CT_KEY, key),
            DefaultNla::new(NFTA_CT_DIRECTION, vec![ORIGINAL]),
        ],
    )
}

fn verdict_of(verdict: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// An expression that the crate has no type for.
fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    }
}
