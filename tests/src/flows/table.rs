//! Reads a packet-flow table.
//!
//! ```text
//! | from → to                        | cluster | external-local |
//! | -------------------------------- | ------- | -------------- |
//! | pod, pod-2 → ClusterIP           | all     | all            |
//! | client → NodePort, LB, external  | all M   | local          |
//! ```
//!
//! The head names Services. A cell says who answers: names of the cast, `all` or `local` endpoints, with `M` if they see an
//! address of the node instead of the client's; or `refused`, `dropped`, `unserved` (no rule touches it), or `-` (not looked at).

use std::fmt;

/// What a cell says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// These answer, sorted, and no others.
    Answers {
        /// Their names.
        servers: Vec<String>,
        /// Whether they see the node's address.
        masqueraded: bool,
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
    /// What kind of address.
    pub to: String,
    /// The number of the Service's column.
    pub column: usize,
    /// What comes of it.
    pub expected: Expected,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers {
                servers,
                masqueraded,
            } => {
                let m = if *masqueraded { " M" } else { "" };
                write!(f, "{}{m}", servers.join(" "))
            }
            Self::Refused => f.write_str("refused"),
            Self::Dropped => f.write_str("dropped"),
            Self::Unserved => f.write_str("unserved"),
        }
    }
}

/// Reads the names of a table's columns, and its rows. `aliases` says what `all` and `local` mean in a column.
///
/// # Panics
/// If the text is no table.
pub fn parse(
    text: &str,
    aliases: impl Fn(&str) -> (Vec<String>, Vec<String>),
) -> (Vec<String>, Vec<Row>) {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let cells = |line: &str| -> Vec<String> {
        let inner = line
            .strip_prefix('|')
            .and_then(|line| line.strip_suffix('|'));
        let inner = inner.unwrap_or_else(|| panic!("a row begins and ends with |: {line}"));
        inner
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let services = cells(lines.next().expect("a table has a head")).split_off(1);
    let mut rows = Vec::new();
    for line in lines.filter(|line| !line.starts_with("| -")) {
        let cells = cells(line);
        assert_eq!(cells.len(), services.len() + 1, "{line}");
        let (from, to) = cells[0].split_once('→').expect("from → to");
        for from in from.split(',').map(str::trim) {
            for to in to.split(',').map(str::trim) {
                for (column, cell) in cells[1..]
                    .iter()
                    .enumerate()
                    .filter(|(_, cell)| *cell != "-")
                {
                    rows.push(Row {
                        from: from.to_owned(),
                        to: to.to_owned(),
                        column,
                        expected: expected(cell, aliases(&services[column])),
                    });
                }
            }
        }
    }
    (services, rows)
}

fn expected(cell: &str, (all, local): (Vec<String>, Vec<String>)) -> Expected {
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
    let mut servers = match names {
        "all" => all,
        "local" => local,
        names => names.split_whitespace().map(str::to_owned).collect(),
    };
    servers.sort();
    Expected::Answers {
        servers,
        masqueraded,
    }
}
