//! Packet-flow tables: the specification of what happens to a connection, as text that people read.
//!
//! Every row runs twice: a tracer walks the packet through the tables that the agent plans, and real
//! connections go through the rules that it programs, between network namespaces, where the address that the server saw
//! proves masquerade or its absence. [`table`] says how a table is read.

pub mod cast;
pub mod service;
pub mod table;
pub mod traced;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::traffic::{Failure, Protocol, ask};
use crate::world::{self, PATIENCE};
use cast::Cast;
use service::{PORT, Svc, addresses};
use table::{Expected, Row};
use traced::Planned;

/// The longest that a client waits for an answer that should not come.
pub const SILENCE: Duration = Duration::from_millis(500);

/// The fewest questions for a row that is answered, and the most, should one of the servers not turn up.
const QUESTIONS: std::ops::RangeInclusive<usize> = 6..=80;

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

/// How calls fail without any rules: who calls what, and how.
type Untouched = BTreeMap<(String, Protocol, SocketAddr), Option<Failure>>;

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

    /// Checks every row, TCP and UDP.
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
    fn calls(&self, cast: &Cast, row: &Row) -> Vec<(Protocol, SocketAddr)> {
        let mut numbered = (1..).zip(&self.services);
        let found = numbered.find(|(_, service)| service.name == row.service);
        let (number, _) = found.expect("rows are made of the scene's Services");
        let families = [0, 1].into_iter();
        let families = families.filter(|family| self.family.is_none_or(|only| only == *family));
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let calls = families.flat_map(|family| {
            let to = destination(cast, &row.to, number, family);
            protocols.map(|protocol| (protocol, to))
        });
        calls.collect()
    }

    /// What becomes of the calls that no rule should touch while there are no rules.
    fn untouched(&self, cast: &Cast) -> Untouched {
        let rows = self.rows.iter();
        let rows = rows.filter(|row| row.expected == Expected::Unserved);
        let calls = rows.flat_map(|row| {
            let calls = self.calls(cast, row).into_iter();
            calls.map(|(protocol, to)| (row.from.clone(), protocol, to))
        });
        let calls: BTreeSet<_> = calls.collect();
        thread::scope(|scope| {
            let asked = calls.into_iter().map(|call| {
                let netns = &cast.host(&call.0).netns;
                scope.spawn(move || {
                    let failure = ask(netns, call.1, call.2, SILENCE).err();
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
        let service = &row.service;
        let mut wrong = Vec::new();
        for (protocol, to) in self.calls(cast, row) {
            let what = format!(
                "{} → {} of {service} ({to} {protocol}) should be {}",
                row.from, row.to, row.expected
            );
            let outcome = planned.trace(cast, &row.from, protocol, (to.ip(), to.port()));
            let traced = traced::mismatch(&outcome, &row.expected, cast, &row.from);
            wrong.extend(traced.map(|found| format!("{what}; traced: {found}")));
            let real = really(cast, row, protocol, to, untouched).err();
            wrong.extend(real.map(|found| format!("{what}; in the kernel: {found}")));
        }
        wrong
    }
}

/// The address that a row's kind means, with its port: `ClusterIP`, `NodePort`, `LB`, `external`, each perhaps with
/// another port (`ClusterIP:81`) or another node address (`NodePort@10.9.0.1,fd00::9`); or addresses and a port.
fn destination(cast: &Cast, to: &str, number: u8, family: usize) -> SocketAddr {
    let addresses = addresses(number, family);
    let (to, node) = to
        .split_once('@')
        .map_or((to, None), |(to, node)| (to, Some(node)));
    let (kind, port) = match to.split_once(':') {
        Some((kind, port)) if !kind.is_empty() => (kind, port.parse().ok()),
        _ => (to, None),
    };
    let of_family = |list: &str| -> IpAddr {
        let parts: Vec<&str> = list.split(" or ").collect();
        parts[family]
            .parse()
            .unwrap_or_else(|_| panic!("{list}: two addresses"))
    };
    match kind {
        "ClusterIP" => SocketAddr::new(addresses.cluster, port.unwrap_or(PORT)),
        "LB" => SocketAddr::new(addresses.load_balancer, port.unwrap_or(PORT)),
        "external" => SocketAddr::new(addresses.external, port.unwrap_or(PORT)),
        "NodePort" => {
            let node = node.map_or_else(|| cast.address("node-1", family), of_family);
            SocketAddr::new(node, addresses.node_port)
        }
        _ => SocketAddr::new(of_family(node.expect("KIND or any@V4 or V6")), PORT),
    }
}

/// Makes the row's connections for real.
fn really(
    cast: &Cast,
    row: &Row,
    protocol: Protocol,
    to: SocketAddr,
    untouched: &Untouched,
) -> Result<(), String> {
    let from = &cast.host(&row.from).netns;
    let (servers, masqueraded) = match &row.expected {
        Expected::Answers {
            servers,
            masqueraded,
        } => (servers, *masqueraded),
        expected => {
            return match (ask(from, protocol, to, SILENCE), expected) {
                (Err(Failure::Refused), Expected::Refused)
                | (Err(Failure::TimedOut), Expected::Dropped) => Ok(()),
                // No rule makes a difference.
                (found, Expected::Unserved) => {
                    let before = &untouched[&(row.from.clone(), protocol, to)];
                    let now = found.err();
                    // The network's own word that nobody is there is lost now and then.
                    let nobody = |failure: Failure| match failure {
                        Failure::Other(ErrorKind::HostUnreachable) => Failure::TimedOut,
                        other => other,
                    };
                    let same = now.is_some() && now.map(nobody) == before.map(nobody);
                    same.then_some(())
                        .ok_or_else(|| format!("{now:?}, and {before:?} without rules"))
                }
                // A local UDP socket hears of both from the kernel itself, before any packet leaves.
                (Err(Failure::Other(ErrorKind::PermissionDenied)), _)
                    if row.from == "node-1" && protocol == Protocol::Udp =>
                {
                    Ok(())
                }
                (found, _) => Err(format!("{found:?}")),
            };
        }
    };
    let family = usize::from(to.is_ipv6());
    let mut seen = Vec::new();
    for question in 1..=*QUESTIONS.end() {
        let answer = ask(from, protocol, to, PATIENCE).map_err(|failure| failure.to_string())?;
        let hidden = masqueraded || answer.server == row.from;
        let source = answer.seen.ip();
        let as_expected = if hidden {
            cast.node_addresses.contains(&source)
        } else {
            source == cast.address(&row.from, family)
        };
        if !as_expected || !servers.contains(&answer.server) {
            return Err(format!("{answer:?}"));
        }
        seen.push(answer.server);
        if question >= *QUESTIONS.start() && servers.iter().all(|server| seen.contains(server)) {
            return Ok(());
        }
    }
    seen.sort();
    seen.dedup();
    Err(format!("only {} answered", seen.join(" ")))
}
