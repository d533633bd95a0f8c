//! Random schedules of events and faults, on a virtual clock and a kernel that refuses, forgets and is meddled with.
//!
//! A schedule is its seed: `PROXYD_SIMULATION_SEED=7 cargo test -p proxyd simulation` runs that one alone, and
//! `PROXYD_SIMULATION_COUNT` says how many are run, from seed 0 up.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use proptest::strategy::{BoxedStrategy, Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::super::{FIRST_RETRY, LONGEST_RETRY, Machine};
use crate::dataplane::recording::Recording;
use crate::dataplane::{Dataplane, DataplaneError, Restored};
use crate::diff::{Delta, Held, diff};
use crate::event::Event;
use crate::model::{Family, PerFamily, Scope};
use crate::plan::{Member, Tables};
use crate::status::Uptime;
use crate::testing::world::{World, beginning, engine, held};
use crate::testing::{any_event, ip};

/// How many schedules are run where nobody says otherwise.
const SCHEDULES: u64 = 3_000;

/// How many things happen in each.
const STEPS: usize = 30;

/// How many syncs a machine may need from the last event on, when nothing goes wrong any more: one for each family,
/// and one more where a repair is still to come.
const LAST_SYNCS: usize = 4;

/// A kernel in which anything can go wrong.
struct Kernel {
    now: Rc<Cell<Uptime>>,
    chance: Rng,
    recording: Recording,
    /// Whether it fails at times.
    is_troubled: bool,
    /// Families whose table is of another version, and is replaced when it is read back.
    outdated: PerFamily<bool>,
    /// What was changed by others while the machine was at work, and nobody told it yet.
    noticed: Vec<Family>,
}

impl Kernel {
    fn elapse(&mut self) {
        let took = match self.chance.u8(0..50) {
            // The kernel does not answer.
            0 if self.is_troubled => Duration::from_secs(30),
            _ => Duration::from_micros(self.chance.u64(1..5_000)),
        };
        self.now.set(self.now.get().after(took));
    }

    fn fails(&mut self) -> bool {
        self.is_troubled && self.chance.u8(0..3) == 0
    }

    fn error(&mut self) -> DataplaneError {
        use nix::errno::Errno::{EBUSY, EEXIST, EINTR, ENFILE, ENOBUFS, ENOENT, ENOMEM};
        let errnos = [EBUSY, EINTR, ENFILE, ENOBUFS, ENOMEM];
        match self.chance.u8(0..4) {
            0 => DataplaneError::NotPermitted,
            1 => DataplaneError::ChangedByOthers(if self.chance.bool() {
                ENOENT.into()
            } else {
                EEXIST.into()
            }),
            _ => DataplaneError::Refused {
                what: "a change".to_owned(),
                source: errnos[self.chance.usize(0..errnos.len())].into(),
            },
        }
    }

    /// Someone else changes the rules of a family.
    fn meddle(&mut self, family: Family) {
        let held = self.recording.held.get_mut(family);
        match self.chance.u8(0..5) {
            0 => *held = Held::default(),
            1 => *self.outdated.get_mut(family) = true,
            2 => {
                let half: BTreeSet<_> = held.entries.keys().copied().step_by(2).collect();
                held.entries.retain(|key, _| half.contains(key));
            }
            3 => held.members = held.members.iter().copied().skip(1).collect(),
            _ => {
                held.members.insert(Member::ClusterIp(match family {
                    Family::V4 => ip("10.96.9.9"),
                    Family::V6 => ip("fd00:96::99"),
                }));
            }
        }
    }
}

