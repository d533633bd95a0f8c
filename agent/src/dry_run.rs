//! The dry run: API objects → the complete rule set as commented text, a summary, or what the BPF maps hold as JSON.
//!
//! Pure. Each Service's elements stand under its name; Services that have no rules on purpose are listed with
//! what DNS answers for them. What is wrong with objects is told beside, once. The same objects give the same bytes, in
//! whatever order they came.

mod explain;
mod summary;

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
use crate::model::translate::{Objects, strays};
use crate::model::{
    Complaint, Family, Frontend, ObjectName, Parsed, PerFamily, Scope, Service, Snapshot,
};
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
    /// How many documents and objects could not be read at all.
    pub unread: usize,
    /// The one Service that is asked for; nothing: all of them.
    pub only: Option<ObjectName>,
}

/// How the dry run is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// The rules as text for `nft -f`, and behind them, as comments, what the BPF maps of --backend ebpf hold.
    Text,
    /// Each Service's front ends and endpoints, without rules.
    Summary,
    /// What the BPF maps of --backend ebpf hold, as one document.
    Json,
}

/// What the dry run came to.
#[derive(Debug)]
pub struct DryRun {
    /// What to print.
    pub text: String,
    /// What is not served, and what probably was meant to be.
    pub notes: Vec<Note>,
    /// Why there is nothing to print.
    pub failure: Option<String>,
    /// Whether there was no Service at all, which is seldom what was meant.
    pub is_empty: bool,
}

/// Something of an object that is not served, or hardly as it was meant.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    kind: &'static str,
    name: ObjectName,
    complaint: Complaint,
    /// Whether something was refused; else it is only a hint.
    pub is_refusal: bool,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.complaint)
    }
}

/// All that is printed from.
struct View<'a> {
    objects: &'a Objects,
    snapshot: &'a Snapshot,
    settings: &'a Settings<'a>,
    tables: PerFamily<Tables>,
}

/// Plans everything and prints it.
pub fn dry_run(objects: &Objects, settings: &Settings<'_>) -> DryRun {
    let mut notes = Vec::new();
    let mut snapshot = Snapshot::default();
    let services = objects.parsed_services().into_iter();
    let services = services.map(|parsed| settings.plan.admit(parsed));
    snapshot.set_services(sift("Service", services.collect(), &mut notes));
    let slices = objects.parsed_slices(settings.node_name);
    snapshot.set_slices(sift("EndpointSlice", slices, &mut notes));
    let service_cidrs = objects.parsed_service_cidrs();
    snapshot.set_service_cidrs(sift("ServiceCIDR", service_cidrs, &mut notes));
    snapshot.set_node(objects.own_node(settings.node_name));
    snapshot.set_host_addresses(settings.host_addresses.clone());
    notes.extend(strays::strays(objects).into_iter().map(|stray| Note {
        kind: stray.kind,
        name: stray.name,
        complaint: stray.complaint,
        is_refusal: false,
    }));
    notes.sort();

    let view = View {
        objects,
        snapshot: &snapshot,
        settings,
        tables: PerFamily::from_fn(|family| {
            plan::tables(&snapshot, settings.plan, family, &Scope::All)
        }),
    };
    let wanted = settings.only.as_ref();
    let failure = wanted.and_then(|name| strays::missing_service(objects, name));
    DryRun {
        text: match settings.output {
            _ if failure.is_some() => String::new(),
            Output::Text => as_text(&view),
            Output::Summary => summary::summary(&view),
            Output::Json => as_json(&view),
        },
        notes,
        failure,
        is_empty: objects.services.is_empty(),
    }
}

impl View<'_> {
    /// The Services that have rules, of those that were asked for.
    fn services(&self) -> impl Iterator<Item = &Service> {
        let services = self.snapshot.services();
        services.filter(|service| self.is_wanted(&service.name))
    }

    /// Whether a Service was asked for.
    fn is_wanted(&self, service: &ObjectName) -> bool {
        let only = self.settings.only.as_ref();
        only.is_none_or(|only| only == service)
    }

    /// The front ends of a family that a Service claims, in order.
    fn frontends_of(&self, service: &Service, family: Family) -> BTreeSet<Frontend> {
        let rules = &self.tables.get(family).rules;
        let claimed = service.frontends().map(|claimed| claimed.frontend);
        claimed
            .filter(|frontend| rules.contains_key(frontend))
            .collect()
    }

    /// Whether a Service has a front end, which another one may claim too.
    fn has(&self, service: &Service, frontend: Frontend) -> bool {
        let owner = self.snapshot.claimants(frontend).next();
        owner.is_none_or(|owner| *owner == service.name)
    }
}

