//! Reads a packet-flow table.
//!
//! ```text
//! | from → to                        | cluster | external-local |
//! | -------------------------------- | ------- | -------------- |
//! | pod, pod-2 → ClusterIP           | all     | all            |
//! | client → NodePort, LB, external  | all M   | local          |
//! ```
//!
//! The head names Services (or, in [`down`], calls). A cell says who answers: names of the cast, `all` or `local` endpoints, with `M` if
//! they see the node's address instead of the client's; `one of` them if each client keeps the one that it got; or `refused`,
//! `dropped`, `unserved` (no rule touches it), or `-` (not looked at).
//!
//! A call is made over TCP, UDP and SCTP; `LB/UDP` names one. `here:9090` is a server at another port than usual. `node-1` calls from a
//! second address of its own, which is not the one that masquerade takes; `node-1 as LB` from the Service's load-balancer address.

use std::fmt;

use serde_json::Value;

use super::service::Svc;
use crate::traffic::Protocol;

/// What a cell says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// These answer, sorted, and no others.
    Answers {
        /// Their names.
        servers: Vec<String>,
        /// Whether they see the node's address.
        masqueraded: bool,
        /// Whether a client that comes again gets the same one.
        one: bool,
    },
    /// The client hears at once that nobody will answer.
    Refused,
    /// The client hears nothing.
    Dropped,
    /// No rule has to do with it.
    Unserved,
}

/// One connection of a table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who calls.
    pub from: String,
    /// Whether it does so from the Service's load-balancer address.
    pub from_load_balancer: bool,
    /// What kind of address.
    pub to: String,
    /// In which protocols.
    pub protocols: Vec<Protocol>,
    /// The name of the Service.
    pub service: String,
    /// What comes of it.
    pub expected: Expected,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers {
                servers,
                masqueraded,
                one,
            } => {
                let one = if *one { "one of " } else { "" };
                let m = if *masqueraded { " M" } else { "" };
                write!(f, "{one}{}{m}", servers.join(" "))
            }
            Self::Refused => f.write_str("refused"),
            Self::Dropped => f.write_str("dropped"),
            Self::Unserved => f.write_str("unserved"),
        }
    }
}

/// Reads a table whose columns are Services.
///
/// # Panics
/// If the text is no table, or names a Service that is not there.
pub fn across(text: &str, services: &[Svc]) -> Vec<Row> {
    let (head, lines) = read(text);
    let column = |name: &String| {
        let found = services.iter().find(|service| service.name == *name);
        found.unwrap_or_else(|| panic!("there is no Service {name}"))
    };
    let columns: Vec<&Svc> = head[1..].iter().map(column).collect();
    let rows = lines.iter().flat_map(|cells| {
        let looked_at = cells[1..].iter().zip(&columns);
        looked_at.flat_map(|(cell, service)| rows(&cells[0], service, cell))
    });
    rows.collect()
}

/// Reads a table whose lines are Services, each by its endpoints. All have these fields in their `spec`, and the head of a
/// column says who calls.
///
/// ```text
/// | endpoints        | pod → ClusterIP |
/// | ---------------- | --------------- |
/// | here there(gone) | here            |
/// ```
///
/// # Panics
/// If the text is no table.
pub fn down(text: &str, spec: &Value) -> (Vec<Svc>, Vec<Row>) {
    let (head, lines) = read(text);
    let mut services = Vec::new();
    let mut all = Vec::new();
    for (number, cells) in (1..).zip(&lines) {
        let service = Svc::new(&format!("line-{number}"), spec.clone(), &cells[0]);
        let columns = head[1..].iter().zip(&cells[1..]);
        all.extend(columns.flat_map(|(calls, cell)| rows(calls, &service, cell)));
        services.push(service);
    }
    (services, all)
}

/// The cells of a table: those of its head, and those of its lines.
fn read(text: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let cells = |line: &str| -> Vec<String> {
        let inner = line
            .strip_prefix("| ")
            .and_then(|line| line.strip_suffix(" |"));
        let inner = inner.unwrap_or_else(|| panic!("a line begins and ends with |: {line}"));
        inner
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let lines = text.lines().map(str::trim);
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with("| -"));
    let head = cells(lines.next().expect("a table has a head"));
    let lines: Vec<_> = lines.map(cells).collect();
    for line in &lines {
        assert_eq!(line.len(), head.len(), "{line:?}");
    }
    (head, lines)
}

/// The rows of one cell: `pod, client → LB, external` are four.
fn rows(calls: &str, service: &Svc, cell: &str) -> Vec<Row> {
    if cell == "-" {
        return Vec::new();
    }
    let (from, to) = calls.split_once('→').expect("from → to");
    let to = || to.split(',').map(|kind| kind.trim().to_owned());
    let from = from.split(',').map(|from| from.trim().to_owned());
    let pairs = from.flat_map(|from| to().map(move |to| (from.clone(), to)));
    let row = |(from, to): (String, String)| {
        let member = from.strip_suffix(" as LB");
        let (kind, protocols) = protocols(&to);
        Row {
            from: member.unwrap_or(&from).to_owned(),
            from_load_balancer: member.is_some(),
            to: kind.to_owned(),
            protocols,
            service: service.name.clone(),
            expected: expected(cell, service),
        }
    };
    pairs.map(row).collect()
}

/// What kind of address is called, and how.
fn protocols(to: &str) -> (&str, Vec<Protocol>) {
    let named = |protocol: &Protocol| to.strip_suffix(&format!("/{protocol}"));
    let mut all = Protocol::ALL.into_iter();
    let found = all.find_map(|protocol| Some((named(&protocol)?, vec![protocol])));
    found.unwrap_or((to, Protocol::ALL.into()))
}

fn expected(cell: &str, service: &Svc) -> Expected {
    match cell {
        "refused" => return Expected::Refused,
        "dropped" => return Expected::Dropped,
        "unserved" => return Expected::Unserved,
        _ => {}
    }
    let (names, masqueraded) = match cell.strip_suffix(" M") {
        Some(names) => (names, true),
        None => (cell, false),
    };
    let (names, one) = match names.strip_prefix("one of ") {
        Some(names) => (names, true),
        None => (names, false),
    };
    let (all, local) = service.names();
    let mut servers: Vec<String> = match names {
        "all" => all.into_iter().map(str::to_owned).collect(),
        "local" => local.into_iter().map(str::to_owned).collect(),
        names => names.split_whitespace().map(str::to_owned).collect(),
    };
    servers.sort();
    Expected::Answers {
        servers,
        masqueraded,
        one,
    }
}