impl Dataplane for Kernel {
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        self.elapse();
        if self.fails() {
            return Err(self.error());
        }
        if std::mem::take(self.outdated.get_mut(family)) {
            let mut whole = Held::default();
            whole.apply(&diff(&whole, desired, &Scope::All));
            *self.recording.held.get_mut(family) = whole;
        }
        let held = self.recording.resync(family, desired);
        if self.fails() {
            // What was read is outdated already.
            self.meddle(family);
            self.noticed.push(family);
        }
        held
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        self.elapse();
        if self.fails() {
            // Its answer may be lost though it did what it was told.
            if self.chance.bool() {
                self.recording.apply(family, held, delta)?;
            }
            return Err(self.error());
        }
        self.recording.apply(family, held, delta)
    }

    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError> {
        self.elapse();
        if self.fails() {
            // Its answer may be lost though it did what it was told.
            if self.chance.bool() {
                self.recording.restore(family, held)?;
            }
            return Err(self.error());
        }
        *self.outdated.get_mut(family) = false;
        let restored = self.recording.restore(family, held);
        if self.fails() {
            // It is changed again at once.
            self.meddle(family);
            self.noticed.push(family);
        }
        restored
    }

    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError> {
        self.recording.cleanup(family)
    }
}

/// A machine at work, and all around it.
struct Simulation {
    now: Rc<Cell<Uptime>>,
    chance: Rng,
    source: TestRunner,
    events: BoxedStrategy<Event>,
    machine: Machine,
    kernel: Kernel,
    world: World,
    /// What is on its way to the machine, and when it comes.
    coming: Vec<(Uptime, Event)>,
    syncs: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let now = Rc::new(Cell::new(Uptime::default()));
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let source = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut world = World::default();
        beginning().for_each(|event| world.handle(event));
        Self {
            kernel: Kernel {
                now: Rc::clone(&now),
                chance: Rng::with_seed(seed + 1),
                recording: Recording::default(),
                is_troubled: false,
                outdated: PerFamily::default(),
                noticed: Vec::new(),
            },
            now,
            chance: Rng::with_seed(seed),
            source: TestRunner::new_with_rng(Config::default(), source),
            events: any_event().boxed(),
            machine: Machine::new(engine(), seed),
            world,
            coming: Vec::new(),
            syncs: 0,
        }
    }

    /// Lets one thing happen.
    fn step(&mut self) {
        match self.chance.u8(0..12) {
            0..=5 => {
                let event = self.events.new_tree(&mut self.source).unwrap().current();
                self.world.handle(event.clone());
                // A source may be behind, but tells things in their order.
                let last = self.coming.last().map_or(self.now.get(), |(at, _)| *at);
                let late = Duration::from_millis(self.chance.u64(0..20));
                self.coming
                    .push((last.max(self.now.get()).after(late), event));
            }
            6..=7 => {
                let family = Family::ALL[self.chance.usize(0..2)];
                self.kernel.meddle(family);
                self.kernel.noticed.push(family);
            }
            8 => self.kernel.is_troubled = !self.kernel.is_troubled,
            9 => self.restart(),
            _ => {
                let pause = Duration::from_millis(self.chance.u64(0..40_000));
                self.now.set(self.now.get().after(pause));
            }
        }
        self.work();
    }

    /// The agent is killed, and another one starts. What it is told of the world comes in any order, and nothing may be
    /// written before all of it has come.
    fn restart(&mut self) {
        self.machine = Machine::new(engine(), self.chance.u64(..));
        self.coming.clear();
        let mut events = self.world.events();
        self.chance.shuffle(&mut events);
        let before = self.kernel.recording.held.clone();
        for event in events {
            assert!(!self.machine.engine().is_ready());
            assert!(self.machine.wake_at().is_none());
            assert_eq!(self.kernel.recording.held, before);
            self.machine.handle(event, self.now.get());
        }
        assert!(self.machine.engine().is_ready());
    }

    /// What the sync loop does when it wakes up.
    fn work(&mut self) {
        let now = self.now.get();
        let noticed = self.kernel.noticed.drain(..).map(meddled);
        self.coming.splice(0..0, noticed.map(|event| (now, event)));
        let (come, coming) = std::mem::take(&mut self.coming)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.coming = coming;
        let come: Vec<(Uptime, Event)> = come;
        come.into_iter()
            .for_each(|(_, event)| self.machine.handle(event, now));
        for family in Family::ALL {
            let now = self.now.get();
            if self.machine.due_at(family).is_some_and(|at| at <= now) {
                self.sync(family);
            }
        }
    }

    fn sync(&mut self, family: Family) {
        self.syncs += 1;
        let clock = Rc::clone(&self.now);
        let result = self.machine.sync(family, &mut self.kernel, &|| clock.get());
        match result {
            Ok(_) => assert!(!self.machine.is_due(family), "a sync leaves nothing to do"),
            Err(_) => {
                let at = self.machine.due_at(family).expect("it is tried again");
                let pause = self.now.get().until(at);
                assert!(
                    pause >= FIRST_RETRY && pause <= LONGEST_RETRY * 2,
                    "tried again after {pause:?}"
                );
            }
        }
    }

    /// Nothing goes wrong any more: the kernel comes to hold what the world is, in few syncs.
    fn settle(&mut self) {
        self.kernel.is_troubled = false;
        if let Some((last, _)) = self.coming.last() {
            self.now.set(self.now.get().max(*last));
        }
        self.syncs = 0;
        self.work();
        while let Some(wake) = self.machine.wake_at() {
            assert!(self.syncs <= LAST_SYNCS, "it does not come to rest");
            self.now.set(self.now.get().max(wake));
            self.work();
        }
        assert!(self.machine.is_settled());
        assert_eq!(held(&self.kernel.recording), held(&self.world.loaded()));
    }
}

