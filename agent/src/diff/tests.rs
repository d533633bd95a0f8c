//! Deltas lead from any state to any other, write no more than they must, and leave no hole.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::Touched;
use crate::plan::Masquerade;
use crate::testing::{backend, ip, port};

fn frontend(number: u8) -> Frontend {
    Frontend::Address {
        ip: ip(&format!("10.96.0.{number}")),
        protocol: crate::model::Protocol::Tcp,
        port: port(80),
    }
}

fn balance(backends: &[&str]) -> Rule {
    Rule::Balance {
        masquerade: Masquerade::OutsidePods,
        backends: backends.iter().map(|text| backend(text)).collect(),
    }
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
    held.entries
        .values_mut()
        .for_each(|entry| entry.slots.sort());
    held
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let backends = prop::collection::btree_set(1..9_u8, 1..7);
    let backends = backends.prop_map(|hosts| {
        hosts
            .iter()
            .map(|h| backend(&format!("10.1.0.{h}:80")))
            .collect()
    });
    let masquerade = prop::sample::select(vec![Masquerade::OutsidePods, Masquerade::Always]);
    prop_oneof![
        1 => Just(Rule::Reject),
        4 => (masquerade, backends).prop_map(|(masquerade, backends)| Rule::Balance { masquerade, backends }),
    ]
}

prop_compose! {
    fn any_tables()(
        rules in prop::collection::btree_map((0..4_u8).prop_map(frontend), any_rule(), 0..4),
        hairpin in prop::collection::btree_set((1..5_u8).prop_map(|h| ip(&format!("10.1.0.{h}"))), 0..4),
        node in prop::collection::btree_set((1..4_u8).prop_map(|h| ip(&format!("192.168.0.{h}"))), 0..3),
    ) -> Tables {
        Tables { rules, hairpin, node_port_addresses: node }
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
                    held.set_backend(frontend(number), index, None);
                }
            }
            held
        })
}

proptest! {
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
        let held = loaded(&before);
        let touched = Touched {
            frontends: before.rules.keys().chain(after.rules.keys()).copied().collect(),
            endpoints_here: before.hairpin.union(&after.hairpin).copied().collect(),
            node: true,
        };
        prop_assert_eq!(diff(&held, &after, &Scope::Touched(touched)), diff(&held, &after, &Scope::All));
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
            let rule = Rule::Balance { masquerade: Masquerade::Always, backends: backends.to_vec() };
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
        key: Slot::new(frontend(1), 0),
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
