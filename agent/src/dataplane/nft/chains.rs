//! Chains of a shape → netlink messages.
//!
//! Pure. They have to be made while the agent runs, when a Service first has so many endpoints, and in the
//! same transaction as the elements that go there. The `nft` program cannot add them: up to 1.0.6 it fails on
//! a table that already has maps with `typeof … th dport` ("conflicting protocols specified"). So each step
//! is written twice, here and as text in [`super::skeleton`]; the test
//! `the_agent_and_the_dry_run_load_the_same_table` in `tests/` holds the two together.

use netlink_packet_core::{Emitable as _, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, NfTablesMessage, Operator, RuleAttribute,
    RuleMessage, Verdict,
};

use super::elements::Set;
use super::expressions::{
    Key, Registers, compare, contains, drop_it, fib_source_is_local, go, interface_is, load,
    lookup, lookup_not, nat, numgen, update,
};
use super::shapes::{At, Chain, Step};
use super::skeleton::{AFFINITY, MARK_CHAIN, Skeleton, TABLE};
use crate::model::Family;
use crate::plan::Detector;

/// Messages, with their flags, that make a chain and its rules.
pub(super) fn messages(chain: Chain, skeleton: &Skeleton) -> Vec<(NfTablesMessage, u16)> {
    let name = chain.to_string();
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(name.clone()),
    ];
    let mut messages = vec![(
        NfTablesMessage::NewChain(ChainMessage { attributes }),
        NLM_F_CREATE,
    )];
    let (family, detector) = (skeleton.family(), skeleton.detector());
    let steps = skeleton.steps(chain).into_iter();
    messages.extend(steps.map(|step| {
        let expressions = expressions(step, family, detector).into_iter();
        let attributes = vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(name.clone()),
            RuleAttribute::Expressions(expressions.map(Into::into).collect()),
        ];
        (
            NfTablesMessage::NewRule(RuleMessage { attributes }),
            NLM_F_CREATE | NLM_F_APPEND,
        )
    }));
    messages
}

/// The bytes of a chain's messages, for the version of the program.
pub(super) fn bytes(chain: Chain, skeleton: &Skeleton) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (message, _) in messages(chain, skeleton) {
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.emit(&mut bytes[start..]);
    }
    bytes
}

/// One rule.
fn expressions(step: Step, family: Family, detector: &Detector) -> Vec<Expressions> {
    let mut registers = Registers::new(family);
    match step {
        Step::Mark => vec![go(Verdict::Jump, MARK_CHAIN)],
        Step::MarkOutsidePods => {
            let mut rule = from_pod(detector, family, false);
            rule.push(go(Verdict::Jump, MARK_CHAIN));
            rule
        }
        Step::PodsGoto(chain) => {
            let mut rule = from_pod(detector, family, true);
            rule.push(go(Verdict::Goto, &chain.to_string()));
            rule
        }
        Step::NodeGoto(chain) => {
            let mut rule = fib_source_is_local();
            rule.push(go(Verdict::Goto, &chain.to_string()));
            rule
        }
        Step::Recall => {
            let key = [Key::Source, Key::Destination, Key::Protocol, Key::Port];
            let mut rule = key.map(|key| load(key, &mut registers)).to_vec();
            rule.extend([lookup(AFFINITY), nat(family)]);
            rule
        }
        Step::Translate { at, first, count } => {
            let (address, map) = match at {
                At::Address => (Some(Key::Destination), Set::Endpoints),
                At::NodePort => (None, Set::NodePortEndpoints),
            };
            let key = address.into_iter().chain([Key::Protocol, Key::Port]);
            let mut rule: Vec<_> = key.map(|key| load(key, &mut registers)).collect();
            rule.extend([
                numgen(first, count, &mut registers),
                lookup(map.name()),
                nat(family),
            ]);
            rule
        }
        Step::Drop => vec![drop_it()],
        Step::Remember(protocol, timeout) => {
            let mut rule = vec![
                load(Key::Protocol, &mut Registers::new(family)),
                compare(Operator::Equal, vec![protocol.number()]),
            ];
            let key = [
                Key::Source,
                Key::CalledAddress,
                Key::Protocol,
                Key::CalledPort,
            ];
            rule.extend(key.map(|key| load(key, &mut registers)));
            let data = registers.next();
            let value = [Key::Destination, Key::Port];
            rule.extend(value.map(|key| load(key, &mut registers)));
            rule.push(update(AFFINITY, data, timeout));
            rule
        }
    }
}

/// The match of a packet from a pod, or of one from elsewhere.
fn from_pod(detector: &Detector, family: Family, wanted: bool) -> Vec<Expressions> {
    match detector {
        Detector::None => unreachable!("steps ask for pods only where a detector knows them"),
        Detector::Source => {
            let source = load(Key::Source, &mut Registers::new(family));
            let set = Set::PodNetworks.name();
            let lookup = if wanted {
                contains(set)
            } else {
                lookup_not(set)
            };
            vec![source, lookup]
        }
        Detector::Interface { name, prefix } => interface_is(name, *prefix, wanted),
    }
}
