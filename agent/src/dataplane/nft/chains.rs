//! Chains with their rules, as text and as netlink messages. Pure.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage,
};

use super::batch::Flagged;
use super::rule::Rule;
use super::skeleton::TABLE;
use crate::model::Family;

/// `NF_ACCEPT` of Linux' include/uapi/linux/netfilter.h
const ACCEPT: u32 = 1;

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    /// What it is for, for readers of the text: some lines, or none.
    pub(super) comment: &'static str,
    /// Its name.
    pub(super) name: String,
    /// Where packets come to it, if not from other chains only.
    pub(super) base: Option<Base>,
    /// What happens to them.
    pub(super) rules: Vec<Rule>,
}

/// Where packets come to a chain. What no rule of it decides about passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// Whether it translates.
    pub(super) kind: ChainKind,
    /// The hook.
    pub(super) hook: Point,
    /// Its place among the chains at that hook.
    pub(super) priority: i32,
}

/// A type of chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChainKind {
    /// It lets pass and drops.
    Filter,
    /// It translates addresses, and sees the first packet of a connection only.
    Nat,
}

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// Before it is decided where a packet goes.
    Prerouting,
    /// For this machine.
    Input,
    /// For another one.
    Forward,
    /// From this machine.
    Output,
    /// On its way out.
    Postrouting,
}

impl ChainKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl Point {
    const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    const fn number(self) -> HookNumber {
        HookNumber::Inet(match self {
            Self::Prerouting => InetHookNumber::PreRouting,
            Self::Input => InetHookNumber::LocalIn,
            Self::Forward => InetHookNumber::Forward,
            Self::Output => InetHookNumber::LocalOut,
            Self::Postrouting => InetHookNumber::PostRouting,
        })
    }
}

impl Definition {
    /// A chain that others lead to.
    pub(super) fn new(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self {
            comment: "",
            name: name.into(),
            base: None,
            rules,
        }
    }

    /// A chain at a hook.
    pub(super) fn at(
        (kind, hook, priority): (ChainKind, Point, i32),
        name: &str,
        rules: Vec<Rule>,
    ) -> Self {
        let base = Base {
            kind,
            hook,
            priority,
        };
        Self {
            base: Some(base),
            ..Self::new(name, rules)
        }
    }

    /// The same with a comment.
    #[must_use]
    pub(super) fn for_readers(self, comment: &'static str) -> Self {
        Self { comment, ..self }
    }

    /// The chain as it stands in a table's text.
    pub(super) fn text(&self, family: Family) -> String {
        let mut text = String::new();
        if !self.comment.is_empty() {
            text.push('\n');
        }
        for line in self.comment.lines() {
            text += &format!("\t# {line}\n");
        }
        text += &format!("\tchain {} {{\n", self.name);
        if let Some(base) = self.base {
            let (kind, hook) = (base.kind.name(), base.hook.name());
            let priority = base.priority;
            text += &format!("\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n");
        }
        for rule in &self.rules {
            text += &format!("\t\t{}\n", rule.text(family));
        }
        text + "\t}\n"
    }

    /// The message that makes the chain, without its rules.
    pub(super) fn message(&self) -> Flagged {
        let mut attributes = vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(self.name.clone()),
        ];
        if let Some(base) = self.base {
            attributes.extend([
                ChainAttribute::Hook(vec![
                    Hook::Number(base.hook.number()),
                    Hook::Priority(base.priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(ACCEPT),
                ChainAttribute::Type(base.kind.name().to_owned()),
            ]);
        }
        let message = NfTablesMessage::NewChain(ChainMessage { attributes });
        (message, NLM_F_CREATE)
    }

    /// Messages that make its rules. The chains that these lead to have to be there.
    pub(super) fn rule_messages(&self, family: Family) -> impl Iterator<Item = Flagged> {
        self.rules.iter().map(move |rule| {
            let expressions = rule.expressions(family).into_iter();
            let attributes = vec![
                RuleAttribute::Table(TABLE.to_owned()),
                RuleAttribute::Chain(self.name.clone()),
                RuleAttribute::Expressions(expressions.map(Into::into).collect()),
            ];
            let message = NfTablesMessage::NewRule(RuleMessage { attributes });
            (message, NLM_F_CREATE | NLM_F_APPEND)
        })
    }
}
