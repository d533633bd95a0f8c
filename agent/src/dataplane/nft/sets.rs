//! The table's sets and maps: what their keys and data are, as text and as netlink messages.
//!
//! Pure. The kernel keeps lengths only. What the bytes mean nft writes beside, in the user data of a set, so that it can
//! list elements as people know them: by the number of a type for each value, and by the expressions that they come from.

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetAttribute, SetDescription, SetFlags, SetMessage,
};

use super::batch::Flagged;
use super::elements::Set;
use super::rule::{Key, Value, key_registers, key_text};
use super::skeleton::{AFFINITY, AFFINITY_SIZE, SAME_DEVICE, SAME_DEVICE_SIZE, TABLE};
use crate::model::Family;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
const NFTA_SET_EXPR: u16 = 17;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_FIELD_LEN: u16 = 1;

/// Of a value that only rules have.
const NO_PART: &str = "no set has it";

/// How many bits of a type's number tell one of a concatenation (nftables `include/datatype.h`).
const TYPE_BITS: u32 = 6;

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    /// What it is for, for readers of the text: a line, or nothing.
    comment: &'static str,
    name: &'static str,
    key: Key,
    data: Data,
    options: Options,
}

/// What a map has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Data {
    /// It is a set.
    None,
    /// What to do.
    Verdict,
    /// Values.
    Values(Key),
}

/// What else there is to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Options {
    None,
    /// Its elements count packets.
    Counter,
    /// Its elements may stand for many keys.
    Interval,
    /// Rules add to it, for a time, at most so many.
    Added(u32),
}

/// All sets and maps of a table, in the order in which they are made.
pub(super) fn all() -> Vec<Definition> {
    let index = Value::Index {
        first: 0,
        count: 65536,
    };
    let service = vec![Value::Destination, Value::Protocol, Value::Port];
    let node_port = vec![Value::Protocol, Value::Port];
    let with = |key: &Key, last: Value| [key.as_slice(), &[last]].concat();
    let backend = || Data::Values(vec![Value::Destination, Value::Port]);
    let verdicts = |set, key: &Key| define(set, key, Data::Verdict, Options::Counter);
    let affinities = |set, key: &Key| define(set, key, Data::Verdict, Options::None);
    let set = |set, key: &[Value]| define(set, key, Data::None, Options::None);
    let networks = |set, key: &[Value]| define(set, key, Data::None, Options::Interval);
    let keys = |set, key: &Key| {
        let shared = [&[Value::Protocol], service.as_slice()].concat();
        define(set, key, Data::Values(shared), Options::None)
    };
    let same_device = Definition {
        comment: "",
        name: SAME_DEVICE,
        key: vec![Value::IncomingDevice, Value::OutgoingDevice],
        data: Data::None,
        options: Options::Added(SAME_DEVICE_SIZE),
    };
    let affinity = Definition {
        comment: "",
        name: AFFINITY,
        key: [&[Value::Source], service.as_slice()].concat(),
        data: backend(),
        options: Options::Added(AFFINITY_SIZE),
    };
    vec![
        verdicts(Set::Services, &service)
            .for_readers("New connections: who balances them over how many endpoints."),
        verdicts(Set::NodePorts, &node_port),
        define(Set::Endpoints, &with(&service, index), backend(), Options::None).for_readers(
            "The endpoints, each under an index: from 0 up on every node, from 32768 up on this one.",
        ),
        define(
            Set::NodePortEndpoints,
            &with(&node_port, index),
            backend(),
            Options::None,
        ),
        verdicts(Set::NoEndpoints, &service)
            .for_readers("Services that no endpoint can serve now."),
        verdicts(Set::NoEndpointNodePorts, &node_port),
        affinities(Set::Affinities, &service).for_readers(
            "Session affinity: who remembers the clients of a Service for how long, and whom they were sent to.",
        ),
        affinities(Set::NodePortAffinities, &node_port),
        affinity,
        keys(Set::AffinityKeys, &service).for_readers(
            "All front ends of a Service port remember clients under the address that these say, which is its ClusterIP.",
        ),
        keys(Set::NodePortAffinityKeys, &node_port),
        set(Set::Guarded, &service)
            .for_readers("Load-balancer addresses that only some sources may call."),
        networks(Set::AllowedSources, &with(&service, Value::Source)).for_readers(
            "Who may call those. (Of the rule that asks this, nft 1.0.6 makes what Linux 6.12 refuses; newer ones do not.)",
        ),
        set(Set::ClusterIps, &[Value::Destination]).for_readers(
            "The addresses of Services, and the networks that they are allocated from.",
        ),
        networks(Set::ServiceNetworks, &[Value::Destination]),
        set(Set::OuterAddresses, &[Value::Destination]).for_readers(
            "Load-balancer and external addresses: what no Service has there is not sent back the way that it came.",
        ),
        same_device,
        set(Set::NodePortAddresses, &[Value::Destination])
            .for_readers("This node's addresses that have NodePorts."),
        set(Set::Hairpin, &[Value::Source, Value::Destination]).for_readers(
            "Endpoints that may run here: one that reaches itself through a Service is masqueraded.",
        ),
        networks(Set::PodNetworks, &[Value::Source]).for_readers(
            "Where the cluster's pods are; others are masqueraded on their way to a ClusterIP.",
        ),
    ]
}

