//! What rules are made of: the one description of each, from which come its text and, in `bytecode`, the kernel's expressions.
//!
//! Pure. A rule is a row of statements. Each is a match, which ends the rule for packets that do not fit, or something that
//! is done; none knows of another, so any may follow any. A statement that nft cannot say, or cannot load, is
//! [beyond nft](Statement::is_beyond_nft): its rule is a comment in the text, and the agent alone loads it.

use std::fmt;

use super::elements::Set;
use super::shapes::{At, Chain};
use crate::model::{Family, Protocol};
use crate::plan::Detector;

/// Stands before what text for `nft` has as a comment, since nft cannot load it.
pub(super) const BEYOND_NFT: &str = "# Only the agent can load this, nft 1.0.6 cannot: ";

/// The most bytes of a key or of data that nft up to 1.0.6 can add to a map by a rule: it aborts on more.
const MOST_ADDED_BYTES: u32 = 16;

/// Something of a packet or its connection that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// `ip saddr`
    Source,
    /// `ip daddr`
    Destination,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `tcp dport`: the same, where nft asks whose port it is.
    PortOf(Protocol),
    /// `ct original ip daddr`
    CalledAddress,
    /// `ct original proto-dst`. It has a type only beside a protocol.
    CalledPort,
    /// `meta iif`
    IncomingDevice,
    /// `meta oif`
    OutgoingDevice,
    /// What a map has for a front end that is called: the address, protocol and port by which choices for its clients are remembered.
    /// Nothing goes on if that has none. It stands behind [`Value::Source`], and only there.
    SharedKey(Called),
    /// `numgen random mod COUNT offset FIRST`
    Index {
        /// The first index.
        first: u32,
        /// How many there are.
        count: u32,
    },
}

/// The front end that a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Called {
    /// By its destination.
    Now(At),
    /// By the destination that the first packet of its connection had.
    Originally(At),
}

/// Values side by side, as a map or a set has them: a concatenation.
pub(super) type Key = Vec<Value>;

/// The chain that a packet goes on in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// One that is always there.
    Standing(&'static str),
    /// One that is made for a shape.
    Made(Chain),
}

/// One match, or one thing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// The packet is of a protocol.
    Is(Protocol),
    /// Its source port is this one or higher.
    SourcePortFrom(u16),
    /// Its mark has this bit.
    Marked(u32),
    /// The destination of its connection was translated.
    Translated,
    /// Its connection is new.
    New,
    /// A packet of TCP that does not ask for a connection.
    NotOpening,
    /// Its source is an address of this machine.
    FromHere,
    /// Its destination is an address of this machine.
    ToHere,
    /// It came in by an interface, or did not.
    Interface {
        /// The interface's name.
        name: String,
        /// Whether the name is only what it begins with.
        prefix: bool,
        /// Whether it has to be so, or has not to be.
        wanted: bool,
    },
    /// A key is in a set, or is not.
    Member {
        /// The key.
        key: Key,
        /// The set's name.
        set: &'static str,
        /// Whether it has to be there, or has not to be.
        wanted: bool,
    },
    /// Do what a map says of a key, if that is in it.
    Verdict {
        /// The key.
        key: Key,
        /// The map's name.
        map: &'static str,
    },
    /// Go through another chain, and come back.
    Jump(Target),
    /// Go on in another chain.
    Goto(Target),
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
    /// Answer that the port is unreachable.
    Reject,
    /// Answer with a reset.
    Reset,
    /// Set this bit of the mark.
    Mark(u32),
    /// Clear this bit of the mark.
    Unmark(u32),
    /// Translate the destination to what a map has for a key.
    Translate {
        /// The key.
        key: Key,
        /// The map's name.
        map: &'static str,
    },
    /// Translate the source to an address of this machine, to a port between two or to any.
    Masquerade(Option<(u16, u16)>),
    /// Add a key to a map or a set; it goes after a time, which begins anew if it is there already.
    Update {
        /// The map's name.
        map: &'static str,
        /// The key.
        key: Key,
        /// What the map then has for it; of a set nothing.
        data: Key,
        /// After how many seconds it goes.
        seconds: u32,
    },
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule(pub(super) Vec<Statement>);

