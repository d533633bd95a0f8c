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

#[test]
fn what_others_change_is_put_right_at_once_but_not_for_ever() {
    let (mut machine, mut kernel, mut now) = settled();
    let mut repair = |machine: &mut Machine, now: Uptime| {
        machine.handle(meddled(), now);
        let due = machine.due_at(Family::V4).unwrap();
        let ended = due.max(now).after(Duration::from_millis(10));
        let mut times = [due.max(now), ended].into_iter();
        let times = std::cell::RefCell::new(&mut times);
        machine
            .sync(Family::V4, &mut kernel, &|| {
                times.borrow_mut().next().unwrap()
            })
            .unwrap();
        (due.max(now), ended)
    };
    for _ in 0..PROMPT_REPAIRS {
        let (at, ended) = repair(&mut machine, now);
        assert_eq!(at, now);
        now = ended;
    }
    let (at, ended) = repair(&mut machine, now);
    assert_eq!(at, now.after(Duration::from_millis(90)));
    // Changes of the cluster do not wait for that.
    machine.handle(change(1), ended);
    assert!(machine.due_at(Family::V4).unwrap() <= ended);
    // Nobody did anything for a while: the next one is a burst of its own.
    let later = ended.after(BURST + Duration::from_secs(1));
    assert_eq!(repair(&mut machine, later).0, later);
    assert_eq!(machine.repairs.v4.made, 1);
}
