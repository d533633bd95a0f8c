//! Deltas lead from any state to any other, write no more than they must, and leave no hole.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::{AffinityTimeout, Touched};
use crate::plan::{Affinity, Balance, Policy};
use crate::testing::{backend, ip, port};

fn frontend(number: u8) -> Frontend {
    Frontend::Address {
        ip: ip(&format!("10.96.0.{number}")),
        protocol: crate::model::Protocol::Tcp,
        port: port(80),
    }
}

fn balance(backends: &[&str]) -> Rule {
    Rule::Balance(Balance {
        policy: Policy::Cluster,
        backends: backends.iter().map(|text| backend(text)).collect(),
        local: Vec::new(),
        affinity: None,
    })
}

/// What a fresh kernel holds once these tables are loaded.
fn loaded(tables: &Tables) -> Held {
    let mut held = Held::default();
    held.apply(&diff(&held, tables, &Scope::All));
    held
}

/// What is held, with the places of back ends forgotten.
fn without_places(held: &Held) -> Held {
    let mut held = held.clone();
    held.entries.values_mut().for_each(|entry| {
        entry.slots.sort();
        entry.local.sort();
    });
    held
}

fn any_backends(least: usize) -> impl Strategy<Value = Vec<Backend>> {
    let hosts = prop::collection::btree_set(1..9_u8, least..7);
    hosts.prop_map(|hosts| {
        let backends = hosts.iter().map(|h| backend(&format!("10.1.0.{h}:80")));
        backends.collect()
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let policies = [Policy::Cluster, Policy::External, Policy::ExternalLocal];
    let policy = prop::sample::select(policies.to_vec());
    let affinity = prop::option::of((1..3_u32, 0..4_u8, any::<bool>()));
    let affinity = affinity.prop_map(|affinity| {
        let (seconds, key, is_mixed) = affinity?;
        Some(Affinity {
            timeout: AffinityTimeout::new(seconds)?,
            key: frontend(key),
            is_mixed,
        })
    });
    let balance = (policy, any_backends(1), any_backends(0), affinity);
    prop_oneof![
        1 => Just(Rule::Reject),
        1 => Just(Rule::Drop),
        4 => balance.prop_map(|(policy, backends, local, affinity)| Rule::Balance(Balance {
            policy,
            backends,
            local,
            affinity,
        })),
    ]
}

fn any_member() -> impl Strategy<Value = Member> {
    let network = (0..3_u8).prop_map(|n| format!("10.{n}.0.0/16").parse().unwrap());
    let frontends = (0..4_u8).prop_map(frontend);
    prop_oneof![
        (1..5_u8).prop_map(|h| Member::Hairpin(ip(&format!("10.1.0.{h}")))),
        (0..4_u8).prop_map(|h| Member::ClusterIp(ip(&format!("10.96.0.{h}")))),
        (1..4_u8).prop_map(|h| Member::NodePortAddress(ip(&format!("192.168.0.{h}")))),
        frontends.clone().prop_map(Member::Guarded),
        (frontends, network.clone()).prop_map(|(f, n)| Member::AllowedSource(f, n)),
        network.prop_map(Member::PodNetwork),
    ]
}

prop_compose! {
    fn any_tables()(
        rules in prop::collection::btree_map((0..4_u8).prop_map(frontend), any_rule(), 0..4),
        members in prop::collection::btree_set(any_member(), 0..8),
    ) -> Tables {
        Tables { rules, members }
    }
}

/// What someone else may have left in the kernel: loaded tables with back ends missing.
fn any_held() -> impl Strategy<Value = Held> {
    (
        any_tables(),
        prop::collection::vec((0..4_u8, 0..6_u16), 0..3),
    )
        .prop_map(|(tables, holes)| {
            let mut held = loaded(&tables);
            for (number, index) in holes {
                if held.entries.contains_key(&frontend(number)) {
                    let frontend = frontend(number);
                    held.set_backend(Slot { frontend, index }, None);
                }
            }
            held
        })
}

proptest! {
    #[test]
    fn what_was_held_is_held_again(found in any_held(), before in any_held()) {
        let mut after = found.clone();
        after.apply(&between(&found, &before));
        prop_assert_eq!(&after, &before);
        prop_assert!(between(&after, &before).is_empty());
    }

    #[test]
    fn a_delta_leads_from_any_state_to_any_other(held in any_held(), desired in any_tables()) {
        let mut after = held.clone();
        after.apply(&diff(&held, &desired, &Scope::All));
        prop_assert_eq!(without_places(&after), without_places(&loaded(&desired)));
        prop_assert!(diff(&after, &desired, &Scope::All).is_empty());
        let holes = after.entries.values().flat_map(|entry| &entry.slots).filter(|slot| slot.is_none());
        prop_assert_eq!(holes.count(), 0);
    }

    #[test]
    fn comparing_what_was_touched_gives_what_comparing_all_gives(before in any_tables(), after in any_tables()) {
        // What no front end and no endpoint brings is in no scope but all.
        let of_node = |member: &Member| matches!(member, Member::NodePortAddress(_) | Member::PodNetwork(_));
        let mut after = after;
        after.members.retain(|member| !of_node(member));
        after.members.extend(before.members.iter().copied().filter(of_node));
        let held = loaded(&before);
        let members = || before.members.iter().chain(&after.members).copied();
        let frontends = before.rules.keys().chain(after.rules.keys()).copied();
        let touched = Touched {
            frontends: frontends
                .chain(members().filter_map(|member| match member {
                    Member::Guarded(f) | Member::AllowedSource(f, _) => Some(f),
                    Member::ClusterIp(ip) => Some(Frontend::Address {
                        ip,
                        protocol: crate::model::Protocol::Udp,
                        port: port(1),
                    }),
                    _ => None,
                }))
                .collect(),
            endpoints_here: members()
                .filter_map(|member| match member {
                    Member::Hairpin(ip) => Some(ip),
                    _ => None,
                })
                .collect(),
            everything: false,
        };
        let of_change = |change: &Change<Member, ()>| change.key;
        let sorted = |mut delta: Delta| {
            delta.members.sort_by_key(of_change);
            delta.rules.sort_by_key(|change| change.key);
            delta
        };
        let planned = Tables {
            members: after.members.iter().copied().filter(|m| !of_node(m)).collect(),
            ..after.clone()
        };
        prop_assert_eq!(
            sorted(diff(&held, &planned, &Scope::Touched(touched))),
            sorted(diff(&held, &after, &Scope::All))
        );
    }

    #[test]
    fn an_endpoint_costs_at_most_two_changes(
        hosts in prop::collection::btree_set(1..200_u8, 2..60),
        gone in any::<prop::sample::Index>(),
    ) {
        let all: Vec<Backend> = hosts.iter().map(|h| backend(&format!("10.1.0.{h}:80"))).collect();
        let mut fewer = all.clone();
        fewer.remove(gone.index(all.len()));
        let tables = |backends: &[Backend]| {
            let rule = Rule::Balance(Balance {
                policy: Policy::External,
                backends: backends.to_vec(),
                local: Vec::new(),
                affinity: None,
            });
            Tables { rules: [(frontend(1), rule)].into(), ..Tables::default() }
        };
        let delta = diff(&loaded(&tables(&all)), &tables(&fewer), &Scope::All);
        prop_assert!(delta.backends.len() <= 2, "{:?}", delta.backends);
        let delta = diff(&loaded(&tables(&fewer)), &tables(&all), &Scope::All);
        prop_assert_eq!(delta.backends.len(), 1);
    }
}

#[test]
fn a_back_end_that_stays_keeps_its_place() {
    let tables = |rule| Tables {
        rules: [(frontend(1), rule)].into(),
        ..Tables::default()
    };
    let held = loaded(&tables(balance(&[
        "10.1.0.1:80",
        "10.1.0.2:80",
        "10.1.0.3:80",
    ])));
    let delta = diff(
        &held,
        &tables(balance(&["10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80"])),
        &Scope::All,
    );
    let replaced = Change {
        key: Slot {
            frontend: frontend(1),
            index: 0,
        },
        from: Some(backend("10.1.0.1:80")),
        to: Some(backend("10.1.0.4:80")),
    };
    assert_eq!(
        delta,
        Delta {
            backends: vec![replaced],
            ..Delta::default()
        }
    );
}

#[test]
fn what_is_out_of_scope_is_left_alone() {
    let tables = Tables {
        rules: [(frontend(1), Rule::Reject)].into(),
        ..Tables::default()
    };
    let scope = Scope::Touched(Touched {
        frontends: BTreeSet::from([frontend(2)]),
        ..Touched::default()
    });
    assert!(diff(&loaded(&tables), &Tables::default(), &scope).is_empty());
}

#[test]
fn while_input_is_missing_who_may_call_what_is_held_stays() {
    let network = |text: &str| text.parse().unwrap();
    let held = loaded(&Tables {
        rules: [(frontend(1), Rule::Reject)].into(),
        members: [Member::PodNetwork(network("10.244.0.0/16"))].into(),
    });
    let new = [
        Member::Guarded(frontend(2)),
        Member::AllowedSource(frontend(2), network("10.0.0.0/8")),
        Member::PodNetwork(network("10.245.0.0/16")),
        Member::ClusterIp(ip("10.96.0.9")),
    ];
    // The set of networks would refuse one that overlaps another, and with it everything.
    let not_now = [
        Member::Guarded(frontend(1)),
        Member::AllowedSource(frontend(1), network("10.0.0.0/8")),
        Member::PodNetwork(network("10.244.0.0/15")),
        Member::PodNetwork(network("10.244.7.0/24")),
    ];
    let desired = Tables {
        members: new.into_iter().chain(not_now).collect(),
        ..Tables::default()
    };
    let mut delta = diff(&held, &desired, &Scope::All);
    delta.keep_additions(&held);
    let added: BTreeSet<Member> = delta.members.iter().map(|change| change.key).collect();
    assert_eq!(added, BTreeSet::from(new));
    assert!(delta.rules.is_empty());
}
