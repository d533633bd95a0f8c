//! What becomes of jobs, with walks whose steps the test gives.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};

use super::*;
use crate::model::{Frontend, Protocol};
use crate::plan::Backend;
use crate::testing::{backend, ip, port};

/// For what must come: much longer than it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// No pauses; what failed is tried again only with the next job.
const HASTE: Pace = Pace {
    settle: Duration::ZERO,
    rest: Duration::ZERO,
    retry: Duration::MAX,
};

/// What a step of a walk finds.
enum Found {
    Flow(&'static str),
    End,
    Failure,
}

/// A walk whose steps come from the test, and which tells it of what it deletes.
struct Walk {
    steps: Receiver<Found>,
    read: Option<&'static str>,
    deleted: Sender<Option<SocketAddr>>,
}

/// The test's end.
struct Test {
    reconciler: Option<Reconciler>,
    walks: Receiver<Sender<Found>>,
    deleted: Receiver<Option<SocketAddr>>,
    reports: Receiver<Report>,
}

impl Steps for Walk {
    fn read(&mut self) -> Result<bool, ConntrackError> {
        self.read = match self.steps.recv() {
            Ok(Found::Flow(reply_source)) => Some(reply_source),
            Ok(Found::End) => None,
            Ok(Found::Failure) | Err(_) => return Err(io::Error::other("the test says so").into()),
        };
        Ok(self.read.is_some())
    }

    fn delete_stale(&mut self, is_stale: impl Fn(&Flow) -> bool) -> Result<Counts, ConntrackError> {
        let flow = Flow {
            protocol: Protocol::Udp,
            destination: "10.96.0.10:53".parse().unwrap(),
            reply_source: self.read.unwrap().parse().unwrap(),
            answered: true,
        };
        let stale = is_stale(&flow).then_some(flow.reply_source);
        self.deleted.send(stale).unwrap();
        Ok(Counts {
            seen: 1,
            deleted: PerFamily {
                v4: u64::from(stale.is_some()),
                v6: 0,
            },
        })
    }
}

impl Test {
    fn start(pace: Pace) -> Self {
        let (walk, walks) = mpsc::channel();
        let (delete, deleted) = mpsc::channel();
        let (report, reports) = mpsc::channel();
        let start_walk = move || {
            let (step, steps) = mpsc::channel();
            // The test may not want to hear of it any more.
            let _ = walk.send(step);
            Ok(Walk {
                steps,
                read: None,
                deleted: delete.clone(),
            })
        };
        let report = move |it| report.send(it).unwrap_or_default();
        Self {
            reconciler: Some(Reconciler::start_with(start_walk, report, pace).unwrap()),
            walks,
            deleted,
            reports,
        }
    }

    /// Says which back ends the front end has.
    fn send(&self, backends: &[&str]) {
        self.end(Some(job(backends)));
    }

    fn begin(&self) {
        self.reconciler.as_ref().unwrap().begin(Family::V4);
    }

    fn end(&self, job: Option<Flows>) {
        self.reconciler.as_ref().unwrap().end(Family::V4, job);
    }
    fn walk(&self) -> Sender<Found> {
        self.walks.recv_timeout(PATIENCE).expect("a walk begins")
    }

    /// Whether a walk deletes the next flow, which this one answers.
    fn deletes(&self, walk: &Sender<Found>, reply_source: &'static str) -> bool {
        walk.send(Found::Flow(reply_source)).unwrap();
        let deleted = self.deleted.recv_timeout(PATIENCE).unwrap();
        assert!(deleted.is_none_or(|by| by == reply_source.parse().unwrap()));
        deleted.is_some()
    }

