//! The dry run: API objects → the complete rule set as commented text.
//!
//! Pure. Each Service's elements stand under its name; Services that have no rules on purpose are listed with
//! what DNS answers for them. The same objects give the same bytes, in whatever order they came.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::dataplane::nft::{Skeleton, SkeletonConfig, render};
use crate::diff::{Held, diff};
use crate::model::translate::Objects;
use crate::model::translate::dns::{Unserved, Why, unserved};
use crate::model::{
    Complaint, Family, Fault, Frontend, ObjectName, Parsed, Scope, Service, Snapshot, Touched,
};
use crate::plan::{self, PlanConfig, Rule, Tables};

/// The settings and facts that the rules depend on beside the objects.
#[derive(Debug)]
pub struct Settings<'a> {
    /// This node's name.
    pub node_name: &'a str,
    /// Settings of the plan.
    pub plan: &'a PlanConfig,
    /// Settings of the skeleton.
    pub skeleton: &'a SkeletonConfig,
    /// The addresses of this machine.
    pub host_addresses: BTreeSet<IpAddr>,
}

/// What the dry run came to.
#[derive(Debug)]
pub struct DryRun {
    /// The text, for `nft -f`.
    pub text: String,
    /// What is not served.
    pub notes: Vec<Note>,
}

/// Something of an object that is not served.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    kind: &'static str,
    name: ObjectName,
    complaint: Complaint,
}

impl Note {
    /// Whether the input is at fault.
    pub fn is_invalid(&self) -> bool {
        self.complaint.fault == Fault::Invalid
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.complaint)
    }
}

/// Plans everything and prints it.
pub fn dry_run(objects: &Objects, settings: Settings<'_>) -> DryRun {
    let mut notes = Vec::new();
    let mut snapshot = Snapshot::default();
    snapshot.set_services(sift("Service", objects.parsed_services(), &mut notes));
    let slices = objects.parsed_slices(settings.node_name);
    snapshot.set_slices(sift("EndpointSlice", slices, &mut notes));
    snapshot.set_node(objects.own_node(settings.node_name));
    snapshot.set_host_addresses(settings.host_addresses);
    notes.sort();

    let mut text = heading(objects, &snapshot, settings.node_name);
    for note in &notes {
        comment(&mut text, format_args!("Not served: {note}"));
    }
    for family in Family::ALL {
        let skeleton = Skeleton::new(family, settings.skeleton);
        let tables = plan::tables(&snapshot, settings.plan, family, &Scope::All);
        text += "\n";
        text += &render::program(&skeleton, &diff(&Held::default(), &tables, &Scope::All));
        node_elements(&mut text, &skeleton, &tables);
        for service in snapshot.services() {
            service_elements(&mut text, &skeleton, &snapshot, &tables, service);
        }
    }
    DryRun { text, notes }
}

fn sift<T>(kind: &'static str, list: Vec<Parsed<T>>, notes: &mut Vec<Note>) -> Vec<T> {
    list.into_iter()
        .filter_map(
            |Parsed {
                 name,
                 object,
                 complaints,
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

/// What this is, and the Services that have no rules.
fn heading(objects: &Objects, snapshot: &Snapshot, node_name: &str) -> String {
    let services = objects.services.iter();
    let mut without: Vec<_> = services
        .filter_map(|s| unserved(s, &objects.slices))
        .collect();
    without.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    comment(
        &mut text,
        format_args!(
            "The rules of node {node_name}, as proxyd would load them. To load them: nft -f FILE"
        ),
    );
    let (with, without_count) = (snapshot.service_count(), without.len());
    comment(
        &mut text,
        format_args!("{with} Services have rules, {without_count} have none on purpose."),
    );
    if !without.is_empty() {
        text.push_str("#\n# Services without rules:\n");
    }
    for unserved in &without {
        for line in explanation(unserved) {
            comment(&mut text, format_args!("{line}"));
        }
    }
    text
}

/// Why a Service has no rules, and what DNS answers for it.
fn explanation(Unserved { name, why }: &Unserved) -> Vec<String> {
    match why {
        Why::ExternalName(target) => vec![format!(
            "{name}: ExternalName; DNS answers with a CNAME to {target}"
        )],
        Why::NoAddressYet => vec![format!("{name}: no ClusterIP is allocated yet")],
        Why::OtherProxy(proxy) => vec![format!(
            "{name}: left to the service proxy {proxy:?} by its label"
        )],
        Why::Headless(records) => {
            let domain = format!("{}.{}.svc", name.name(), name.namespace());
            let headless = format!(
                "{name}: headless; clients ask DNS for {domain} and connect to an endpoint directly"
            );
            let records = records.iter().map(|record| match &record.hostname {
                Some(host) => format!("    {host}.{domain}  {}", record.address),
                None => format!("    {domain}  {}", record.address),
            });
            std::iter::once(headless).chain(records).collect()
        }
    }
}

/// The elements that belong to the node and no Service.
fn node_elements(text: &mut String, skeleton: &Skeleton, tables: &Tables) {
    let of_node = Touched {
        frontends: BTreeSet::new(),
        endpoints_here: tables.hairpin.clone(),
        node: true,
    };
    let delta = diff(&Held::default(), tables, &Scope::Touched(of_node));
    if !delta.is_empty() {
        text.push_str("\n# This node's addresses, and the endpoints that run here\n");
        text.push_str(&render::add_elements(skeleton, &delta));
    }
}

/// The elements of one Service, under its name.
fn service_elements(
    text: &mut String,
    skeleton: &Skeleton,
    snapshot: &Snapshot,
    tables: &Tables,
    service: &Service,
) {
    let claimed: BTreeSet<Frontend> = service
        .frontends()
        .map(|(frontend, _)| frontend)
        .filter(|frontend| tables.rules.contains_key(frontend))
        .collect();
    if claimed.is_empty() {
        return;
    }
    text.push('\n');
    comment(text, format_args!("{}, {}", service.name, service.kind));
    let mut has = BTreeSet::new();
    for frontend in claimed {
        match snapshot.claimants(frontend).next() {
            Some(owner) if *owner != service.name => {
                comment(
                    text,
                    format_args!("  {frontend}: not here, {owner} is older and has it"),
                );
            }
            _ => {
                let endpoints = match &tables.rules[&frontend] {
                    Rule::Reject => "no endpoint can serve it; refused".to_owned(),
                    Rule::Balance { backends, .. } if backends.len() == 1 => {
                        "1 endpoint".to_owned()
                    }
                    Rule::Balance { backends, .. } => format!("{} endpoints", backends.len()),
                };
                comment(text, format_args!("  {frontend}: {endpoints}"));
                has.insert(frontend);
            }
        }
    }
    let of_service = Touched {
        frontends: has,
        ..Touched::default()
    };
    let delta = diff(&Held::default(), tables, &Scope::Touched(of_service));
    text.push_str(&render::add_elements(skeleton, &delta));
}

/// Writes one line of comment. Names and texts come from the input: what would end the line must not, for what
/// follows would be a command.
fn comment(text: &mut String, line: fmt::Arguments<'_>) {
    let line = line.to_string();
    let harmless = line.chars().map(|c| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    });
    text.push_str("# ");
    text.extend(harmless);
    text.push('\n');
}

#[cfg(test)]
mod tests;
