//! The dry run: API objects → the complete rule set as commented text, or what the BPF maps hold as JSON.
//!
//! Pure. Each Service's elements stand under its name; Services that have no rules on purpose are listed with
//! what DNS answers for them. The same objects give the same bytes, in whatever order they came.

mod explain;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::dataplane::Backend;
use crate::dataplane::ebpf::maglev::TableSize;
use crate::dataplane::ebpf::{self, render::Maps};
use crate::dataplane::nft::{Duty, Skeleton, SkeletonConfig, render};
use crate::diff::{Held, diff};
use crate::model::translate::Objects;
use crate::model::{Complaint, Family, Frontend, ObjectName, Parsed, Scope, Service, Snapshot};
use crate::plan::{self, Member, PlanConfig, Tables};

/// The settings and facts that the rules depend on beside the objects.
#[derive(Debug)]
pub struct Settings<'a> {
    /// This node's name.
    pub node_name: &'a str,
    /// Settings of the plan.
    pub plan: &'a PlanConfig,
    /// Settings of the skeleton.
    pub skeleton: &'a SkeletonConfig,
    /// What balances.
    pub backend: Backend,
    /// How many slots tables of consistent hashing have.
    pub table_size: TableSize,
    /// What to print. JSON is of the BPF maps alone, whatever balances.
    pub output: Output,
    /// The addresses of this machine.
    pub host_addresses: BTreeSet<IpAddr>,
    /// What could not be read, for readers of the text.
    pub unread: Vec<String>,
}

/// How the dry run is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// The rules as text for `nft -f`, and behind them, as comments, what the BPF maps of --backend ebpf hold.
    Text,
    /// What the BPF maps of --backend ebpf hold, as one document.
    Json,
}

/// What the dry run came to.
#[derive(Debug)]
pub struct DryRun {
    /// What to print.
    pub text: String,
    /// What is not served.
    pub notes: Vec<Note>,
    /// Whether there was no Service at all, which is seldom what was meant.
    pub is_empty: bool,
}

/// Something of an object that is not served.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    kind: &'static str,
    name: ObjectName,
    complaint: Complaint,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.complaint)
    }
}

/// Plans everything and prints it.
pub fn dry_run(objects: &Objects, settings: &Settings<'_>) -> DryRun {
    let mut notes = Vec::new();
    let mut snapshot = Snapshot::default();
    snapshot.set_services(sift("Service", objects.parsed_services(), &mut notes));
    let slices = objects.parsed_slices(settings.node_name);
    snapshot.set_slices(sift("EndpointSlice", slices, &mut notes));
    let service_cidrs = objects.parsed_service_cidrs();
    snapshot.set_service_cidrs(sift("ServiceCIDR", service_cidrs, &mut notes));
    snapshot.set_node(objects.own_node(settings.node_name));
    snapshot.set_host_addresses(settings.host_addresses.clone());
    notes.sort();

    DryRun {
        text: match settings.output {
            Output::Text => as_text(objects, &snapshot, settings, &notes),
            Output::Json => as_json(&snapshot, settings),
        },
        notes,
        is_empty: objects.services.is_empty(),
    }
}

fn as_text(
    objects: &Objects,
    snapshot: &Snapshot,
    settings: &Settings<'_>,
    notes: &[Note],
) -> String {
    let mut text = String::new();
    for line in explain::heading(objects, snapshot, settings) {
        comment(&mut text, &line);
    }
    for unread in &settings.unread {
        comment(&mut text, &format!("Note: {unread}"));
    }
    for note in notes {
        comment(&mut text, &format!("Note: {note}"));
    }
    for family in Family::ALL {
        let tables = plan::tables(snapshot, settings.plan, family, &Scope::All);
        let (duty, by_rules) = match settings.backend {
            Backend::Nftables => (Duty::Balance, Cow::Borrowed(&tables)),
            Backend::Ebpf => ebpf::rules_beside(&tables),
        };
        let skeleton = Skeleton::with(duty, family, settings.skeleton);
        text += "\n";
        text += &render::program(&skeleton, &diff(&Held::default(), &by_rules, &Scope::All));
        node_elements(&mut text, &skeleton, &tables);
        for service in snapshot.services() {
            service_elements(
                &mut text,
                &skeleton,
                snapshot,
                [&tables, &by_rules],
                service,
            );
        }
        if settings.backend == Backend::Ebpf {
            text.push('\n');
            for line in maps(family, &tables, settings).lines() {
                comment(&mut text, &line);
            }
        }
    }
    text
}

