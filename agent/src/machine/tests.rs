//! When the machine syncs, step by step.

mod simulation;

use std::time::Duration;

use super::*;
use crate::dataplane::recording::Recording;
use crate::testing::world::{beginning, engine};
use crate::testing::{good, service};

/// A machine whose world is in the kernel, a moment, and the kernel.
fn settled() -> (Machine, Recording, Uptime) {
    let now = Uptime(Duration::from_secs(100));
    let mut machine = Machine::new(engine(), 1);
    let mut kernel = Recording::default();
    beginning().for_each(|event| machine.handle(event, now));
    for family in Family::ALL {
        machine.sync(family, &mut kernel, &|| now).unwrap();
    }
    assert!(machine.is_settled());
    (machine, kernel, now)
}

fn change(number: u8) -> Event {
    let service = service("web", &[&format!("10.96.0.{number}")]);
    Event::ServiceApplied(good(&service, &service.name))
}

fn meddled() -> Event {
    Event::KernelChanged {
        family: Family::V4,
        by: "nft".to_owned(),
    }
}

#[test]
fn a_change_is_due_at_once_and_in_its_family_alone() {
    let (mut machine, _, now) = settled();
    machine.handle(change(1), now);
    assert!(machine.due_at(Family::V4).unwrap() <= now);
    assert_eq!(machine.due_at(Family::V6), None);
}

#[test]
fn after_a_refusal_changes_wait_for_the_next_attempt() {
    let (mut machine, mut kernel, now) = settled();
    kernel.refuse_next = 1;
    machine.handle(change(1), now);
    machine.sync(Family::V4, &mut kernel, &|| now).unwrap_err();
    let again = machine.due_at(Family::V4).unwrap();
    assert!(again >= now.after(FIRST_RETRY) && again < now.after(2 * FIRST_RETRY));
    machine.handle(change(2), now);
    assert_eq!(machine.wake_at(), Some(again));
    machine.sync(Family::V4, &mut kernel, &|| again).unwrap();
    assert!(machine.is_settled());
}

#[test]
fn the_pauses_of_two_nodes_are_not_in_step() {
    let pause = |seed| {
        let (mut machine, mut kernel, now) = settled();
        machine.seed = seed;
        kernel.refuse_next = 1;
        machine.handle(change(1), now);
        machine.sync(Family::V4, &mut kernel, &|| now).unwrap_err();
        machine.due_at(Family::V4).unwrap()
    };
    assert_ne!(pause(1), pause(2));
    assert_eq!(pause(1), pause(1));
}

/// Has others change the rules, and puts them right as soon as that is due; tells when that was.
fn repair(machine: &mut Machine, kernel: &mut Recording, now: Uptime) -> Uptime {
    machine.handle(meddled(), now);
    let at = machine.due_at(Family::V4).unwrap().max(now);
    machine.sync(Family::V4, kernel, &|| at).unwrap();
    at
}

#[test]
fn who_goes_on_changing_the_rules_is_fought_once_a_second_and_then_less_and_less_often() {
    let (mut machine, mut kernel, mut now) = settled();
    for _ in 0..PROMPT_REPAIRS {
        assert_eq!(repair(&mut machine, &mut kernel, now), now);
    }
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        let at = repair(&mut machine, &mut kernel, now);
        assert_eq!(at, now.after(Duration::from_secs(pause)));
        now = at;
    }
    // Nobody did anything for a while: the next change is one by itself.
    let later = now.after(BURST + Duration::from_secs(1));
    assert_eq!(repair(&mut machine, &mut kernel, later), later);
    assert_eq!(machine.repairs.v4.made, 1);
}

#[test]
fn changes_of_the_cluster_wait_a_second_at_most_while_others_undo_the_rules() {
    let (mut machine, mut kernel, mut now) = settled();
    for _ in 0..PROMPT_REPAIRS + 5 {
        now = repair(&mut machine, &mut kernel, now);
    }
    machine.handle(meddled(), now);
    assert_eq!(
        machine.due_at(Family::V4),
        Some(now.after(Duration::from_secs(30)))
    );
    machine.handle(change(1), now);
    assert_eq!(
        machine.due_at(Family::V4),
        Some(now.after(Duration::from_secs(1)))
    );
    // Nobody has touched the other family.
    let (mut machine, _, now) = settled();
    machine.handle(change(1), now);
    assert!(machine.due_at(Family::V4).unwrap() <= now);
}

#[test]
fn who_goes_on_changing_the_rules_is_named_once_a_minute() {
    let (mut machine, mut kernel, start) = settled();
    let mut now = start;
    let mut named = Vec::new();
    while start.until(now) < Duration::from_secs(300) {
        now = repair(&mut machine, &mut kernel, now);
        let at = machine.repairs.v4.named;
        if named.last() != Some(&at) {
            named.push(at);
        }
    }
    let between = named.windows(2).map(|pair| pair[0].until(pair[1]));
    let between: Vec<_> = between.map(|pause| pause.as_secs()).collect();
    assert!(named.len() >= 4, "{named:?}");
    assert!(
        between.iter().all(|pause| (60..=90).contains(pause)),
        "{between:?}"
    );
}

#[test]
fn a_family_that_the_kernel_lacks_is_never_due() {
    let now = Uptime(Duration::from_secs(100));
    let lacking = PerFamily {
        v4: false,
        v6: true,
    };
    let mut machine = Machine::new(engine().without(lacking), 1);
    let mut kernel = Recording::default();
    beginning().for_each(|event| machine.handle(event, now));
    machine.handle(change(1), now);
    assert_eq!(machine.due_at(Family::V6), None);
    machine.sync(Family::V4, &mut kernel, &|| now).unwrap();
    assert!(machine.is_settled());
    let [(family, _)] = kernel.committed.as_slice() else {
        panic!("one family: {:?}", kernel.committed);
    };
    assert_eq!(*family, Family::V4);
}
