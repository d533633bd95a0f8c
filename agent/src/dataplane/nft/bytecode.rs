//! Rules → the kernel's expressions.
//!
//! Pure. Each statement has the registers for itself, as nft has it too, so what it becomes does not depend on its
//! neighbours. One thing is otherwise on purpose: nft 1.0.6 turns the bytes of `meta l4proto` around where that is part of a
//! key of an interval set (`byteorder`), which does nothing to one byte and which some kernels refuse (Linux 6.12.117). The
//! test `the_agents_messages_and_the_dry_runs_text_make_the_same_table` holds the rest against what nft makes of the text.

use netlink_packet_netfilter::nftables::{Expressions, Verdict};

use super::expressions::{
    Registers, accept, change_mark, destination_is_here, drop_it, go, interface_is, is_marked,
    is_member, is_new, is_not_opening, is_translated, load, lookup, masquerade, nat, protocol_is,
    reject, reset, source_is_here, source_port_from, update, verdict_of_map,
};
use super::rule::{Rule, Statement, Value};
use crate::model::Family;

impl Rule {
    /// What the kernel takes.
    pub(super) fn expressions(&self, family: Family) -> Vec<Expressions> {
        let statements = self.0.iter();
        statements
            .flat_map(|statement| statement.expressions(family))
            .collect()
    }
}

impl Statement {
    fn expressions(&self, family: Family) -> Vec<Expressions> {
        let with_key = |key: &[Value], then: Vec<Expressions>| {
            let mut expressions = load_all(key, &mut Registers::new(family));
            expressions.extend(then);
            expressions
        };
        match self {
            Self::Is(protocol) => protocol_is(protocol.number()),
            Self::SourcePortFrom(port) => source_port_from(*port),
            Self::Marked(bit) => is_marked(*bit),
            Self::Translated => is_translated(),
            Self::New => is_new(),
            Self::NotOpening => is_not_opening(),
            Self::FromHere => source_is_here(),
            Self::ToHere => destination_is_here(),
            Self::Interface {
                name,
                prefix,
                wanted,
            } => interface_is(name, *prefix, *wanted),
            Self::Member { key, set, wanted } => with_key(key, vec![is_member(set, *wanted)]),
            Self::Verdict { key, map } => with_key(key, vec![verdict_of_map(map)]),
            Self::Jump(chain) => vec![go(Verdict::Jump, &chain.to_string())],
            Self::Goto(chain) => vec![go(Verdict::Goto, &chain.to_string())],
            Self::Accept => vec![accept()],
            Self::Drop => vec![drop_it()],
            Self::Reject => vec![reject(family)],
            Self::Reset => vec![reset()],
            Self::Mark(bit) => change_mark(*bit, 0),
            Self::Unmark(bit) => change_mark(0, *bit),
            Self::Translate { key, map } => with_key(key, vec![lookup(map), nat(family)]),
            Self::Masquerade(ports) => masquerade(*ports),
            Self::Update {
                map,
                key,
                data,
                timeout,
            } => {
                let mut registers = Registers::new(family);
                let mut expressions = load_all(key, &mut registers);
                let first_of_data = registers.next();
                expressions.extend(load_all(data, &mut registers));
                expressions.push(update(map, first_of_data, *timeout));
                expressions
            }
        }
    }
}

fn load_all(key: &[Value], registers: &mut Registers) -> Vec<Expressions> {
    key.iter().map(|value| load(*value, registers)).collect()
}