/// What the rules of a family hold.
struct Rules<'a> {
    family: Family,
    skeleton: &'a Skeleton,
    /// The part of all that is planned.
    by_rules: &'a Tables,
}

fn as_text(view: &View<'_>) -> String {
    let settings = view.settings;
    let mut text = String::new();
    for line in explain::heading(view) {
        comment(&mut text, &line);
    }
    for family in Family::ALL {
        let tables = view.tables.get(family);
        let (duty, by_rules) = match settings.backend {
            Backend::Nftables => (Duty::Balance, Cow::Borrowed(tables)),
            Backend::Ebpf => ebpf::rules_beside(tables),
        };
        let skeleton = Skeleton::with(duty, family, settings.skeleton);
        if settings.only.is_none() {
            text += "\n";
            text += &render::program(&skeleton, &diff(&Held::default(), &by_rules, &Scope::All));
            node_elements(&mut text, &skeleton, tables);
        }
        let rules = Rules {
            family,
            skeleton: &skeleton,
            by_rules: &by_rules,
        };
        for service in view.services() {
            service_elements(&mut text, view, &rules, service);
        }
        if settings.backend == Backend::Ebpf {
            text.push('\n');
            for line in maps(view, family).lines() {
                comment(&mut text, &line);
            }
        }
    }
    text
}

/// What the BPF maps hold, as JSON.
fn as_json(view: &View<'_>) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        node: &'a str,
        families: [Maps; 2],
    }
    let document = Document {
        node: view.settings.node_name,
        families: Family::ALL.map(|family| maps(view, family)),
    };
    let text = serde_json::to_string_pretty(&document);
    text.expect("all its keys are strings") + "\n"
}

/// What the BPF maps hold of a family, of the Services that were asked for.
fn maps(view: &View<'_>, family: Family) -> Maps {
    let mut tables = Cow::Borrowed(view.tables.get(family));
    if view.settings.only.is_some() {
        let of_service = |service| view.frontends_of(service, family);
        let frontends = view.services().flat_map(of_service).collect();
        tables = Cow::Owned(tables.part(&frontends));
    }
    let mut held = Held::default();
    held.apply(&diff(&held, &tables, &Scope::All));
    Maps::of(family, &held, view.settings.table_size)
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
                    is_refusal: true,
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
        Member::ClusterIp(_)
        | Member::OuterAddress(_)
        | Member::Guarded(_)
        | Member::AllowedSource(..) => false,
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
fn service_elements(text: &mut String, view: &View<'_>, rules: &Rules<'_>, service: &Service) {
    let claimed = view.frontends_of(service, rules.family);
    if claimed.is_empty() {
        return;
    }
    text.push('\n');
    comment(text, &format!("{}, {}", service.name, service.kind));
    for frontend in &claimed {
        let line = explain::front_end(view, service, *frontend);
        comment(text, &format!("  {line}"));
    }
    let has = claimed
        .into_iter()
        .filter(|f| view.has(service, *f))
        .collect();
    let delta = diff(&Held::default(), &rules.by_rules.part(&has), &Scope::All);
    text.push_str(&render::add_elements(rules.skeleton, &delta));
}

/// Writes one line of comment.
fn comment(text: &mut String, line: &str) {
    text.push_str(if line.is_empty() { "#" } else { "# " });
    push_line(text, line);
}

/// Writes one line. Names and texts come from the input: what would end the line must not, for what follows a comment
/// would be a command.
fn push_line(text: &mut String, line: &str) {
    let harmless = line.chars().map(|c| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    });
    text.extend(harmless);
    text.push('\n');
}

#[cfg(test)]
mod tests;