/// What the BPF maps hold, as JSON.
fn as_json(snapshot: &Snapshot, settings: &Settings<'_>) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        node: &'a str,
        families: [Maps; 2],
    }
    let document = Document {
        node: settings.node_name,
        families: Family::ALL.map(|family| {
            let tables = plan::tables(snapshot, settings.plan, family, &Scope::All);
            maps(family, &tables, settings)
        }),
    };
    let text = serde_json::to_string_pretty(&document);
    text.expect("all its keys are strings") + "\n"
}

/// What the BPF maps hold beside these tables.
fn maps(family: Family, tables: &Tables, settings: &Settings<'_>) -> Maps {
    let mut held = Held::default();
    held.apply(&diff(&held, tables, &Scope::All));
    Maps::of(family, &held, settings.table_size)
}

fn sift<T>(kind: &'static str, list: Vec<Parsed<T>>, notes: &mut Vec<Note>) -> Vec<T> {
    list.into_iter()
        .filter_map(
            |Parsed {
                 name,
                 object,
                 complaints,
                 trigger: _,
             }| {
                let complaints = complaints.into_iter();
                notes.extend(complaints.map(|complaint| Note {
                    kind,
                    name: name.clone(),
                    complaint,
                }));
                object
            },
        )
        .collect()
}

/// The elements that belong to the node or the cluster and no Service.
fn node_elements(text: &mut String, skeleton: &Skeleton, tables: &Tables) {
    let is_of_node = |member: &&Member| match member {
        Member::Hairpin(_)
        | Member::NodePortAddress(_)
        | Member::ServiceNetwork(_)
        | Member::PodNetwork(_) => true,
        Member::ClusterIp(_) | Member::Guarded(_) | Member::AllowedSource(..) => false,
    };
    let of_node = Tables {
        members: tables.members.iter().filter(is_of_node).copied().collect(),
        ..Tables::default()
    };
    let delta = diff(&Held::default(), &of_node, &Scope::All);
    if !delta.is_empty() {
        text.push_str("\n# This node's addresses, and the endpoints that may run here\n");
        text.push_str(&render::add_elements(skeleton, &delta));
    }
}

/// The elements of one Service, under its name: of all that is planned, those that rules hold.
fn service_elements(
    text: &mut String,
    skeleton: &Skeleton,
    snapshot: &Snapshot,
    [tables, by_rules]: [&Tables; 2],
    service: &Service,
) {
    let claimed: BTreeSet<Frontend> = service
        .frontends()
        .map(|claimed| claimed.frontend)
        .filter(|frontend| tables.rules.contains_key(frontend))
        .collect();
    if claimed.is_empty() {
        return;
    }
    text.push('\n');
    comment(text, &format!("{}, {}", service.name, service.kind));
    let mut has = BTreeSet::new();
    for frontend in claimed {
        let outcome = match snapshot.claimants(frontend).next() {
            Some(owner) if *owner != service.name => {
                format!("not here, {owner} was first and has it")
            }
            _ => {
                has.insert(frontend);
                explain::outcome(snapshot, tables, frontend)
            }
        };
        comment(text, &format!("  {frontend}: {outcome}"));
    }
    let delta = diff(&Held::default(), &by_rules.part(&has), &Scope::All);
    text.push_str(&render::add_elements(skeleton, &delta));
}

/// Writes one line of comment. Names and texts come from the input: what would end the line must not, for what
/// follows would be a command.
fn comment(text: &mut String, line: &str) {
    let harmless = line.chars().map(|c| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    });
    text.push_str(if line.is_empty() { "#" } else { "# " });
    text.extend(harmless);
    text.push('\n');
}

#[cfg(test)]
mod tests;