fn meddled(family: Family) -> Event {
    let by = "someone".to_owned();
    Event::KernelChanged { family, by }
}

fn run(seed: u64) {
    let mut simulation = Simulation::new(seed);
    simulation.restart();
    for _ in 0..3 {
        (0..STEPS / 3).for_each(|_| simulation.step());
        simulation.settle();
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

#[test]
fn simulation_of_random_faults_ends_with_the_desired_state() {
    if let Some(seed) = number("PROXYD_SIMULATION_SEED") {
        return run(seed);
    }
    let count = number("PROXYD_SIMULATION_COUNT").unwrap_or(SCHEDULES);
    for seed in 0..count {
        let failed = std::panic::catch_unwind(|| run(seed)).is_err();
        assert!(!failed, "run it again with PROXYD_SIMULATION_SEED={seed}");
    }
}

#[test]
fn simulation_of_an_hour_of_refusals_tries_seldom() {
    let mut simulation = Simulation::new(0);
    simulation.restart();
    simulation.work();
    let hour = simulation.now.get().after(Duration::from_secs(3_600));
    simulation.kernel.recording.refuse_next = usize::MAX;
    simulation.syncs = 0;
    let service = crate::testing::service("web", &["10.96.0.1"]);
    let event = Event::ServiceApplied(crate::testing::good(&service, &service.name));
    simulation.world.handle(event.clone());
    simulation.machine.handle(event, simulation.now.get());
    simulation.work();
    while simulation.now.get() < hour {
        let wake = simulation.machine.wake_at().expect("it is tried again");
        simulation.now.set(wake);
        simulation.work();
    }
    // Pauses of 0.1 s and more, doubling up to 30 s, each up to twice as long by chance.
    let expected = 3_600 / 60 + 9..=3_600 / 30 + 10;
    assert!(
        expected.contains(&simulation.syncs),
        "{} attempts",
        simulation.syncs
    );
    simulation.kernel.recording.refuse_next = 0;
    simulation.settle();
}

#[test]
fn simulation_of_a_fight_over_the_rules_comes_to_two_repairs_a_minute() {
    let mut simulation = Simulation::new(0);
    simulation.restart();
    simulation.work();
    let begun = simulation.now.get();
    simulation.syncs = 0;
    let hour = begun.after(Duration::from_secs(3_600));
    while simulation.now.get() < hour {
        simulation.kernel.meddle(Family::V4);
        let now = simulation.now.get();
        simulation.machine.handle(meddled(Family::V4), now);
        let wake = simulation.machine.wake_at().expect("it is to be repaired");
        simulation.now.set(simulation.now.get().max(wake));
        simulation.work();
    }
    // Ten at once, then after 1, 2, 4, 8 and 16 seconds, then every 30.
    let repairs = simulation.syncs;
    assert!((120..=140).contains(&repairs), "{repairs} repairs");
    simulation.settle();
}
