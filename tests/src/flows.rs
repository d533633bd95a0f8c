//! Packet-flow tables: the specification of what happens to a connection, as text that people read.
//!
//! Every row runs four times: a tracer walks the packet through the tables that the agent plans, and real connections
//! go, between network namespaces, through the rules that it programs, through its BPF programs at devices, and through those where
//! sockets connect. The address that the server saw proves masquerade or its absence. [`table`] says how a table is read, and
//! [`Via`] what is shown differently.

pub mod call;
pub mod cast;
mod real;
pub mod service;
pub mod table;
pub mod traced;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::sockets::Sockets;
use crate::traffic::Protocol;
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
        self.again(|_, _| {}, args)
    }

    /// Ends the agent and starts another one with these Services.
    #[must_use]
    pub fn restart_with(self, services: &[Svc], args: &[&str]) -> Self {
        self.again(
            |manifests, cast| world::write(manifests, &service::objects(services, cast)),
            args,
        )
    }

    /// Ends the agent, does something, and starts another one with the same objects.
    #[must_use]
    pub fn restart_after(self, between: impl FnOnce(&Cast), args: &[&str]) -> Self {
        self.again(|_, cast| between(cast), args)
    }

    /// Ends the agent, takes its programs away and starts another one with the same objects.
    #[must_use]
    fn restart_without(self, sockets: Sockets, args: &[&str]) -> Self {
        self.again(|_, _| drop(sockets), args)
    }

    /// Ends the agent and starts another one; in between something else is done.
    fn again(self, between: impl FnOnce(&TempDir, &Cast), args: &[&str]) -> Self {
        let Self {
            cast,
            agent,
            manifests,
        } = self;
        agent.terminate();
        between(&manifests, &cast);
        Self {
            agent: world::start_agent(&cast.cluster.node1.host, &manifests, args),
            cast,
            manifests,
        }
    }
}

/// What connections go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The rules of `--backend nftables`.
    Rules,
    /// The programs of `--backend ebpf` at devices, which see no client's socket. Those of node-1 itself are not served so.
    Devices,
    /// The same, with `--fast-path`.
    FastPath,
    /// All programs of `--backend ebpf`. The same endpoints are reached; but a client on
    /// node-1 whose socket was balanced keeps its own address, also where rules would have to masquerade: its
    /// packets carry the endpoint's address from the start, so replies find their way back. And NodePorts are at
    /// 127.0.0.1 for node-1 itself, since nothing has to be routed there.
    Programs,
}

