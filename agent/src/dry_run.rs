//! The dry run: API objects → the complete rule set as commented text.
//!
//! Pure. Each Service's elements stand under its name; Services that have no rules on purpose are listed with
//! what DNS answers for them. The same objects give the same bytes, in whatever order they came.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
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
        put(&mut text, format_args!("# Not served: {note}\n"));
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
    let mut text = format!(
        "# The rules of node {node_name}, as proxyd would load them. To load them: nft -f FILE\n\
         # {} Services have rules, {} have none on purpose.\n",
        snapshot.service_count(),
        without.len(),
    );
    if !without.is_empty() {
        text += "#\n# Services without rules:\n";
    }
    for Unserved { name, why } in &without {
        match why {
            Why::ExternalName(target) => {
                put(
                    &mut text,
                    format_args!("# {name}: ExternalName; DNS answers with a CNAME to {target}\n"),
                );
            }
            Why::NoAddressYet => put(
                &mut text,
                format_args!("# {name}: no ClusterIP is allocated yet\n"),
            ),
            Why::OtherProxy(proxy) => {
                put(
                    &mut text,
                    format_args!("# {name}: left to the service proxy {proxy:?} by its label\n"),
                );
            }
            Why::Headless(records) => {
                put(
                    &mut text,
                    format_args!(
                        "# {name}: headless; clients ask DNS for {}.{}.svc and connect to an endpoint directly\n",
                        name.name(),
                        name.namespace()
                    ),
                );
                for record in records {
                    let host = record
                        .hostname
                        .as_ref()
                        .map(|host| format!("{host}."))
                        .unwrap_or_default();
                    put(
                        &mut text,
                        format_args!(
                            "#     {host}{}.{}.svc  {}\n",
                            name.name(),
                            name.namespace(),
                            record.address
                        ),
                    );
                }
            }
        }
    }
    text
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
    put(
        text,
        format_args!("\n# {}, {}\n", service.name, service.kind),
    );
    let mut has = BTreeSet::new();
    for frontend in claimed {
        match snapshot.claimants(frontend).next() {
            Some(owner) if *owner != service.name => {
                put(
                    text,
                    format_args!("#   {frontend}: not here, {owner} is older and has it\n"),
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
                put(text, format_args!("#   {frontend}: {endpoints}\n"));
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

fn put(text: &mut String, arguments: fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing to a String never fails");
}

#[cfg(test)]
mod tests;
