//! What a table consists of beside the elements of its sets: so that rules which someone else changed are seen, and which
//! chains for shapes are there is known.
//!
//! Pure. Nothing is taken apart: the kernel gives every object of a table a handle of its own, and whoever changes a
//! rule makes a new one. What was found after a table was loaded is compared with what is found later.

use std::collections::BTreeSet;

use netlink_packet_core::NlasIterator;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetMessage,
};

use super::decode::{Answer, TABLE_NAME, text};
use super::encode::our_table;
use super::shapes::Chain;
use super::skeleton::TABLE;

/// The objects that a table has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Program {
    objects: BTreeSet<Object>,
    /// The chains among them that were made for shapes.
    chains: BTreeSet<Chain>,
}

/// One object: its kind, its chain or name, and its attributes that change when someone changes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    kind: Kind,
    of: Vec<u8>,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The table itself.
    Table,
    /// Its sets and maps.
    Set,
    /// Its chains.
    Chain,
    /// Its rules.
    Rule,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Table, Self::Set, Self::Chain, Self::Rule];

    /// The request for those of our table, and whether it is one for a list. The kernel lists the chains of all tables.
    pub(super) fn request(self) -> (NfTablesMessage, bool) {
        let table = || TABLE.to_owned();
        match self {
            Self::Table => (NfTablesMessage::GetTable(our_table()), false),
            Self::Set => {
                let attributes = vec![SetAttribute::Table(table())];
                (NfTablesMessage::GetSet(SetMessage { attributes }), true)
            }
            Self::Chain => {
                let attributes = Vec::new();
                (NfTablesMessage::GetChain(ChainMessage { attributes }), true)
            }
            Self::Rule => {
                let attributes = vec![RuleAttribute::Table(table())];
                (NfTablesMessage::GetRule(RuleMessage { attributes }), true)
            }
        }
    }

    /// The attribute that names the object, or the chain of a rule; and those that show a change. From Linux'
    /// `include/uapi/linux/netfilter/nf_tables.h`; the first attribute of each is the table's name.
    const fn attributes(self) -> (u16, &'static [u16]) {
        match self {
            // NFTA_TABLE_NAME; FLAGS, HANDLE
            Self::Table => (1, &[2, 4]),
            // NFTA_SET_NAME; FLAGS, HANDLE
            Self::Set => (2, &[3, 16]),
            // NFTA_CHAIN_NAME; HANDLE, HOOK, POLICY
            Self::Chain => (3, &[2, 4, 5]),
            // NFTA_RULE_CHAIN; HANDLE
            Self::Rule => (2, &[3]),
        }
    }
}

impl Program {
    /// The chains that were made for shapes.
    pub(super) fn chains(&self) -> &BTreeSet<Chain> {
        &self.chains
    }

    /// Adds what an answer shows, if that is of our table.
    pub(super) fn note(&mut self, kind: Kind, answer: &Answer) {
        let (name, kept) = kind.attributes();
        let mut object = Object {
            kind,
            of: Vec::new(),
            attributes: Vec::new(),
        };
        for attribute in NlasIterator::new(answer.attributes()).map_while(Result::ok) {
            let value = attribute.value();
            if attribute.kind() == TABLE_NAME && text(value) != TABLE.as_bytes() {
                return;
            }
            if attribute.kind() == name {
                object.of = text(value).to_vec();
            } else if kept.contains(&attribute.kind()) {
                object.attributes.push((attribute.kind(), value.to_vec()));
            }
        }
        if kind == Kind::Chain {
            self.chains.extend(made(&object.of));
        }
        self.objects.insert(object);
    }

    /// Takes over chains that were made for shapes, with their rules, from what was found later.
    pub(super) fn adopt(&mut self, found: Self, chains: &BTreeSet<Chain>) {
        let is_adopted = |object: &Object| {
            matches!(object.kind, Kind::Chain | Kind::Rule)
                && made(&object.of).is_some_and(|chain| chains.contains(&chain))
        };
        self.objects
            .extend(found.objects.into_iter().filter(is_adopted));
        self.chains.extend(chains);
    }
}

/// The chain of this name, if it is one that is made for a shape.
fn made(name: &[u8]) -> Option<Chain> {
    let chain = Chain::parse(std::str::from_utf8(name).ok()?)?;
    (chain != Chain::Reject).then_some(chain)
}