    fn report(&self) -> (usize, u64, u64) {
        let report = self.reports.recv_timeout(PATIENCE).expect("a report");
        (
            report.frontends,
            report.seen,
            report.deleted.v4.unwrap_or(0),
        )
    }
}

/// That the front end has these back ends.
fn job(backends: &[&str]) -> Flows {
    let frontend = Frontend::Address {
        ip: ip("10.96.0.10"),
        protocol: Protocol::Udp,
        port: port(53),
    };
    let backends = backends.iter().map(|text| backend(text));
    Flows {
        frontends: [(
            frontend,
            backends.collect::<std::collections::BTreeSet<Backend>>(),
        )]
        .into(),
        ..Flows::default()
    }
}

#[test]
fn a_job_is_one_walk_and_one_report() {
    let test = Test::start(HASTE);
    test.send(&["10.1.0.1:53"]);
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    assert!(!test.deletes(&walk, "10.1.0.1:53"));
    assert!(test.deletes(&walk, "10.1.0.3:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report(), (1, 3, 2));
    test.end(Some(Flows::default()));
    test.send(&[]);
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.1:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report(), (1, 1, 1));
}

#[test]
fn jobs_that_come_during_a_walk_count_at_once_and_are_one_job_afterwards() {
    let test = Test::start(HASTE);
    test.send(&["10.1.0.1:53"]);
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    for backends in [["10.1.0.3:53"], ["10.1.0.4:53"], ["10.1.0.2:53"]] {
        test.send(&backends);
    }
    assert!(!test.deletes(&walk, "10.1.0.2:53"));
    assert!(test.deletes(&walk, "10.1.0.1:53"));
    walk.send(Found::End).unwrap();
    test.report();
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.1:53"));
    assert!(!test.deletes(&walk, "10.1.0.2:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report(), (1, 2, 1));
    assert!(test.walks.try_recv().is_err(), "three jobs are one walk");
}

#[test]
fn what_failed_is_done_with_the_next_job() {
    let test = Test::start(HASTE);
    test.send(&["10.1.0.1:53"]);
    test.walk().send(Found::Failure).unwrap();
    let other = Frontend::Address {
        ip: ip("10.96.0.11"),
        protocol: Protocol::Udp,
        port: port(53),
    };
    test.end(Some(Flows {
        frontends: [(other, Default::default())].into(),
        ..Flows::default()
    }));
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report(), (2, 1, 1));
}

#[test]
fn what_failed_is_tried_again_without_another_job() {
    let test = Test::start(Pace {
        retry: Duration::from_millis(1),
        ..HASTE
    });
    test.send(&["10.1.0.1:53"]);
    test.walk().send(Found::Failure).unwrap();
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report(), (1, 1, 1));
}

#[test]
fn jobs_that_come_while_it_rests_are_one_job() {
    let test = Test::start(Pace {
        rest: Duration::from_millis(100),
        ..HASTE
    });
    test.send(&["10.1.0.1:53"]);
    test.walk().send(Found::End).unwrap();
    test.report();
    test.send(&["10.1.0.2:53"]);
    test.send(&["10.1.0.3:53"]);
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    assert!(!test.deletes(&walk, "10.1.0.3:53"));
}

#[test]
fn dropping_it_ends_a_walk_that_is_under_way() {
    let mut test = Test::start(HASTE);
    test.send(&["10.1.0.1:53"]);
    let walk = test.walk();
    let reconciler = test.reconciler.take();
    let dropping = thread::spawn(move || drop(reconciler));
    // Not one of many steps is the last, and yet the thread comes to an end.
    while walk.send(Found::Flow("10.1.0.1:53")).is_ok() {}
    dropping.join().unwrap();
    assert!(
        test.reports.try_recv().is_err(),
        "the walk was not finished"
    );
}

/// For what must not come, if nobody lets it.
const MOMENT: Duration = Duration::from_millis(100);

#[test]
fn what_is_read_while_a_commit_is_under_way_is_judged_by_its_job() {
    let test = Test::start(HASTE);
    test.send(&["10.1.0.1:53"]);
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    // The kernel has the new rules already, and a client got the new endpoint; the job is still to come.
    test.begin();
    walk.send(Found::Flow("10.1.0.2:53")).unwrap();
    let judged = test.deleted.recv_timeout(MOMENT);
    assert!(judged.is_err(), "judged too early: {judged:?}");
    test.end(Some(job(&["10.1.0.2:53"])));
    assert_eq!(test.deleted.recv_timeout(PATIENCE).unwrap(), None);
    assert!(test.deletes(&walk, "10.1.0.1:53"));
    walk.send(Found::End).unwrap();
    // A commit that changes nothing holds nothing up.
    let walk = test.walk();
    test.begin();
    test.end(Some(Flows::default()));
    assert!(!test.deletes(&walk, "10.1.0.2:53"));
}

#[test]
fn after_a_commit_that_failed_nothing_is_deleted_until_the_rules_are_known() {
    let test = Test::start(HASTE);
    test.send(&["10.1.0.1:53"]);
    let walk = test.walk();
    test.begin();
    test.end(None);
    assert!(!test.deletes(&walk, "10.1.0.2:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report().2, 0);
    assert!(
        test.walks.recv_timeout(MOMENT).is_err(),
        "there is nothing that it could do"
    );
    // The next one says nothing of this front end: what was known before is done.
    test.begin();
    test.end(Some(Flows::default()));
    let walk = test.walk();
    assert!(test.deletes(&walk, "10.1.0.2:53"));
    walk.send(Found::End).unwrap();
    assert_eq!(test.report(), (1, 1, 1));
}