/// What rows are held against.
#[derive(Clone, Copy)]
struct Before<'a> {
    cast: &'a Cast,
    via: Via,
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
    /// Whether SCTP is there beside programs too, for which rules balance.
    pub sctp_beside: bool,
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
        let mut stage = Stage::new(cast, &objects, self.args);
        let mut wrong = self.wrong(&stage.cast, Via::Rules, &planned, &untouched);
        if !self.sctp_beside {
            service::remove_sctp(&mut objects);
            stage.write_objects(&objects);
        }
        // Rules would stay for what they translated.
        stage.cast.cluster.node1.host.netns.forget_connections();
        let nobodys = Sockets::of(&[]);
        stage = stage.restart(&[self.args, &nobodys.args()].concat());
        wrong.extend(self.wrong(&stage.cast, Via::Devices, &planned, &untouched));
        let fast = ["--fast-path"];
        stage = stage.restart(&[self.args, &nobodys.args(), &fast].concat());
        wrong.extend(self.wrong(&stage.cast, Via::FastPath, &planned, &untouched));
        let sockets = Sockets::of(&stage.cast.namespaces_here());
        // Programs are detached one after the other, a moment later: two sets of them must not do a part each.
        stage = stage.restart_without(nobodys, &[self.args, &sockets.args()].concat());
        wrong.extend(self.wrong(&stage.cast, Via::Programs, &planned, &untouched));
        assert!(
            wrong.is_empty(),
            "{} connections of {} rows are not as the table says, with {:?}:\n{}",
            wrong.len(),
            self.rows.len(),
            self.args,
            wrong.join("\n")
        );
    }

    /// What is not as the table says.
    fn wrong(
        &self,
        cast: &Cast,
        via: Via,
        planned: &Planned,
        untouched: &Untouched,
    ) -> Vec<String> {
        let before = Before {
            cast,
            via,
            planned,
            untouched,
        };
        thread::scope(|scope| {
            let check = |row| scope.spawn(move || self.check_row(before, row));
            let rows: Vec<_> = self.rows.iter().map(check).collect();
            let rows = rows.into_iter();
            rows.flat_map(|row| row.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    }

    /// Whether the client's socket is balanced. What asks for the source of a packet, which a socket that connects does not have
    /// yet, is left to the programs at devices, but for the node's own.
    fn is_balanced(&self, row: &Row, call: &Call) -> bool {
        let spec = &self.service(row).spec;
        let everybody = ["0.0.0.0/0", "::/0"][call.family()];
        let ranges = spec["loadBalancerSourceRanges"].as_array();
        let is_limit = |ranges: &Vec<Value>| ranges.iter().all(|range| range != everybody);
        let is_guarded =
            row.to == "LB" && ranges.is_some_and(|ranges| !ranges.is_empty() && is_limit(ranges));
        let asks_for_pods =
            spec["externalTrafficPolicy"] == "Local" && !row.to.starts_with("ClusterIP");
        let asks_for_source = is_guarded || asks_for_pods;
        call.protocol != Protocol::Sctp
            && Cast::is_here(&row.from)
            && (row.from == "node-1" || !asks_for_source)
    }

    /// Whether a call is of a protocol that is not there beside programs.
    fn is_absent(&self, call: &Call) -> bool {
        call.protocol == Protocol::Sctp && !self.sctp_beside
    }

    /// What is asked, and what comes of it, by the programs.
    fn by_programs(&self, row: &Row, call: &Call) -> (Call, Expected) {
        let mut call = call.clone();
        let mut expected = row.expected.clone();
        let (all, _) = self.service(row).names();
        let at_loopback = call.to.ip() == IpAddr::from(Ipv4Addr::LOCALHOST);
        if at_loopback && !all.is_empty() && self.is_balanced(row, &call) {
            let mut servers: Vec<String> = all.into_iter().map(str::to_owned).collect();
            servers.sort();
            expected = Expected::Answers {
                servers,
                masqueraded: false,
                one: false,
            };
        }
        // A UDP server that listens at every address answers a client of its own host from the one that the client has,
        // not from the one that it called. Connection tracking does not mind; a socket does, as without any Service.
        if let Expected::Answers { servers, .. } = &expected
            && call.protocol == Protocol::Udp
            && servers.contains(&call.from)
        {
            call.bound = None;
        }
        (call, expected)
    }

    fn service(&self, row: &Row) -> &Svc {
        let mut services = self.services.iter();
        let found = services.find(|service| service.name == row.service);
        found.expect("rows are made of the scene's Services")
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
            via,
            planned,
            untouched,
        } = before;
        let mut wrong = Vec::new();
        for call in self.calls(cast, row) {
            let is_left = match via {
                Via::Rules => false,
                Via::Devices | Via::FastPath => row.from == "node-1" || self.is_absent(&call),
                Via::Programs => self.is_absent(&call),
            };
            if is_left {
                continue;
            }
            let what = format!(
                "{} → {} of {} ({} {}) should be {}",
                row.from, row.to, row.service, call.to, call.protocol, row.expected
            );
            if via == Via::Rules {
                let outcome = planned.trace(cast, &call);
                let traced = traced::mismatch(&outcome, &row.expected, cast, &call);
                wrong.extend(traced.map(|found| format!("{what}; traced: {found}")));
            }
            let keeps_source = via == Via::Programs && self.is_balanced(row, &call);
            let (call, expected) = match via {
                Via::Rules | Via::Devices | Via::FastPath => (call, row.expected.clone()),
                Via::Programs => self.by_programs(row, &call),
            };
            let real = real::check(cast, &call, (&expected, keeps_source), untouched).err();
            wrong.extend(real.map(|found| format!("{what}; by {via:?}: {found}")));
        }
        wrong
    }
}
