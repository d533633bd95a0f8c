//! What the dry run says beside the rules: of the node, of Services without rules, of missing endpoints.
//!
//! Pure; lines of text, without what makes them comments.

use std::collections::BTreeSet;

use crate::model::translate::Objects;
use crate::model::translate::dns::{Unserved, Why, unserved};
use crate::model::{Family, Frontend, Snapshot};
use crate::plan::{Detector, Member, Policy, Rule, Tables};

use super::Settings;

/// What this is, what it depends on, and the Services that have no rules.
pub(super) fn heading(
    objects: &Objects,
    snapshot: &Snapshot,
    settings: &Settings<'_>,
) -> Vec<String> {
    let without = unserved(objects);
    let with = snapshot
        .services()
        .filter(|service| service.frontends().next().is_some())
        .count();
    let mut lines = vec![
        format!(
            "The rules of node {}, as proxyd would load them. To load them: nft -f FILE",
            settings.node_name
        ),
        format!(
            "Services with rules: {with}; left to DNS or not ready: {}.",
            without.len()
        ),
    ];
    if snapshot.node().is_none() && settings.plan.node_port_addresses.primary {
        lines.push(format!(
            "No Node object is named {}: NodePorts are at every address of this machine (--hostname-override).",
            settings.node_name
        ));
    }
    let detectors = &settings.skeleton.detector;
    if Family::ALL
        .iter()
        .all(|family| *detectors.get(*family) == Detector::None)
    {
        lines.push(
            "No --cluster-cidr and no other --detect-local-mode: nothing is masqueraded on its way to a \
             ClusterIP, and for externalTrafficPolicy: Local pods are like clients outside."
                .to_owned(),
        );
    }
    let empty = snapshot
        .services()
        .filter(|service| service.frontends().next().is_none());
    lines.extend(empty.map(|service| format!("{}: has no address with a port", service.name)));
    if !without.is_empty() {
        lines.extend([String::new(), "Services without rules:".to_owned()]);
        lines.extend(without.iter().flat_map(without_rules));
    }
    lines
}

/// Why a Service has no rules, and what DNS answers for it.
fn without_rules(Unserved { name, why }: &Unserved) -> Vec<String> {
    let line = |text: String| vec![format!("{name}: {text}")];
    match why {
        Why::ExternalName(target) => line(format!(
            "ExternalName; DNS answers with a CNAME to {target}"
        )),
        Why::NoAddressYet => {
            line("has no ClusterIP; the API server allocates one, a file has to say one".to_owned())
        }
        Why::OtherProxy(proxy) => line(format!("left to the service proxy {proxy:?} by its label")),
        Why::Headless(records) => {
            let domain = format!("{}.{}.svc", name.name(), name.namespace());
            let mut lines =
                line("headless; clients ask DNS and connect to an endpoint directly".to_owned());
            // The Service's own name has the address of every ready endpoint.
            lines.extend(
                records
                    .iter()
                    .map(|record| format!("    {domain}  {}", record.address)),
            );
            lines.extend(records.iter().filter_map(|record| {
                let host = record.hostname.as_ref()?;
                Some(format!("    {host}.{domain}  {}", record.address))
            }));
            lines
        }
    }
}

/// What happens to connections to a front end.
pub(super) fn outcome(snapshot: &Snapshot, tables: &Tables, frontend: Frontend) -> String {
    let endpoints = |count: usize| match count {
        1 => "1 endpoint".to_owned(),
        count => format!("{count} endpoints"),
    };
    let balance = match &tables.rules[&frontend] {
        Rule::Reject => {
            let why = no_endpoint(snapshot, frontend);
            return format!("refused, no endpoint can serve it ({why})");
        }
        Rule::Drop => return "dropped, no endpoint is on this node (policy Local)".to_owned(),
        Rule::Balance(balance) => balance,
    };
    let mut text = endpoints(balance.backends.len());
    if balance.policy == Policy::ExternalLocal {
        text += &match balance.local.len() {
            0 => "; none for clients outside, since none is on this node (policy Local)".to_owned(),
            count => format!("; {} for clients outside", endpoints(count)),
        };
    }
    if let Some(timeout) = balance.affinity {
        text += &format!("; a client keeps its own for {} s", timeout.seconds());
    }
    if tables.members.contains(&Member::Guarded(frontend)) {
        let only = BTreeSet::from([frontend]);
        let members = Member::of_frontends(&tables.members, &only);
        let sources = members.filter_map(|member| match member {
            Member::AllowedSource(_, network) => Some(network.to_string()),
            _ => None,
        });
        let sources: Vec<String> = sources.collect();
        text += &match sources.as_slice() {
            [] => format!(
                "; for nobody: the source ranges have no {} one",
                frontend.family()
            ),
            sources => format!("; only for {}", sources.join(", ")),
        };
    }
    text
}

/// Why a front end has no endpoint.
fn no_endpoint(snapshot: &Snapshot, frontend: Frontend) -> String {
    let Some((service, claimed)) = snapshot.owner(frontend) else {
        return "no Service".to_owned();
    };
    let port = claimed.port;
    let of_family = |address| Family::of(address) == frontend.family();
    let mut slices = 0;
    let mut ports = Vec::new();
    let mut endpoints = 0;
    for slice in snapshot.slices_of(&service.name) {
        slices += 1;
        let joins = slice
            .ports
            .iter()
            .any(|p| p.name == port.name && p.protocol == port.protocol);
        if joins {
            endpoints += slice
                .endpoints
                .iter()
                .filter(|e| of_family(e.address))
                .count();
        }
        ports.extend(
            slice
                .ports
                .iter()
                .map(|p| format!("{:?} {}", p.name, p.protocol)),
        );
    }
    ports.sort();
    ports.dedup();
    let joined = format!("{:?} {}", port.name, port.protocol);
    if slices == 0 {
        "it has no EndpointSlice".to_owned()
    } else if !ports.contains(&joined) {
        let ports = if ports.is_empty() {
            "no ports".to_owned()
        } else {
            ports.join(", ")
        };
        format!("its EndpointSlices have {ports}, not {joined}")
    } else if endpoints == 0 {
        format!("its EndpointSlices have no {} endpoint", frontend.family())
    } else {
        format!("of {endpoints} endpoints none is ready")
    }
}
