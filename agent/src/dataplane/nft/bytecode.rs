//! Rules → the kernel's expressions.
//!
//! Pure. Each statement has the registers for itself, as nft has it too, so what it becomes does not depend on its
//! neighbours. One thing is otherwise on purpose: nft 1.0.6 turns the bytes of `meta l4proto` around where that is part of a
//! key of an interval set (`byteorder`), which does nothing to one byte and which some kernels refuse (Linux 6.12.117). The
//! test `the_agents_messages_and_the_dry_runs_text_make_the_same_table` holds the rest against what nft makes of the text.

use netlink_packet_netfilter::nftables::{Expressions, Verdict};

use super::expressions::{
    Registers, accept, change_mark, destination_is_here, drop_it, go, interface_is, is_marked,
    is_member, is_new, is_not_opening, is_translated, load, lookup, lookup_between, masquerade,
    nat, protocol_is, register, reject, reset, source_is_here, source_port_from, update,
    verdict_of_map,
};
use super::rule::{Called, Rule, Statement, Value};
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
                seconds,
            } => {
                let mut registers = Registers::new(family);
                let mut expressions = load_all(key, &mut registers);
                let first_of_data = (!data.is_empty()).then(|| registers.next());
                expressions.extend(load_all(data, &mut registers));
                expressions.push(update(map, first_of_data, *seconds));
                expressions
            }
        }
    }
}

fn load_all(key: &[Value], registers: &mut Registers) -> Vec<Expressions> {
    let values = key.iter();
    let values = values.map(|value| match value {
        Value::SharedKey(called) => load_shared(*called, registers),
        value => vec![load(*value, registers)],
    });
    values.flatten().collect()
}

/// Looks up the key that a front end shares; it takes the place of the front end's own, behind the source. What is found begins one
/// register before, with a field of no use, and the source is loaded once more: nft up to 1.0.6 takes a register for what was last put
/// there by itself, and aborts on a concatenation of which a part was looked up. So it sees the front end's own key.
fn load_shared(called: Called, registers: &mut Registers) -> Vec<Expressions> {
    let family = registers.family();
    let source = Value::Source.registers(family);
    let (whole, skipped, map) = called.looked_up(family);
    let mut expressions = load_all(&whole, registers);
    expressions.extend([
        lookup_between(map, register(source + skipped), register(source - 1)),
        load(Value::Source, &mut Registers::new(family)),
    ]);
    expressions
}
