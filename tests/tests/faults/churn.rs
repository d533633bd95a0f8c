//! A long run: random changes and random faults against a model, which the kernel equals at every quiet point.
//!
//! `PROXYD_CHURN_SECONDS=1800 cargo xtask test -- -p proxyd-tests --test faults churn -- --nocapture` is the long one.
//! A failure is tried again with the seed that was printed: the same changes and faults in the same order.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxyd_tests::agent::{Agent, nft};
use proxyd_tests::apiserver::{Cut, Options, Refusal};
use proxyd_tests::cluster::Cluster;
use proxyd_tests::inject::Injection;
use proxyd_tests::live::Live;
use proxyd_tests::load::{Load, syns_sent_again};
use proxyd_tests::model::Model;
use proxyd_tests::random::{Random, from_environment};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::wait::poll;
use proxyd_tests::world::{PATIENCE, http};

use crate::http_at;
use crate::maps::{self, expect_planned_maps};

/// How long it takes, if the environment says nothing else.
const SECONDS: u64 = 60;

/// How much more memory an agent may have after any number of changes, in KiB. It has some 20 MiB (and not optimised,
/// more); a leak of one object for each change would be more than that in the long run.
const GROWTH: u64 = 6 * 1024;

/// The Service that does not change; the model knows nothing of it.
const STEADY: &str = "10.96.200.1";

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// The agent is killed, and another started after more changes.
    Kill,
    /// It is asked to end, and another started.
    Restart,
    /// It is stopped by a signal, and goes on.
    Suspend,
    /// Watches end, one way or the other.
    Cut(Cut),
    /// The API server is gone for a while.
    Away,
    /// The API server forgets its history, so that every watch is answered with 410.
    Forget,
    /// The API server refuses requests with a status.
    Refuse(u16),
    /// The API server counts from 1 again.
    Renumber,
    /// The kernel refuses what the agent sends it.
    Kernel(&'static str),
    /// Another program commits to a table of its own.
    Neighbour,
    /// Another program changes elements of the agent's.
    Foreign(&'static str),
}

const FAULTS: [Fault; 20] = [
    Fault::Nothing,
    Fault::Nothing,
    Fault::Nothing,
    Fault::Kill,
    Fault::Restart,
    Fault::Suspend,
    Fault::Cut(Cut::Clean),
    Fault::Cut(Cut::Broken),
    Fault::Cut(Cut::HalfLine),
    Fault::Away,
    Fault::Forget,
    Fault::Refuse(429),
    Fault::Refuse(500),
    Fault::Refuse(410),
    Fault::Kernel("sendto:error=ENOBUFS:when=1..2"),
    Fault::Kernel("recvfrom:error=ENOMEM:when=1"),
    Fault::Neighbour,
    Fault::Foreign("flush set ip proxyd cluster-ips"),
    Fault::Foreign("flush map ip proxyd no-endpoints"),
    // No agent writes this one: the table is taken for another's, and replaced.
    Fault::Foreign("add element ip proxyd services { 10.96.9.9 . tcp . 9 : drop }"),
];

/// The agent, what it works on, and what should come of it.
struct Run {
    live: Live,
    model: Model,
    random: Random,
    agent: Option<Agent>,
    changes: usize,
}

impl Run {
    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn change(&mut self) {
        let count = self.random.below(30);
        self.changes += count;
        self.model.steps(&mut self.random, &self.live.server, count);
    }

    /// Changes before, while and after something goes wrong.
    fn suffer(&mut self, fault: Fault) {
        self.change();
        let server = &self.live.server;
        match fault {
            Fault::Nothing => self.change(),
            Fault::Kill => {
                self.agent.take().unwrap().kill();
                self.change();
                self.agent = Some(self.live.start_in_sync());
            }
            Fault::Restart => {
                let (status, log) = self.agent.take().unwrap().terminate();
                assert!(status.success(), "{log:#?}");
                self.change();
                self.agent = Some(self.live.start_in_sync());
            }
            Fault::Suspend => {
                self.agent().signal(Signal::SIGSTOP);
                self.change();
                self.agent().signal(Signal::SIGCONT);
            }
            Fault::Cut(cut) => {
                server.cut_watches(cut);
                self.change();
            }
            Fault::Away => {
                server.stop();
                self.change();
                self.live.resume_server();
            }
            Fault::Forget => {
                server.cut_watches(Cut::Broken);
                self.change();
                self.live.server.compact();
                self.live.server.cut_watches(Cut::Clean);
            }
            Fault::Refuse(status) => {
                server.refuse(Refusal::with(status).times(3));
                server.cut_watches(Cut::Broken);
                self.change();
            }
            Fault::Renumber => {
                server.reset_resource_versions();
                self.change();
            }
            Fault::Kernel(what) => {
                let pid = self.agent().pid();
                let injection = Injection::attach(self.live.node(), pid, false, what, &[]);
                self.change();
                self.settle();
                drop(injection);
            }
            Fault::Neighbour => {
                nft(self.live.node(), &["add table ip neighbour"], "");
                self.change();
                nft(self.live.node(), &["delete table ip neighbour"], "");
            }
            Fault::Foreign(change) => {
                nft(self.live.node(), &[change], "");
                self.change();
            }
        }
        self.change();
    }

    /// Waits for a quiet point: the kernel equals the model.
    #[track_caller]
    fn settle(&self) {
        let mut last = Vec::new();
        let live = &self.live;
        let is_equal = poll(6 * PATIENCE, || {
            last = self.model.differences(live, &[STEADY]);
            if let Some(programs) = &live.programs {
                last.extend(maps::differences(&self.model, &[STEADY], programs));
            }
            last.is_empty().then_some(())
        });
        assert!(is_equal.is_some(), "{last:#?}");
    }

    /// The agent's resident memory in KiB.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent().pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

#[test]
fn the_kernel_equals_the_model_at_every_quiet_point_of_a_long_run() {
    suffer_for_long(false);
}

#[test]
fn rules_and_maps_of_programs_equal_the_model_at_every_quiet_point_of_a_long_run() {
    suffer_for_long(true);
}

fn suffer_for_long(has_programs: bool) {
    let seed = from_environment("PROXYD_CHURN_SEED", 1);
    let seconds = from_environment("PROXYD_CHURN_SECONDS", SECONDS);
    println!("PROXYD_CHURN_SEED={seed} PROXYD_CHURN_SECONDS={seconds}");
    let mut faults = FAULTS.to_vec();
    // A watch that goes on from a version that the server has not reached is told nothing until it has.
    if from_environment("PROXYD_CHURN_RENUMBER", 0) > 0 {
        faults.push(Fault::Renumber);
    }
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let here = cluster.node1.pod("here").serving(8080);
    let there = cluster.node2.pod("there").serving(8080);
    let mut live = Live::new(cluster, Options::default());
    live.programs = has_programs.then(|| Sockets::of(&[&asker.host.netns]));
    for object in http("steady", STEADY, &[(&here, "node-1"), (&there, "node-2")]) {
        live.server.create(&object);
    }
    let agent = Some(live.start_in_sync());
    let mut run = Run {
        live,
        model: Model::default(),
        random: Random::new(seed),
        agent,
        changes: 0,
    };
    let steady: SocketAddr = http_at(STEADY);
    let clients = Load::start(&asker.host, &[steady], 4, Duration::from_millis(50));

    // In the second half the agent lives on, so that what it has lost would show.
    let begun = Instant::now();
    let part = |tenths: u32| begun.elapsed() >= Duration::from_secs(seconds) * tenths / 10;
    let ends = |fault: &Fault| matches!(fault, Fault::Kill | Fault::Restart);
    let (mut rounds, mut memory) = (0, None);
    while !part(10) || memory.is_none() {
        if part(5) {
            faults.retain(|fault| !ends(fault));
        }
        let fault = run.random.one_of(&faults);
        let what = format!("round {rounds}, {fault:?}");
        // Told only if the test fails, and then it is what to look at.
        println!("{what}");
        run.suffer(fault);
        run.settle();
        let failures = clients.seen().failures;
        assert!(failures.is_empty(), "{what}: {failures:?}");
        rounds += 1;
        if part(6) && memory.is_none() {
            memory = Some(run.memory());
        }
    }
    let (before, after) = (memory.unwrap(), run.memory());
    run.live.expect_planned_tables();
    if let Some(programs) = &run.live.programs {
        expect_planned_maps(&run.live, programs);
    }
    let seen = clients.finish();
    println!(
        "{rounds} rounds, {} changes, {} connections, none failed; memory {before} → {after} KiB",
        run.changes,
        seen.total(),
    );
    assert_eq!(syns_sent_again(&asker.host), 0);
    assert!(
        after < before + GROWTH,
        "memory grew: {before} → {after} KiB"
    );
    run.agent.unwrap().terminate();
}
