//! What a table consists of beside the elements of its sets: so that rules which someone else changed are seen, and can
//! be made again; and which chains for shapes are there is known.
//!
//! Pure. What the kernel shows of an object is what it was made of, so it is kept as it came, and sent back where the
//! object is to be made again. The kernel gives every object of a table a handle of its own, and whoever changes a rule
//! makes a new one; what was found after a table was loaded is compared with what is found later.

use std::collections::BTreeSet;

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NlasIterator};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute,
    SetMessage,
};

use super::batch::Flagged;
use super::decode::{Answer, TABLE_NAME, text};
use super::encode::our_table;
use super::shapes::Chain;
use super::skeleton::TABLE;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h
const NFTA_SET_ID: u16 = 10;

/// The objects that a table has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Program {
    /// In the order in which they can be made.
    objects: BTreeSet<Object>,
    /// The chains among them that were made for shapes.
    chains: BTreeSet<Chain>,
}

/// One object: its kind, its chain or name, its handle, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    kind: Kind,
    of: Vec<u8>,
    /// In network order: rules of a chain are sorted as they were appended.
    handle: Vec<u8>,
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

/// What of an object is of interest, as numbers of attributes.
struct Attributes {
    /// Its name, or the chain of a rule.
    name: u16,
    handle: u16,
    /// What it is made of.
    made_of: &'static [u16],
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Table, Self::Set, Self::Chain, Self::Rule];

    /// The request for those of our table, and whether it is one for a list. The kernel lists the chains of all tables.
    pub(super) fn request(self) -> (NfTablesMessage, bool) {
        match self {
            Self::Table => (NfTablesMessage::GetTable(our_table()), false),
            Self::Set => (NfTablesMessage::GetSet(any_set()), true),
            Self::Chain => {
                let attributes = Vec::new();
                (NfTablesMessage::GetChain(ChainMessage { attributes }), true)
            }
            Self::Rule => (NfTablesMessage::GetRule(any_rule()), true),
        }
    }

    /// From Linux' `include/uapi/linux/netfilter/nf_tables.h`; the first attribute of each is the table's name.
    const fn attributes(self) -> Attributes {
        let (name, handle, made_of): (_, _, &[u16]) = match self {
            // NFTA_TABLE_NAME, HANDLE; NAME, FLAGS, USERDATA
            Self::Table => (1, 4, &[1, 2, 6]),
            // NFTA_SET_NAME, HANDLE; TABLE, NAME, FLAGS, KEY_TYPE, KEY_LEN, DATA_TYPE, DATA_LEN, POLICY, DESC, TIMEOUT,
            // GC_INTERVAL, USERDATA, OBJ_TYPE, EXPR, EXPRESSIONS
            Self::Set => (2, 16, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18]),
            // NFTA_CHAIN_NAME, HANDLE; TABLE, NAME, HOOK, POLICY, TYPE, USERDATA
            Self::Chain => (3, 2, &[1, 3, 4, 5, 7, 12]),
            // NFTA_RULE_CHAIN, HANDLE; TABLE, CHAIN, EXPRESSIONS, USERDATA
            Self::Rule => (2, 3, &[1, 2, 4, 7]),
        };
        Attributes {
            name,
            handle,
            made_of,
        }
    }

    /// The type of the message that makes one: NFT_MSG_NEWTABLE, NEWSET, NEWCHAIN, NEWRULE.
    const fn message_type(self) -> u8 {
        match self {
            Self::Table => 0,
            Self::Set => 9,
            Self::Chain => 3,
            Self::Rule => 6,
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
        let of_interest = kind.attributes();
        let mut object = Object {
            kind,
            of: Vec::new(),
            handle: Vec::new(),
            attributes: Vec::new(),
        };
        for attribute in NlasIterator::new(answer.attributes()).map_while(Result::ok) {
            let (number, value) = (attribute.kind(), attribute.value());
            if number == TABLE_NAME && text(value) != TABLE.as_bytes() {
                return;
            }
            if number == of_interest.name {
                object.of = text(value).to_vec();
            }
            if number == of_interest.handle {
                object.handle = value.to_vec();
            }
            if of_interest.made_of.contains(&number) {
                object.attributes.push((number, value.to_vec()));
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

    /// Messages that make all of it.
    pub(super) fn messages(&self) -> impl Iterator<Item = Flagged> {
        (1..)
            .zip(&self.objects)
            .map(|(number, object)| object.message(number))
    }

    /// Messages that make of what was found this program again, and touch no element. `None` if something else than
    /// rules is missing or was changed.
    pub(super) fn mended(&self, found: &Self) -> Option<Vec<Flagged>> {
        let lasting = |program: &Self| -> BTreeSet<Object> {
            let objects = program.objects.iter();
            objects.filter(|o| o.kind != Kind::Rule).cloned().collect()
        };
        let (ours, found) = (lasting(self), lasting(found));
        if !ours.is_subset(&found) {
            return None;
        }
        let flush = NfTablesMessage::DeleteRule(any_rule());
        let theirs = found.difference(&ours).filter_map(Object::deletion);
        let deletions = [flush].into_iter().chain(theirs);
        let rules = self.objects.iter().filter(|o| o.kind == Kind::Rule);
        let rules = rules.map(|rule| rule.message(0));
        Some(deletions.map(|m| (m, 0)).chain(rules).collect())
    }

    /// Whether two programs do the same: they differ in handles only.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let without_handle = |object: &Object| Object {
            handle: Vec::new(),
            ..object.clone()
        };
        let mine = self.objects.iter().map(without_handle);
        mine.eq(other.objects.iter().map(without_handle))
    }
}

impl Object {
    /// The message that makes it. `number` tells sets of one transaction apart.
    fn message(&self, number: u32) -> Flagged {
        let made_of = self.attributes.iter();
        let mut attributes: Vec<_> = made_of
            .map(|(number, value)| DefaultNla::new(*number, value.clone()))
            .collect();
        if self.kind == Kind::Set {
            let id = number.to_be_bytes().to_vec();
            attributes.push(DefaultNla::new(NFTA_SET_ID, id));
        }
        let message_type = self.kind.message_type();
        let append = if self.kind == Kind::Rule {
            NLM_F_APPEND
        } else {
            0
        };
        let message = NfTablesMessage::Other {
            message_type,
            attributes,
        };
        (message, NLM_F_CREATE | append)
    }

    /// The message that deletes it, if it can go alone.
    fn deletion(&self) -> Option<NfTablesMessage> {
        let name = || String::from_utf8_lossy(&self.of).into_owned();
        let table = || TABLE.to_owned();
        match self.kind {
            Kind::Set => {
                let attributes = vec![SetAttribute::Table(table()), SetAttribute::Name(name())];
                Some(NfTablesMessage::DeleteSet(SetMessage { attributes }))
            }
            Kind::Chain => {
                let attributes = vec![ChainAttribute::Table(table()), ChainAttribute::Name(name())];
                Some(NfTablesMessage::DeleteChain(ChainMessage { attributes }))
            }
            Kind::Table | Kind::Rule => None,
        }
    }
}

fn any_set() -> SetMessage {
    SetMessage {
        attributes: vec![SetAttribute::Table(TABLE.to_owned())],
    }
}

fn any_rule() -> RuleMessage {
    RuleMessage {
        attributes: vec![RuleAttribute::Table(TABLE.to_owned())],
    }
}

/// The chain of this name, if it is one that is made for a shape.
fn made(name: &[u8]) -> Option<Chain> {
    let chain = Chain::parse(std::str::from_utf8(name).ok()?)?;
    (chain != Chain::Reject).then_some(chain)
}