/// How nft names a family.
pub(super) const fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl Value {
    /// How many registers of 32 bits it takes.
    pub(super) const fn registers(self, family: Family) -> u32 {
        match (self, family) {
            (Self::SharedKey(_), Family::V4) => 3,
            (Self::SharedKey(_), Family::V6) => 6,
            (Self::Source | Self::Destination | Self::CalledAddress, Family::V6) => 4,
            _ => 1,
        }
    }

    fn text(self, family: Family) -> String {
        let ip = nft_family(family);
        match self {
            Self::Source => format!("{ip} saddr"),
            Self::Destination => format!("{ip} daddr"),
            Self::Protocol => "meta l4proto".to_owned(),
            Self::Port => "th dport".to_owned(),
            Self::PortOf(protocol) => format!("{protocol} dport"),
            Self::CalledAddress => format!("ct original {ip} daddr"),
            Self::CalledPort => "ct original proto-dst".to_owned(),
            Self::IncomingDevice => "meta iif".to_owned(),
            Self::OutgoingDevice => "meta oif".to_owned(),
            Self::SharedKey(called) => {
                let (key, skipped, map) = called.looked_up(family);
                let key = if skipped == 0 { &key[..] } else { &key[1..] };
                format!("({} map @{map})", key_text(key, family))
            }
            Self::Index { first: 0, count } => format!("numgen random mod {count}"),
            Self::Index { first, count } => format!("numgen random mod {count} offset {first}"),
        }
    }
}

impl Called {
    /// The front end with its address, how many registers of that are no part of its key, and the map that has the key that it shares.
    pub(super) fn looked_up(self, family: Family) -> (Key, u32, &'static str) {
        let (at, address, port) = match self {
            Self::Now(at) => (at, Value::Destination, Value::Port),
            Self::Originally(at) => (at, Value::CalledAddress, Value::CalledPort),
        };
        let (skipped, map) = match at {
            At::Address => (0, Set::AffinityKeys),
            At::NodePort => (address.registers(family), Set::NodePortAffinityKeys),
        };
        (vec![address, Value::Protocol, port], skipped, map.name())
    }
}

/// A key as text.
pub(super) fn key_text(key: &[Value], family: Family) -> String {
    let values: Vec<String> = key.iter().map(|value| value.text(family)).collect();
    values.join(" . ")
}

/// How many registers of 32 bits a key takes.
pub(super) fn key_registers(key: &[Value], family: Family) -> u32 {
    key.iter().map(|value| value.registers(family)).sum()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standing(name) => f.write_str(name),
            Self::Made(chain) => chain.fmt(f),
        }
    }
}

impl Statement {
    /// The match of a packet from a pod, or of one that is from elsewhere. Only where it is known which those are.
    pub(super) fn from_pod(detector: &Detector, wanted: bool) -> Self {
        match detector {
            Detector::None => unreachable!("rules ask for pods only where a detector knows them"),
            Detector::Source => Self::Member {
                key: vec![Value::Source],
                set: Set::PodNetworks.name(),
                wanted,
            },
            Detector::Interface { name, prefix } => Self::Interface {
                name: name.clone(),
                prefix: *prefix,
                wanted,
            },
        }
    }

    /// Whether nft up to 1.0.6 cannot load it.
    pub(super) fn is_beyond_nft(&self, family: Family) -> bool {
        let is_shared = |value: &Value| matches!(value, Value::SharedKey(_));
        match self {
            Self::Update { key, data, .. } => {
                let is_long = |key: &Key| key_registers(key, family) * 4 > MOST_ADDED_BYTES;
                key.iter().any(is_shared) || is_long(key) || is_long(data)
            }
            Self::Translate { key, .. } => key.iter().any(is_shared),
            _ => false,
        }
    }

