//! The engine against a data plane that refuses what the kernel would refuse.

use proptest::prelude::*;

use super::*;
use crate::dataplane::recording::Recording;
use crate::model::{Endpoint, Parsed};
use crate::testing::world::{World, beginning, engine, handle, held, lists, sync};
use crate::testing::{any_event, backend, endpoint, good, ip, name, node_facts, service, slice};

#[test]
fn nothing_is_written_before_everything_was_heard_of() {
    let [services, slices] = lists(&[service("web", &["10.96.0.1"])], &[]);
    let [node, cidrs, addresses] = node_facts();
    let events = [services, slices, node, cidrs, addresses];
    for left_out in 0..events.len() {
        let mut engine = engine();
        let mut dataplane = Recording::default();
        let others = events.iter().enumerate().filter(|(i, _)| *i != left_out);
        handle(&mut engine, others.map(|(_, event)| event.clone()));
        sync(&mut engine, &mut dataplane);
        assert!(!engine.is_ready() && dataplane.resyncs == 0 && dataplane.committed.is_empty());
        engine.handle(events[left_out].clone());
        sync(&mut engine, &mut dataplane);
        assert!(engine.is_ready() && !dataplane.committed.is_empty());
    }
}

#[test]
fn a_change_commits_what_it_touches_and_nothing_else() {
    let mut engine = engine();
    let mut dataplane = Recording::default();
    let services = [service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"])];
    let slices = [
        slice("a-1", "a", &[endpoint("10.1.0.1")]),
        slice("b-1", "b", &[endpoint("10.1.0.2")]),
    ];
    handle(
        &mut engine,
        lists(&services, &slices).into_iter().chain(node_facts()),
    );
    sync(&mut engine, &mut dataplane);
    dataplane.committed.clear();

    let grown = slice("a-1", "a", &[endpoint("10.1.0.1"), endpoint("10.1.0.3")]);
    engine.handle(Event::SliceApplied(good(&grown, &grown.name)));
    sync(&mut engine, &mut dataplane);
    let [(Family::V4, delta)] = dataplane.committed.as_slice() else {
        panic!("one batch was expected: {:?}", dataplane.committed);
    };
    assert_eq!(
        (delta.rules.len(), delta.backends.len(), delta.len()),
        (1, 1, 2)
    );
    assert_eq!(dataplane.resyncs, 2, "once for each family, at the start");
}

#[test]
fn connections_of_an_endpoint_end_when_it_leaves_though_it_was_in_no_rule_any_more() {
    let mut dataplane = Recording::default();
    let finishing = Endpoint {
        ready: false,
        terminating: true,
        ..endpoint("10.1.0.2")
    };
    let before = slice("web-1", "web", &[endpoint("10.1.0.1"), finishing]);
    let services = [service("web", &["10.96.0.1"])];
    for ends_tcp in [true, false] {
        let mut engine = engine().ending_tcp(ends_tcp);
        let known = lists(&services, std::slice::from_ref(&before));
        handle(&mut engine, known.into_iter().chain(node_facts()));
        sync(&mut engine, &mut dataplane);
        let after = slice("web-1", "web", &[endpoint("10.1.0.1")]);
        engine.handle(Event::SliceApplied(good(&after, &after.name)));
        let synced = engine.sync(Family::V4, &mut dataplane).unwrap();
        assert_eq!(synced.changes, 0);
        assert!(synced.tracked.is_empty(), "its port is one of TCP");
        let kept: Vec<_> = synced.tcp.frontends.into_values().collect();
        let expected = [[backend("10.1.0.1:8080")].into()];
        assert_eq!(kept, expected[..usize::from(ends_tcp)]);
    }
}

#[test]
fn what_a_refused_commit_carried_is_not_lost() {
    let mut engine = engine();
    let mut dataplane = Recording {
        refuse_next: 1,
        ..Recording::default()
    };
    let services = [service("a", &["10.96.0.1"])];
    handle(
        &mut engine,
        lists(&services, &[]).into_iter().chain(node_facts()),
    );
    engine.sync(Family::V4, &mut dataplane).unwrap_err();
    let synced = engine.sync(Family::V4, &mut dataplane).unwrap();
    assert!(synced.full && synced.changes > 0);
    assert_eq!(dataplane.held.v4.entries.len(), 1);
}

#[test]
fn what_is_listed_together_is_committed_together() {
    let mut engine = engine();
    let mut dataplane = Recording::default();
    let [.., addresses] = node_facts();
    let mut all = |port_name: &str| {
        let mut service = service("a", &["10.96.0.1"]);
        let mut slice = slice("a-1", "a", &[endpoint("10.1.0.1")]);
        service.ports[0].name = port_name.into();
        slice.ports[0].name = port_name.into();
        engine.handle(Event::AllListed {
            services: vec![good(&service, &service.name)],
            slices: vec![good(&slice, &slice.name)],
            service_cidrs: Vec::new(),
            node: None,
            whole: true,
            refused: 0,
        });
        engine.handle(addresses.clone());
        sync(&mut engine, &mut dataplane);
        std::mem::take(&mut dataplane.committed)
    };
    assert!(!all("http").is_empty());
    assert!(
        all("renamed").is_empty(),
        "the Service is served as before, at every moment"
    );
}

#[test]
fn while_input_is_missing_nothing_that_is_held_changes() {
    let mut dataplane = Recording::default();
    let services = [service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"])];
    let slices = [
        slice("a-1", "a", &[endpoint("10.1.0.1")]),
        slice("b-1", "b", &[endpoint("10.1.0.2")]),
    ];
    let mut first = engine();
    handle(
        &mut first,
        lists(&services, &slices).into_iter().chain(node_facts()),
    );
    sync(&mut first, &mut dataplane);
    let before = held(&dataplane);

    // After a restart the Service b and the slice of a cannot be read; c is new.
    let [.., addresses] = node_facts();
    let listed = |services: &[crate::model::Service], slices: &[crate::model::Slice], whole| {
        Event::AllListed {
            services: services.iter().map(|s| good(s, &s.name)).collect(),
            slices: slices.iter().map(|s| good(s, &s.name)).collect(),
            service_cidrs: Vec::new(),
            node: None,
            whole,
            refused: 0,
        }
    };
    let c = service("c", &["10.96.0.3"]);
    let mut second = engine();
    handle(
        &mut second,
        [
            listed(&[services[0].clone(), c.clone()], &slices[1..], false),
            addresses,
        ],
    );
    sync(&mut second, &mut dataplane);
    let mut now = held(&dataplane);
    now.v4
        .entries
        .retain(|frontend, _| before.v4.entries.contains_key(frontend));
    assert!(now.v4.members.is_superset(&before.v4.members));
    now.v4.members.clone_from(&before.v4.members);
    assert_eq!(now, before);
    assert_eq!(dataplane.held.v4.entries.len(), 3, "what is new is served");

    second.handle(listed(&[c], &[], true));
    sync(&mut second, &mut dataplane);
    assert_eq!(
        dataplane.held.v4.entries.len(),
        1,
        "once all can be read, the rest goes"
    );
}

#[test]
fn a_restart_writes_only_what_differs() {
    let mut dataplane = Recording::default();
    let services = [service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"])];
    let mut first = engine();
    handle(
        &mut first,
        lists(&services, &[]).into_iter().chain(node_facts()),
    );
    sync(&mut first, &mut dataplane);
    dataplane.committed.clear();

    let mut second = engine();
    handle(
        &mut second,
        lists(&services[..1], &[]).into_iter().chain(node_facts()),
    );
    sync(&mut second, &mut dataplane);
    let changes: Vec<usize> = dataplane
        .committed
        .iter()
        .map(|(_, delta)| delta.len())
        .collect();
    assert_eq!(
        changes,
        [2],
        "one Service and its ClusterIP went while nobody watched"
    );
}

#[test]
fn an_object_that_becomes_ignored_loses_its_rules() {
    let mut engine = engine();
    let mut dataplane = Recording::default();
    handle(
        &mut engine,
        lists(&[service("a", &["10.96.0.1"])], &[])
            .into_iter()
            .chain(node_facts()),
    );
    sync(&mut engine, &mut dataplane);
    engine.handle(Event::ServiceApplied(Parsed::ignored(name("a"))));
    sync(&mut engine, &mut dataplane);
    assert!(dataplane.held.v4.entries.is_empty());
}

#[test]
fn what_others_change_is_put_back_before_what_is_new_is_written() {
    let mut engine = engine();
    let mut dataplane = Recording::default();
    let services = [service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"])];
    handle(
        &mut engine,
        lists(&services, &[]).into_iter().chain(node_facts()),
    );
    sync(&mut engine, &mut dataplane);
    dataplane.held.v4.entries.clear();
    let by = "someone".to_owned();
    let family = Family::V4;
    engine.handle(Event::KernelChanged { family, by });
    let c = service("c", &["10.96.0.3"]);
    engine.handle(Event::ServiceApplied(good(&c, &c.name)));
    let synced = engine.sync(family, &mut dataplane).unwrap();
    assert_eq!(dataplane.held.v4.entries.len(), 3);
    assert_eq!((synced.full, synced.planned_all), (false, false));
    assert_eq!(
        synced.changes,
        2 + 2,
        "two put back; one Service and its ClusterIP"
    );
    assert_eq!((dataplane.restores, dataplane.resyncs), (1, 2));
    assert!(!engine.is_due(family));
}

proptest! {
    /// Whatever happens and whenever the kernel refuses, in the end it holds what a fresh agent would load.
    #[test]
    fn incremental_equals_full(
        events in prop::collection::vec((any_event(), prop::bool::weighted(0.6), prop::bool::weighted(0.1)), 0..30)
    ) {
        let mut engine = engine();
        let mut dataplane = Recording::default();
        let mut world = World::default();
        let begin = beginning().map(|event| (event, false, false));
        for (event, syncs, refuses) in begin.chain(events) {
            engine.handle(event.clone());
            world.handle(event);
            if syncs {
                dataplane.refuse_next = usize::from(refuses);
                for family in Family::ALL {
                    // A refusal is what is being tested; the next sync mends it.
                    let _ = engine.sync(family, &mut dataplane);
                }
                dataplane.refuse_next = 0;
            }
        }
        sync(&mut engine, &mut dataplane);
        prop_assert_eq!(held(&dataplane), held(&world.loaded()));
    }
}

/// The front ends whose early connections a sync tells of.
fn opened(synced: &Synced) -> Vec<String> {
    let opened = synced.tracked.opened.iter();
    opened.map(ToString::to_string).collect()
}

#[test]
fn connections_that_began_before_a_front_end_was_balanced_are_told_of_once() {
    let mut engine = engine();
    let mut dataplane = Recording::default();
    handle(&mut engine, beginning());
    sync(&mut engine, &mut dataplane);
    let web = service("web", &["10.96.0.1"]);
    let ready = slice("web-1", "web", &[endpoint("10.1.0.1")]);
    let mut change = |event, dataplane: &mut Recording| {
        engine.handle(event);
        let synced = engine.sync(Family::V4, dataplane).unwrap();
        assert!(
            synced.tracked.frontends.is_empty(),
            "its port is one of TCP"
        );
        opened(&synced)
    };
    let refused = change(Event::ServiceApplied(good(&web, &web.name)), &mut dataplane);
    assert!(refused.is_empty(), "it has no endpoint");
    let served = change(
        Event::SliceApplied(good(&ready, &ready.name)),
        &mut dataplane,
    );
    assert_eq!(served.len(), 1, "{served:?}");
    let more = slice(
        "web-1",
        "web",
        &[endpoint("10.1.0.1"), endpoint("10.1.0.2")],
    );
    let grown = change(Event::SliceApplied(good(&more, &more.name)), &mut dataplane);
    assert!(grown.is_empty(), "it was served already: {grown:?}");
    // Somebody took the rules away, and meanwhile a client called.
    let meddled = Event::KernelChanged {
        family: Family::V4,
        by: "nft".to_owned(),
    };
    dataplane.held.v4 = Held::default();
    assert_eq!(change(meddled, &mut dataplane).len(), 1);
}

#[test]
fn a_sync_that_failed_leaves_its_flows_to_the_next_one() {
    let mut engine = engine();
    let mut dataplane = Recording::default();
    let services = [service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"])];
    let slices = [
        slice("a-1", "a", &[endpoint("10.1.0.1")]),
        slice("b-1", "b", &[]),
    ];
    handle(
        &mut engine,
        lists(&services, &slices).into_iter().chain(node_facts()),
    );
    let mut engine = engine.ending_tcp(true);
    sync(&mut engine, &mut dataplane);
    // What is refused here may have been made in the kernel, where only the answer got lost.
    dataplane.refuse_next = 1;
    engine.handle(Event::ServiceDeleted(name("a")));
    let ready = slice("b-1", "b", &[endpoint("10.1.0.2")]);
    engine.handle(Event::SliceApplied(good(&ready, &ready.name)));
    engine.sync(Family::V4, &mut dataplane).unwrap_err();
    let made = {
        let mut elsewhere = Recording::default();
        let mut other = crate::testing::world::engine();
        let known = lists(&services[1..], std::slice::from_ref(&ready));
        handle(&mut other, known.into_iter().chain(node_facts()));
        sync(&mut other, &mut elsewhere);
        elsewhere.held
    };
    dataplane.held = made;
    let synced = engine.sync(Family::V4, &mut dataplane).unwrap();
    assert_eq!(synced.changes, 0, "everything was made");
    assert_eq!(opened(&synced).len(), 1, "b: {synced:?}");
    let gone = synced.tcp.frontends.values().filter(|kept| kept.is_empty());
    assert_eq!(gone.count(), 1, "a: {synced:?}");
}

#[test]
fn an_address_of_the_node_that_the_machine_does_not_have_is_told_until_it_has_it() {
    let node = |addresses: &[&str]| Node {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ..Node::default()
    };
    let mut engine = engine();
    engine.handle(Event::NodeChanged(Some(node(&[
        "10.0.0.9",
        "192.168.0.2",
        "fd00::2",
    ]))));
    assert!(
        engine.notes.elsewhere().is_empty(),
        "the machine's are not known yet"
    );
    handle(&mut engine, node_facts().into_iter().skip(1));
    assert_eq!(*engine.notes.elsewhere(), [ip("10.0.0.9")].into());
    engine.handle(Event::NodeChanged(Some(node(&["192.168.0.2", "fd00::2"]))));
    assert!(engine.notes.elsewhere().is_empty());
    engine.handle(Event::HostAddressesChanged([ip("192.168.0.2")].into()));
    assert_eq!(*engine.notes.elsewhere(), [ip("fd00::2")].into());
}