fn define(set: Set, key: &[Value], data: Data, options: Options) -> Definition {
    Definition {
        comment: "",
        name: set.name(),
        key: key.to_vec(),
        data,
        options,
    }
}

impl Definition {
    fn for_readers(self, comment: &'static str) -> Self {
        Self { comment, ..self }
    }

    /// The set as it stands in a table's text.
    pub(super) fn text(&self, family: Family) -> String {
        let comment = if self.comment.is_empty() {
            String::new()
        } else {
            format!("\t# {}\n", self.comment)
        };
        let (kind, data) = match &self.data {
            Data::None => ("set", String::new()),
            Data::Verdict => ("map", " : verdict".to_owned()),
            Data::Values(values) => ("map", format!(" : {}", key_text(values, family))),
        };
        let options = match self.options {
            Options::None => String::new(),
            Options::Counter => "\t\tcounter\n".to_owned(),
            Options::Interval => "\t\tflags interval\n".to_owned(),
            Options::Added(size) => format!("\t\tsize {size}\n\t\tflags dynamic,timeout\n"),
        };
        let (name, key) = (self.name, key_text(&self.key, family));
        format!("{comment}\t{kind} {name} {{\n\t\ttypeof {key}{data}\n{options}\t}}\n")
    }

    /// The message that makes it. `number` tells it from others of one transaction.
    pub(super) fn message(&self, family: Family, number: u32) -> Flagged {
        let mut attributes = vec![
            SetAttribute::Table(TABLE.to_owned()),
            SetAttribute::Name(self.name.to_owned()),
            SetAttribute::Flags(self.flags()),
            SetAttribute::KeyType(type_number(&self.key, family)),
            SetAttribute::KeyLen(length(&self.key, family)),
            SetAttribute::Id(number),
            SetAttribute::UserData(self.user_data(family)),
        ];
        match &self.data {
            Data::None => {}
            Data::Verdict => attributes.push(SetAttribute::DataType(NFT_DATA_VERDICT)),
            Data::Values(values) => attributes.extend([
                SetAttribute::DataType(type_number(values, family)),
                SetAttribute::DataLen(length(values, family)),
            ]),
        }
        match self.options {
            Options::None => {}
            Options::Counter => {
                let name = DefaultNla::new(NFTA_EXPR_NAME, b"counter\0".to_vec());
                let counter = nested(NFTA_SET_EXPR, &[name]);
                attributes.push(SetAttribute::Other(counter));
            }
            Options::Interval if self.key.len() > 1 => {
                let fields = self.key.iter().map(|value| field(*value, family));
                let fields = SetDescription::Concat(fields.collect());
                attributes.push(SetAttribute::Description(vec![fields]));
            }
            Options::Interval => {}
            Options::Added(size) => {
                let size = SetDescription::Size(size);
                attributes.push(SetAttribute::Description(vec![size]));
            }
        }
        let message = NfTablesMessage::NewSet(SetMessage { attributes });
        (message, NLM_F_CREATE)
    }

    fn flags(&self) -> SetFlags {
        let mut flags = match self.options {
            Options::Interval if self.key.len() > 1 => SetFlags::Interval | SetFlags::Concat,
            Options::Interval => SetFlags::Interval,
            Options::Added(_) => SetFlags::Timeout | SetFlags::Eval,
            Options::None | Options::Counter => SetFlags::empty(),
        };
        flags.set(SetFlags::Map, self.data != Data::None);
        flags
    }

    /// What nft keeps beside (its `src/mnl.c`, `mnl_nft_set_add`).
    fn user_data(&self, family: Family) -> Vec<u8> {
        const KEY_BYTE_ORDER: u8 = 0;
        const DATA_BYTE_ORDER: u8 = 1;
        const KEY_TYPEOF: u8 = 3;
        const DATA_TYPEOF: u8 = 4;
        const DATA_INTERVAL: u8 = 6;
        /// A concatenation has none.
        const NO_BYTE_ORDER: u32 = 0;
        const BIG_ENDIAN: u32 = 2;
        let key_order = match self.key.as_slice() {
            [_] => BIG_ENDIAN,
            _ => NO_BYTE_ORDER,
        };
        let key = item(KEY_TYPEOF, &typeof_key(&self.key, family));
        let data = match &self.data {
            Data::None => return [number(KEY_BYTE_ORDER, key_order), key].concat(),
            Data::Verdict => expression(Expression::Verdict, &[]),
            Data::Values(values) => typeof_key(values, family),
        };
        [
            number(KEY_BYTE_ORDER, key_order),
            number(DATA_BYTE_ORDER, NO_BYTE_ORDER),
            key,
            item(DATA_TYPEOF, &data),
            number(DATA_INTERVAL, 0),
        ]
        .concat()
    }
}

