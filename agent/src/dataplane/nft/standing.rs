//! The chains that are always there, with their rules. Pure.

use proxyd_ebpf_common::MASQUERADE_PORTS;

use super::chains::ChainKind::{Filter, Nat};
use super::chains::Definition;
use super::chains::Point::{Forward, Input, Output, Postrouting, Prerouting};
use super::elements::Set;
use super::rule::{Key, Rule, Statement, Target, Value};
use super::skeleton::{Duty, MARK_CHAIN, REJECT_CHAIN, SAME_DEVICE, Skeleton};
use crate::model::Protocol;

/// The chain that refuses what is for another machine.
const FORWARDED: &str = "refuse-forwarded";

/// The lowest port that needs no privileges: clients with a lower one get a lower one.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// The chains of a program, in the order in which they are printed.
pub(super) fn chains(skeleton: &Skeleton) -> Vec<Definition> {
    let mut chains = match skeleton.duty() {
        Duty::Balance => [
            balance(),
            masquerade(skeleton.mark()),
            remember(),
            filters(skeleton),
        ]
        .concat(),
        Duty::Refuse => filters_alone(skeleton),
    };
    chains.push(Definition::new(
        REJECT_CHAIN,
        vec![
            Rule(vec![Statement::Is(Protocol::Tcp), Statement::Reset]),
            Rule(vec![Statement::Reject]),
        ],
    ));
    chains
}

/// The chains that find who balances a new connection.
fn balance() -> Vec<Definition> {
    let balance = || vec![goto("balance")];
    vec![
        Definition::at((Nat, Prerouting, -100), "nat-prerouting", balance()),
        Definition::at((Nat, Output, -100), "nat-output", balance()),
        Definition::new("balance", verdicts().into()),
    ]
}

/// The chains that mark connections for masquerade, and masquerade them.
fn masquerade(mark: u32) -> Vec<Definition> {
    // BPF programs masquerade beside these rules, before them or after. Clients with a low port get a low one. There is a rule
    // for each protocol, since an anonymous set of them could not be put back like a rule.
    let below_programs = Protocol::ALL.map(|protocol| {
        Rule(vec![
            Statement::Is(protocol),
            Statement::SourcePortFrom(FIRST_UNPRIVILEGED_PORT),
            Statement::Masquerade(Some((FIRST_UNPRIVILEGED_PORT, MASQUERADE_PORTS.0 - 1))),
        ])
    });
    let to_masquerade = Statement::Goto(Target::Standing("do-masquerade"));
    let hairpin = is_in(&[Value::Source, Value::Destination], Set::Hairpin);
    vec![
        Definition::new(MARK_CHAIN, vec![Rule(vec![Statement::Mark(mark)])]),
        Definition::at(
            (Nat, Postrouting, 100),
            "nat-postrouting",
            vec![
                Rule(vec![Statement::Marked(mark), to_masquerade.clone()]),
                Rule(vec![Statement::Translated, hairpin, to_masquerade]),
            ],
        ),
        Definition::new(
            "do-masquerade",
            [Rule(vec![Statement::Unmark(mark)])]
                .into_iter()
                .chain(below_programs)
                .chain([Rule(vec![Statement::Masquerade(None)])])
                .collect(),
        )
        .for_readers(
            "The mark goes first: an overlay's outer packet keeps it and would be translated again. Higher ports are those of BPF programs.",
        ),
    ]
}

/// The chains that find who remembers a new connection.
fn remember() -> Vec<Definition> {
    let translated = || {
        let remember = Statement::Goto(Target::Standing("remember"));
        vec![Rule(vec![Statement::Translated, remember])]
    };
    let rules = Protocol::ALL.map(|protocol| {
        [
            Rule(vec![
                Statement::Is(protocol),
                verdict(
                    &[Value::CalledAddress, Value::Protocol, Value::CalledPort],
                    Set::Affinities,
                ),
            ]),
            Rule(vec![
                is_in(&[Value::CalledAddress], Set::NodePortAddresses),
                Statement::Is(protocol),
                verdict(
                    &[Value::Protocol, Value::CalledPort],
                    Set::NodePortAffinities,
                ),
            ]),
        ]
    });
    vec![
        Definition::at(
            (Nat, Postrouting, 90),
            "nat-postrouting-remember",
            translated(),
        )
        .for_readers(
            "Who was translated to whom, before anybody translates the source. Chains of type nat see the first packet of a\n\
             connection only: a client that gets no answer must not be remembered again with each datagram.",
        ),
        Definition::at((Nat, Input, 90), "nat-input-remember", translated()),
        Definition::new("remember", rules.concat()),
    ]
}

/// The chains that refuse and drop, beside those that balance.
fn filters(skeleton: &Skeleton) -> Vec<Definition> {
    let new = |chain| {
        let then = Statement::Goto(Target::Standing(chain));
        vec![Rule(vec![Statement::New, then])]
    };
    let [at_addresses, at_node_ports] = refusals();
    vec![
        Definition::at(
            (Filter, Prerouting, -110),
            "filter-prerouting",
            new("guard"),
        )
        .for_readers("Before any translation: sources that may not call an address."),
        Definition::at((Filter, Output, -110), "filter-output-guard", new("guard")),
        Definition::new("guard", vec![guard()]),
        Definition::at((Filter, Input, -110), "filter-input", new("refuse"))
            .for_readers("After the translation: what no Service took."),
        Definition::at((Filter, Forward, -110), "filter-forward", new(FORWARDED)),
        Definition::at((Filter, Output, -90), "filter-output", new("refuse")),
        Definition::new(
            "refuse",
            [vec![at_addresses, at_node_ports], unserved()].concat(),
        ),
        forwarded(skeleton),
    ]
}

