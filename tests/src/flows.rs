//! Packet-flow tables: the specification of what happens to a connection, as text that people read.
//!
//! Every row runs twice: a tracer walks the packet through the tables that the agent plans, and real
//! connections go through the rules that it programs, between network namespaces, where the address that the server saw
//! proves masquerade or its absence. [`table`] says how a table is read.

pub mod cast;
pub mod service;
pub mod table;
pub mod traced;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::traffic::{Failure, Protocol, ask};
use crate::world::{self, PATIENCE};
use cast::Cast;
use service::{PORT, Svc, addresses};
use table::{Expected, Row};
use traced::Planned;

/// The longest that a client waits for an answer that should not come.
const SILENCE: Duration = Duration::from_millis(500);

/// The fewest questions for a row that is answered, and the most, should one of the servers not turn up.
const QUESTIONS: std::ops::RangeInclusive<usize> = 6..=80;

/// The agent's settings, the Services of a table, and the table.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The agent's arguments.
    pub args: &'a [&'a str],
    /// The Services; their order gives their numbers and ages.
    pub services: &'a [Svc],
    /// Objects beside them.
    pub others: &'a [Value],
    /// The table.
    pub table: &'a str,
}

impl Scene<'_> {
    /// Checks every row, in both families, TCP and UDP.
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
    pub fn check_with(&self, prepare: impl FnOnce(&Cast)) {
        let cast = Cast::new();
        prepare(&cast);
        let objects = self.objects(&cast);
        let planned = Planned::new(&cast, &objects, self.args);
        let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let (columns, rows) = table::parse(self.table, |service| {
            let (all, local) = self.service(service).1.names();
            (names(all), names(local))
        });
        let manifests = TempDir::new().expect("the directory for temporary files can be written");
        world::write(&manifests, &objects);
        let agent = world::start_agent(&cast.cluster.node1.host, &manifests, self.args);
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let check = |row: &Row| self.check_row(&cast, &planned, &columns[row.column], row);
            let rows = rows.iter().map(|row| scope.spawn(move || check(row)));
            let rows: Vec<_> = rows.collect();
            let results = rows.into_iter();
            results
                .flat_map(|row| {
                    row.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        drop(agent);
        assert!(
            wrong.is_empty(),
            "{} of {} rows × 4 are not as the table says, with {:?}:\n{}",
            wrong.len(),
            rows.len(),
            self.args,
            wrong.join("\n")
        );
    }

    /// The objects that the agent reads.
    pub fn objects(&self, cast: &Cast) -> Vec<Value> {
        let services = (1..).zip(self.services);
        let services = services.flat_map(|(number, service)| service.objects(number, cast));
        services.chain(self.others.iter().cloned()).collect()
    }

    /// A Service, and its number.
    fn service(&self, name: &str) -> (u8, &Svc) {
        let mut numbered = (1..).zip(self.services);
        let found = numbered.find(|(_, service)| service.name == name);
        found.unwrap_or_else(|| panic!("the scene has no Service {name}"))
    }

    /// Checks a row in each family and protocol; returns what is wrong.
    fn check_row(&self, cast: &Cast, planned: &Planned, service: &str, row: &Row) -> Vec<String> {
        let (number, _) = self.service(service);
        let mut wrong = Vec::new();
        for family in [0, 1] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let to = destination(cast, &row.to, number, family);
                let what = format!(
                    "{} → {} of {service} ({to} {protocol}) should be {}",
                    row.from, row.to, row.expected
                );
                let outcome = planned.trace(cast, &row.from, protocol, (to.ip(), to.port()));
                let traced = traced::mismatch(&outcome, &row.expected, cast, &row.from);
                wrong.extend(traced.map(|found| format!("{what}; traced: {found}")));
                let real = really(cast, row, protocol, to);
                wrong.extend(
                    real.err()
                        .map(|found| format!("{what}; in the kernel: {found}")),
                );
            }
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
fn really(cast: &Cast, row: &Row, protocol: Protocol, to: SocketAddr) -> Result<(), String> {
    let from = &cast.host(&row.from).netns;
    let (servers, masqueraded) = match &row.expected {
        Expected::Answers {
            servers,
            masqueraded,
        } => (servers, *masqueraded),
        expected => {
            return match (ask(from, protocol, to, SILENCE), expected) {
                (Err(Failure::Refused), Expected::Refused)
                | (Err(Failure::TimedOut), Expected::Dropped)
                | (Err(_), Expected::Unserved) => Ok(()),
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
        let source = if hidden { "node-1" } else { &row.from };
        if answer.seen.ip() != cast.address(source, family) || !servers.contains(&answer.server) {
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
