//! What rules are made of: nf_tables expressions, with the types of `netlink-packet-netfilter` where it has them.
//!
//! Pure. Values that make up a key lie side by side in registers of 32 bits, from the first one up, each with
//! as many registers as it needs.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

use super::rule::Value;
use crate::model::Family;

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
const NFTA_FIB_F_DADDR: u32 = 2;
/// `RTN_LOCAL` of include/uapi/linux/rtnetlink.h
const RTN_LOCAL: u32 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_STATUS: u32 = 2;
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
const NFTA_MASQ_FLAGS: u16 = 1;
const NFTA_MASQ_REG_PROTO_MIN: u16 = 2;
const NFTA_MASQ_REG_PROTO_MAX: u16 = 3;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_REJECT_ICMP_CODE: u16 = 2;
const NFT_REJECT_ICMP_UNREACH: u32 = 0;
const NFT_REJECT_TCP_RST: u32 = 1;
/// Of include/uapi/linux/icmp.h and icmpv6.h.
const ICMP_PORT_UNREACH: u8 = 3;
const ICMPV6_PORT_UNREACH: u8 = 4;
/// Of include/uapi/linux/netfilter/nf_nat.h.
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 16;
/// `NF_DROP` and `NF_ACCEPT` of include/uapi/linux/netfilter.h
pub(super) const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NF_CT_STATE_BIT(IP_CT_NEW)` of include/uapi/linux/netfilter/nf_conntrack_common.h
const STATE_NEW: u32 = 8;
/// `IPS_DST_NAT`
const STATUS_DST_NAT: u32 = 0x20;
/// The flags in the header of TCP (RFC 9293): their place, and some of them.
const TCP_FLAGS: u32 = 13;
const FIN_SYN_RST_ACK: u8 = 0x17;
const SYN: u8 = 0x02;
/// The space for an interface's name, with the zero at its end.
const IFNAMSIZ: usize = 16;

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

    /// The family whose addresses they hold.
    pub(super) const fn family(&self) -> Family {
        self.family
    }

    /// The next free registers, which are then used.
    fn take(&mut self, count: u32) -> Register {
        let first = self.next();
        self.used += count;
        first
    }
}

/// The register of 32 bits with this number, from 0 up.
pub(super) fn register(number: u32) -> Register {
    Register::from(u32::from(Register::Reg32_00) + number)
}

/// Loads a value into the next registers.
pub(super) fn load(value: Value, registers: &mut Registers) -> Expressions {
    let family = registers.family;
    let into = registers.take(value.registers(family));
    // Offsets in the IP header (RFC 791, RFC 8200) and in those of TCP, UDP and SCTP.
    match (value, family) {
        (Value::Source, Family::V4) => payload(NFT_PAYLOAD_NETWORK_HEADER, 12, 4, into),
        (Value::Source, Family::V6) => payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 16, into),
        (Value::Destination, Family::V4) => payload(NFT_PAYLOAD_NETWORK_HEADER, 16, 4, into),
        (Value::Destination, Family::V6) => payload(NFT_PAYLOAD_NETWORK_HEADER, 24, 16, into),
        (Value::Port | Value::PortOf(_), _) => payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, into),
        (Value::Protocol, _) => meta(MetaKey::L4Proto, into),
        (Value::CalledAddress, Family::V4) => called(NFT_CT_DST_IP, into),
        (Value::CalledAddress, Family::V6) => called(NFT_CT_DST_IP6, into),
        (Value::CalledPort, _) => called(NFT_CT_PROTO_DST, into),
        (Value::IncomingDevice, _) => meta(MetaKey::Iif, into),
        (Value::OutgoingDevice, _) => meta(MetaKey::Oif, into),
        (Value::SharedKey(_), _) => unreachable!("it takes more than one expression"),
        (Value::Index { first, count }, _) => numgen(first, count, into),
    }
}

/// A random index.
fn numgen(first: u32, count: u32, into: Register) -> Expressions {
    let mut attributes = vec![
        number(NFTA_NG_DREG, into.into()),
        number(NFTA_NG_MODULUS, count),
        number(NFTA_NG_TYPE, NFT_NG_RANDOM),
    ];
    attributes.extend((first > 0).then(|| number(NFTA_NG_OFFSET, first)));
    other("numgen", attributes)
}

/// Looks up the key in a map; what is found takes its place in the registers.
pub(super) fn lookup(map: &str) -> Expressions {
    lookup_between(map, register(0), register(0))
}

/// Looks up the key in a map, and does what that says.
pub(super) fn verdict_of_map(map: &str) -> Expressions {
    lookup_between(map, register(0), Register::Verdict)
}

/// Looks up the key from one register on in a map, and puts what is found into another one.
pub(super) fn lookup_between(map: &str, key: Register, into: Register) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(key),
        Lookup::DestinationRegister(into),
    ])
}

/// Goes on if the key is in a set, or if it is not.
pub(super) fn is_member(set: &str, wanted: bool) -> Expressions {
    let mut lookup = vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(register(0)),
    ];
    lookup.extend((!wanted).then_some(Lookup::Flags(NFT_LOOKUP_F_INV)));
    Expressions::Lookup(lookup)
}

/// `meta l4proto NUMBER`
pub(super) fn protocol_is(number: u8) -> Vec<Expressions> {
    vec![
        meta(MetaKey::L4Proto, register(0)),
        compare(Operator::Equal, vec![number]),
    ]
}

/// `th sport >= PORT`
pub(super) fn source_port_from(port: u16) -> Vec<Expressions> {
    vec![
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, register(0)),
        compare(Operator::GreatherThanEqual, port.to_be_bytes().to_vec()),
    ]
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

/// `meta mark & BIT != 0`
pub(super) fn is_marked(bit: u32) -> Vec<Expressions> {
    any_of(meta(MetaKey::Mark, register(0)), bit)
}

/// `ct state new`
pub(super) fn is_new() -> Vec<Expressions> {
    any_of(conntrack(NFT_CT_STATE, register(0)), STATE_NEW)
}

/// `ct status dnat`
pub(super) fn is_translated() -> Vec<Expressions> {
    any_of(conntrack(NFT_CT_STATUS, register(0)), STATUS_DST_NAT)
}

/// Goes on if what is loaded has any of some bits.
fn any_of(load: Expressions, bits: u32) -> Vec<Expressions> {
    vec![
        load,
        bitwise(bits.to_ne_bytes().to_vec(), vec![0; 4]),
        compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// `tcp flags & (fin | syn | rst | ack) != syn`
pub(super) fn is_not_opening() -> Vec<Expressions> {
    vec![
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS, 1, register(0)),
        bitwise(vec![FIN_SYN_RST_ACK], vec![0]),
        compare(Operator::NotEqual, vec![SYN]),
    ]
}

/// `fib saddr type local`
pub(super) fn source_is_here() -> Vec<Expressions> {
    fib_is_local(NFTA_FIB_F_SADDR)
}

/// `fib daddr type local`
pub(super) fn destination_is_here() -> Vec<Expressions> {
    fib_is_local(NFTA_FIB_F_DADDR)
}

fn fib_is_local(flags: u32) -> Vec<Expressions> {
    let fib = other(
        "fib",
        vec![
            number(NFTA_FIB_DREG, register(0).into()),
            number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
            number(NFTA_FIB_FLAGS, flags),
        ],
    );
    let local = RTN_LOCAL.to_ne_bytes().to_vec();
    vec![fib, compare(Operator::Equal, local)]
}

/// Sets bits of the packet's mark, and clears others: those that are in neither stay.
pub(super) fn change_mark(set: u32, clear: u32) -> Vec<Expressions> {
    let kept = !(set | clear);
    vec![
        meta(MetaKey::Mark, register(0)),
        bitwise(kept.to_ne_bytes().to_vec(), set.to_ne_bytes().to_vec()),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Mark),
            Meta::SourceRegister(register(0)),
        ]),
    ]
}

/// Jumps or goes to a chain.
pub(super) fn go(verdict: Verdict, chain: &str) -> Expressions {
    let chain = VerdictAttribute::Chain(chain.to_owned());
    verdict_of(vec![VerdictAttribute::Code(verdict), chain])
}

/// `accept`
pub(super) fn accept() -> Expressions {
    verdict_of(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])
}

/// `drop`
pub(super) fn drop_it() -> Expressions {
    verdict_of(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])
}

/// `reject`: the port is unreachable.
pub(super) fn reject(family: Family) -> Expressions {
    let code = match family {
        Family::V4 => ICMP_PORT_UNREACH,
        Family::V6 => ICMPV6_PORT_UNREACH,
    };
    reject_with(NFT_REJECT_ICMP_UNREACH, code)
}

/// `reject with tcp reset`
pub(super) fn reset() -> Expressions {
    reject_with(NFT_REJECT_TCP_RST, 0)
}

fn reject_with(kind: u32, code: u8) -> Expressions {
    let code = DefaultNla::new(NFTA_REJECT_ICMP_CODE, vec![code]);
    other("reject", vec![number(NFTA_REJECT_TYPE, kind), code])
}

/// Translates the destination to the address and port in the first registers.
pub(super) fn nat(family: Family) -> Expressions {
    let nfproto = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let port = register(Value::Destination.registers(family));
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

/// `masquerade fully-random`, to any port or to one between two.
pub(super) fn masquerade(ports: Option<(u16, u16)>) -> Vec<Expressions> {
    let Some((first, last)) = ports else {
        let flags = number(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
        return vec![other("masq", vec![flags])];
    };
    let flags = NF_NAT_RANGE_PROTO_RANDOM_FULLY | NF_NAT_RANGE_PROTO_SPECIFIED;
    let port = |port: u16, into| {
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(into),
            Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
        ])
    };
    let attributes = vec![
        number(NFTA_MASQ_FLAGS, flags),
        number(NFTA_MASQ_REG_PROTO_MIN, Register::Reg1.into()),
        number(NFTA_MASQ_REG_PROTO_MAX, Register::Reg2.into()),
    ];
    vec![
        port(first, Register::Reg1),
        port(last, Register::Reg2),
        other("masq", attributes),
    ]
}

/// Adds the key in the first registers to a map, with the data from a register up, or to a set; it goes after a time, which
/// begins anew if it is there already.
pub(super) fn update(map: &str, data: Option<Register>, seconds: u32) -> Expressions {
    let milliseconds = u64::from(seconds) * 1000;
    let name = [map.as_bytes(), &[0]].concat();
    let mut attributes = vec![number(NFTA_DYNSET_SREG_KEY, register(0).into())];
    attributes.extend(data.map(|data| number(NFTA_DYNSET_SREG_DATA, data.into())));
    attributes.extend([
        number(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE),
        DefaultNla::new(NFTA_DYNSET_SET_NAME, name),
        DefaultNla::new(NFTA_DYNSET_TIMEOUT, milliseconds.to_be_bytes().to_vec()),
    ]);
    other("dynset", attributes)
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
fn called(key: u32, into: Register) -> Expressions {
    other(
        "ct",
        vec![
            number(NFTA_CT_DREG, into.into()),
            number(NFTA_CT_KEY, key),
            DefaultNla::new(NFTA_CT_DIRECTION, vec![ORIGINAL]),
        ],
    )
}

/// A value of the tracked connection.
fn conntrack(key: u32, into: Register) -> Expressions {
    let into = number(NFTA_CT_DREG, into.into());
    other("ct", vec![into, number(NFTA_CT_KEY, key)])
}

/// Takes the bits of a mask of what is in the first registers, and inverts those of another.
fn bitwise(mask: Vec<u8>, invert: Vec<u8>) -> Expressions {
    let length = u32::try_from(mask.len()).expect("a mask has few bytes");
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register(0)),
        Bitwise::DestinationRegister(register(0)),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(invert)),
    ])
}

/// Goes on if the first registers compare so with these bytes.
fn compare(operator: Operator, bytes: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register(0)),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes)),
    ])
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