    fn text(&self, family: Family) -> String {
        let ip = nft_family(family);
        let key_text = |key: &Key| key_text(key, family);
        let not = |wanted| if wanted { "" } else { "!= " };
        match self {
            Self::Is(protocol) => format!("meta l4proto {protocol}"),
            Self::SourcePortFrom(port) => format!("th sport >= {port}"),
            Self::Marked(bit) => format!("meta mark & {bit:#010x} != 0"),
            Self::Translated => "ct status dnat".to_owned(),
            Self::New => "ct state new".to_owned(),
            Self::NotOpening => "tcp flags & (fin | syn | rst | ack) != syn".to_owned(),
            Self::FromHere => "fib saddr type local".to_owned(),
            Self::ToHere => "fib daddr type local".to_owned(),
            Self::Interface {
                name,
                prefix,
                wanted,
            } => {
                let any = if *prefix { "*" } else { "" };
                format!("iifname {}\"{name}{any}\"", not(*wanted))
            }
            Self::Member { key, set, wanted } => {
                format!("{} {}@{set}", key_text(key), not(*wanted))
            }
            Self::Verdict { key, map } => format!("{} vmap @{map}", key_text(key)),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Goto(chain) => format!("goto {chain}"),
            Self::Accept => "accept".to_owned(),
            Self::Drop => "drop".to_owned(),
            Self::Reject => "reject".to_owned(),
            Self::Reset => "reject with tcp reset".to_owned(),
            Self::Mark(bit) => format!("meta mark set meta mark or {bit:#010x}"),
            Self::Unmark(bit) => format!("meta mark set meta mark and {:#010x}", !bit),
            Self::Translate { key, map } => format!("dnat {ip} to {} map @{map}", key_text(key)),
            Self::Masquerade(None) => "masquerade fully-random".to_owned(),
            Self::Masquerade(Some((first, last))) => {
                format!("masquerade to :{first}-{last} fully-random")
            }
            Self::Update {
                map,
                key,
                data,
                seconds,
            } => {
                let key = key_text(key);
                let data = match data.as_slice() {
                    [] => String::new(),
                    _ => format!(" : {}", key_text(data)),
                };
                format!("update @{map} {{ {key} timeout {seconds}s{data} }}")
            }
        }
    }
}

impl Rule {
    /// The chains for shapes that it leads to.
    pub(super) fn made_targets(&self) -> impl Iterator<Item = Chain> {
        self.0.iter().filter_map(|statement| match statement {
            Statement::Goto(Target::Made(chain)) | Statement::Jump(Target::Made(chain)) => {
                Some(*chain)
            }
            _ => None,
        })
    }

    /// Whether nft up to 1.0.6 cannot load it.
    pub(super) fn is_beyond_nft(&self, family: Family) -> bool {
        self.0.iter().any(|part| part.is_beyond_nft(family))
    }

    /// What `nft` reads; a comment where it cannot load it.
    pub(super) fn text(&self, family: Family) -> String {
        let parts: Vec<String> = self.0.iter().map(|part| part.text(family)).collect();
        let beyond = if self.is_beyond_nft(family) {
            BEYOND_NFT
        } else {
            ""
        };
        format!("{beyond}{}", parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_cannot_load_is_a_comment() {
        let rule = Rule(vec![
            Statement::Is(Protocol::Tcp),
            Statement::Update {
                map: "m",
                key: vec![Value::Source, Value::Protocol],
                data: vec![Value::Destination, Value::PortOf(Protocol::Tcp)],
                seconds: 10_800,
            },
        ]);
        assert_eq!(
            rule.text(Family::V4),
            "meta l4proto tcp update @m { ip saddr . meta l4proto timeout 10800s : ip daddr . tcp dport }"
        );
        assert_eq!(
            rule.text(Family::V6),
            "# Only the agent can load this, nft 1.0.6 cannot: meta l4proto tcp update @m { ip6 saddr . \
             meta l4proto timeout 10800s : ip6 daddr . tcp dport }"
        );
    }
}