/// An attribute that holds others.
fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// The length of one field of a concatenation.
fn field(value: Value, family: Family) -> DefaultNla {
    let length = DefaultNla::new(
        NFTA_SET_FIELD_LEN,
        value_length(value, family).to_be_bytes().to_vec(),
    );
    nested(NFTA_LIST_ELEM, &[length])
}

/// How many bytes a value has.
fn value_length(value: Value, family: Family) -> u32 {
    match value {
        Value::Source | Value::Destination | Value::CalledAddress => value.registers(family) * 4,
        Value::Protocol => 1,
        Value::Port | Value::PortOf(_) | Value::CalledPort => 2,
        Value::Index { .. } | Value::IncomingDevice | Value::OutgoingDevice => 4,
        Value::SharedKey(_) => unreachable!("{NO_PART}"),
    }
}

/// How many bytes a key has, which stand in registers.
fn length(key: &[Value], family: Family) -> u32 {
    match key {
        [value] => value_length(*value, family),
        _ => key_registers(key, family) * 4,
    }
}

/// The number of a key's type (nftables `include/datatype.h`, `enum datatypes`).
fn type_number(key: &[Value], family: Family) -> u32 {
    let number = |value: &Value| match (value, family) {
        (Value::Source | Value::Destination | Value::CalledAddress, Family::V4) => 7,
        (Value::Source | Value::Destination | Value::CalledAddress, Family::V6) => 8,
        (Value::Protocol, _) => 12,
        (Value::Port | Value::PortOf(_) | Value::CalledPort, _) => 13,
        (Value::Index { .. }, _) => 4,
        (Value::IncomingDevice | Value::OutgoingDevice, _) => 20,
        (Value::SharedKey(_), _) => unreachable!("{NO_PART}"),
    };
    key.iter()
        .fold(0, |numbers, value| numbers << TYPE_BITS | number(value))
}

/// Kinds of expressions, as nft numbers them (its `include/expression.h`).
#[derive(Debug, Clone, Copy)]
enum Expression {
    Verdict = 1,
    Payload = 7,
    Meta = 9,
    Concatenation = 13,
    Index = 23,
}

/// The expression that a key comes from.
fn typeof_key(key: &[Value], family: Family) -> Vec<u8> {
    if let [value] = key {
        return typeof_value(*value, family);
    }
    let parts = (0..).zip(key);
    let parts = parts.map(|(place, value)| item(place, &typeof_value(*value, family)));
    expression(Expression::Concatenation, &parts.collect::<Vec<_>>())
}

/// The expression that a value comes from: of a payload the header and its field, of the rest what is asked for.
fn typeof_value(value: Value, family: Family) -> Vec<u8> {
    /// Headers, and fields of them (nftables `include/proto.h`).
    const TRANSPORT: u32 = 11;
    const TRANSPORT_DESTINATION: u32 = 2;
    let (header, source, destination) = match family {
        Family::V4 => (12, 11, 12),
        Family::V6 => (13, 8, 9),
    };
    /// `NFT_META_IIF`, `NFT_META_OIF` and `NFT_META_L4PROTO`, and `NFT_NG_RANDOM`.
    const IIF: u32 = 4;
    const OIF: u32 = 5;
    const L4PROTO: u32 = 16;
    const RANDOM: u32 = 1;
    let payload =
        |header, field| expression(Expression::Payload, &[number(0, header), number(1, field)]);
    match value {
        Value::Source => payload(header, source),
        Value::Destination | Value::CalledAddress => payload(header, destination),
        Value::Port | Value::PortOf(_) | Value::CalledPort => {
            payload(TRANSPORT, TRANSPORT_DESTINATION)
        }
        Value::Protocol => expression(Expression::Meta, &[number(0, L4PROTO)]),
        Value::IncomingDevice => expression(Expression::Meta, &[number(0, IIF)]),
        Value::OutgoingDevice => expression(Expression::Meta, &[number(0, OIF)]),
        Value::SharedKey(_) => unreachable!("{NO_PART}"),
        Value::Index { first, count } => expression(
            Expression::Index,
            &[number(0, RANDOM), number(1, count), number(2, first)],
        ),
    }
}

/// An expression of which nft can make the type again.
fn expression(kind: Expression, parts: &[Vec<u8>]) -> Vec<u8> {
    [number(0, kind as u32), item(1, &parts.concat())].concat()
}

/// One item of user data: kind, length, bytes (libnftnl `include/libnftnl/udata.h`).
pub(super) fn item(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("user data has at most 256 bytes");
    [&[kind, length], bytes].concat()
}

fn number(kind: u8, number: u32) -> Vec<u8> {
    item(kind, &number.to_ne_bytes())
}