/// The chains that refuse and drop, where others balance: what those serve has another destination before it comes here. Packets of
/// connections that are open pass one chain, and two rules of it.
fn filters_alone(skeleton: &Skeleton) -> Vec<Definition> {
    let only_new = |chain| {
        let open = vec![
            Statement::Is(Protocol::Tcp),
            Statement::NotOpening,
            Statement::Accept,
        ];
        vec![Rule(open), goto(chain)]
    };
    let [at_addresses, at_node_ports] = verdicts();
    let [refused, refused_here] = refusals();
    let refuse = Statement::Jump(Target::Standing("refuse"));
    vec![
        Definition::at(
            (Filter, Input, -110),
            "filter-input",
            only_new("refuse-here"),
        ),
        Definition::at(
            (Filter, Forward, -110),
            "filter-forward",
            only_new(FORWARDED),
        ),
        Definition::at(
            (Filter, Output, -90),
            "filter-output",
            only_new("refuse-here"),
        ),
        Definition::new(
            "refuse-here",
            vec![Rule(vec![refuse]), at_node_ports, refused_here],
        )
        .for_readers("NodePorts are at addresses of this node."),
        Definition::new(
            "refuse",
            [vec![guard(), at_addresses, refused], unserved()].concat(),
        ),
        forwarded(skeleton),
    ]
}

/// The chain that refuses what is for another machine. A load-balancer or external address may be that of one, so what was sent there is
/// refused only where it would go back by the device that it came in by: whoever sent it takes this node for the address.
fn forwarded(skeleton: &Skeleton) -> Definition {
    let refuse = Rule(vec![Statement::Jump(Target::Standing("refuse"))]);
    let mut rules = vec![refuse];
    if skeleton.rejects_unused_ports() {
        let outer = is_in(&[Value::Destination], Set::OuterAddresses);
        let pair = |second| vec![Value::IncomingDevice, second];
        let add = Statement::Update {
            map: SAME_DEVICE,
            key: pair(Value::IncomingDevice),
            data: Vec::new(),
            seconds: 60,
        };
        let goes_back = Statement::Member {
            key: pair(Value::OutgoingDevice),
            set: SAME_DEVICE,
            wanted: true,
        };
        let reject = Statement::Goto(Target::Standing(REJECT_CHAIN));
        rules.push(Rule(vec![outer, add, goes_back, reject]));
    }
    Definition::new(FORWARDED, rules)
        .for_readers("Ports that no Service has, at addresses of Services that are routed here.")
}

/// The rule that stops sources which may not call an address.
fn guard() -> Rule {
    let source = [service_key(), vec![Value::Source]].concat();
    let not_allowed = Statement::Member {
        key: source,
        set: Set::AllowedSources.name(),
        wanted: false,
    };
    Rule(vec![
        is_in(&service_key(), Set::Guarded),
        not_allowed,
        Statement::Drop,
    ])
}

/// The rules that refuse what is called without an endpoint: an address, and a NodePort.
fn refusals() -> [Rule; 2] {
    lookups([Set::NoEndpoints, Set::NoEndpointNodePorts])
}

/// The rules that refuse what is no Service's, at an address or in a network of Services.
fn unserved() -> Vec<Rule> {
    let address = [Value::Destination];
    let reject = Statement::Goto(Target::Standing(REJECT_CHAIN));
    vec![
        Rule(vec![is_in(&address, Set::ClusterIps), reject]),
        Rule(vec![is_in(&address, Set::ServiceNetworks), Statement::Drop]),
    ]
}

/// The rules that find what happens to a new connection, to an address and to a NodePort.
fn verdicts() -> [Rule; 2] {
    lookups([Set::Services, Set::NodePorts])
}

/// The rules that look an address up in a map, and a NodePort in another one.
fn lookups([addresses, node_ports]: [Set; 2]) -> [Rule; 2] {
    let node_port = [Value::Protocol, Value::Port];
    [
        Rule(vec![verdict(&service_key(), addresses)]),
        Rule(vec![
            is_in(&[Value::Destination], Set::NodePortAddresses),
            Statement::ToHere,
            verdict(&node_port, node_ports),
        ]),
    ]
}

/// The key of a front end at an address.
fn service_key() -> Key {
    vec![Value::Destination, Value::Protocol, Value::Port]
}

fn goto(chain: &'static str) -> Rule {
    Rule(vec![Statement::Goto(Target::Standing(chain))])
}

fn is_in(key: &[Value], set: Set) -> Statement {
    Statement::Member {
        key: key.to_vec(),
        set: set.name(),
        wanted: true,
    }
}

fn verdict(key: &[Value], map: Set) -> Statement {
    Statement::Verdict {
        key: key.to_vec(),
        map: map.name(),
    }
}
