//! Packet-flow tables: the specification of what happens to a connection, as text that people read.
//!
//! Every row runs twice: a tracer walks the packet through the tables that the agent plans, and real
//! connections go through the rules that it programs, between network namespaces, where the address that the server saw
//! proves masquerade or its absence. [`table`] says how a table is read.

pub mod call;
pub mod cast;
mod real;
pub mod service;
pub mod table;
pub mod traced;

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::world;
use call::Call;
use cast::Cast;
use real::Untouched;
use service::Svc;
use table::{Expected, Row};
use traced::Planned;

/// The longest that a client waits for an answer that should not come.
pub const SILENCE: Duration = Duration::from_millis(500);

/// A cast with an agent on node-1.
#[derive(Debug)]
pub struct Stage {
    /// Who takes part.
    pub cast: Cast,
    /// The agent.
    pub agent: Agent,
    manifests: TempDir,
}

impl Stage {
    /// Starts the agent with these objects.
    pub fn new(cast: Cast, objects: &[Value], args: &[&str]) -> Self {
        let manifests = TempDir::new().expect("the directory for temporary files can be written");
        world::write(&manifests, objects);
        Self {
            agent: world::start_agent(&cast.cluster.node1.host, &manifests, args),
            cast,
            manifests,
        }
    }

    /// Gives the agent these Services, numbered from 1. It takes them a moment later.
    pub fn write(&self, services: &[Svc]) {
        self.write_objects(&service::objects(services, &self.cast));
    }

    /// Gives the agent these objects.
    pub fn write_objects(&self, objects: &[Value]) {
        world::write(&self.manifests, objects);
    }

    /// Ends the agent and starts another one with the same objects.
    #[must_use]
    pub fn restart(self, args: &[&str]) -> Self {
        self.again(None, args)
    }

    /// Ends the agent and starts another one with these Services.
    #[must_use]
    pub fn restart_with(self, services: &[Svc], args: &[&str]) -> Self {
        self.again(Some(services), args)
    }

    fn again(self, services: Option<&[Svc]>, args: &[&str]) -> Self {
        let Self {
            cast,
            agent,
            manifests,
        } = self;
        agent.terminate();
        if let Some(services) = services {
            world::write(&manifests, &service::objects(services, &cast));
        }
        Self {
            agent: world::start_agent(&cast.cluster.node1.host, &manifests, args),
            cast,
            manifests,
        }
    }
}

/// What rows are held against.
#[derive(Clone, Copy)]
struct Before<'a> {
    cast: &'a Cast,
    planned: &'a Planned,
    untouched: &'a Untouched,
}

/// What the agent is given, and what should come of it.
#[derive(Debug, Default)]
pub struct Scene<'a> {
    /// The agent's arguments.
    pub args: &'a [&'a str],
    /// The Services; their order gives their numbers and ages.
    pub services: Vec<Svc>,
    /// Objects beside them.
    pub others: Vec<Value>,
    /// The rows of the table.
    pub rows: Vec<Row>,
    /// Which families are looked at, if not both: 0 is IPv4, 1 is IPv6.
    pub family: Option<usize>,
}

impl<'a> Scene<'a> {
    /// A table whose columns are these Services.
    pub fn across(args: &'a [&'a str], services: Vec<Svc>, table: &str) -> Self {
        Self {
            args,
            rows: table::across(table, &services),
            services,
            ..Self::default()
        }
    }

    /// A table whose lines are Services, all with these fields in their `spec`.
    pub fn down(args: &'a [&'a str], spec: &Value, table: &str) -> Self {
        let (services, rows) = table::down(table, spec);
        Self {
            args,
            services,
            rows,
            ..Self::default()
        }
    }

    /// Checks every row, in every protocol that it does not leave out.
    ///
    /// # Panics
    /// With every row that is not as the table says.
    #[track_caller]
    pub fn check(&self) {
        self.check_with(|_| {});
    }

    /// As [`check`](Self::check), after `prepare` changed the cluster.
    ///
    /// # Panics
    /// With every row that is not as the table says.
    #[track_caller]
    pub fn check_with(&self, prepare: impl FnOnce(&mut Cast)) {
        let mut cast = Cast::new();
        prepare(&mut cast);
        let mut objects = service::objects(&self.services, &cast);
        objects.extend(self.others.iter().cloned());
        let planned = Planned::new(&cast, &objects, self.args);
        let untouched = self.untouched(&cast);
        let stage = Stage::new(cast, &objects, self.args);
        let wrong: Vec<String> = thread::scope(|scope| {
            let before = Before {
                cast: &stage.cast,
                planned: &planned,
                untouched: &untouched,
            };
            let check = |row| scope.spawn(move || self.check_row(before, row));
            let rows: Vec<_> = self.rows.iter().map(check).collect();
            let rows = rows.into_iter();
            rows.flat_map(|row| row.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        assert!(
            wrong.is_empty(),
            "{} connections of {} rows are not as the table says, with {:?}:\n{}",
            wrong.len(),
            self.rows.len(),
            self.args,
            wrong.join("\n")
        );
    }

    /// What a row asks, in each family and protocol.
    fn calls(&self, cast: &Cast, row: &Row) -> Vec<Call> {
        let mut numbered = (1..).zip(&self.services);
        let found = numbered.find(|(_, service)| service.name == row.service);
        let (number, _) = found.expect("rows are made of the scene's Services");
        let families = [0, 1].into_iter();
        let families = families.filter(|family| self.family.is_none_or(|only| only == *family));
        let calls = families.flat_map(|family| Call::of(cast, row, number, family));
        calls.collect()
    }

    /// What becomes of the calls that no rule should touch while there are no rules.
    fn untouched(&self, cast: &Cast) -> Untouched {
        let rows = self.rows.iter();
        let rows = rows.filter(|row| row.expected == Expected::Unserved);
        let calls: BTreeSet<_> = rows.flat_map(|row| self.calls(cast, row)).collect();
        thread::scope(|scope| {
            let asked = calls.into_iter().map(|call| {
                scope.spawn(move || {
                    let failure = call.make(cast, SILENCE).err();
                    (call, failure)
                })
            });
            let asked: Vec<_> = asked.collect();
            let asked = asked.into_iter();
            asked
                .map(|asked| asked.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    }

    /// Checks a row in each family and protocol; returns what is wrong.
    fn check_row(&self, before: Before<'_>, row: &Row) -> Vec<String> {
        let Before {
            cast,
            planned,
            untouched,
        } = before;
        let mut wrong = Vec::new();
        for call in self.calls(cast, row) {
            let what = format!(
                "{} → {} of {} ({} {}) should be {}",
                row.from, row.to, row.service, call.to, call.protocol, row.expected
            );
            let outcome = planned.trace(cast, &call);
            let traced = traced::mismatch(&outcome, &row.expected, cast, &call);
            wrong.extend(traced.map(|found| format!("{what}; traced: {found}")));
            let real = real::check(cast, &call, &row.expected, untouched).err();
            wrong.extend(real.map(|found| format!("{what}; in the kernel: {found}")));
        }
        wrong
    }
}
