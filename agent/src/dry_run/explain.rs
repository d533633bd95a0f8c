//! What the dry run says beside the rules: of the node, of Services without rules, of missing endpoints.
//!
//! Pure; lines of text, without what makes them comments.

use std::collections::BTreeSet;

use crate::model::translate::dns::{Unserved, Why, unserved};
use crate::model::{Family, Frontend, ObjectName, Service};
use crate::plan::{Detector, Member, Policy, Rule, lack};

use super::{Output, View};

/// The most addresses that a line names.
const MOST_ADDRESSES: usize = 5;

/// What this is, what it depends on, and the Services that have no rules.
pub(super) fn heading(view: &View<'_>) -> Vec<String> {
    let settings = view.settings;
    let node = settings.node_name;
    let mut lines = vec![match (&settings.only, settings.output) {
        (_, Output::Summary | Output::Json) => {
            format!("What clients of Services reach, as node {node} serves them.")
        }
        (None, Output::Text) => format!(
            "The rules of node {node}, as proxyd would load them. To load them: nft -f FILE"
        ),
        (Some(only), Output::Text) => format!(
            "What the rules of node {node} hold of Service {only}. It is a part of them, and nothing to be loaded."
        ),
    }];
    let without = unserved(view.objects);
    let services = view.snapshot.services();
    let addressless = services.filter(|service| service.frontends().next().is_none());
    let addressless: Vec<&Service> = addressless.collect();
    if settings.only.is_none() {
        lines.push(counts(view, &without, addressless.len()));
    }
    if view.snapshot.node().is_none() && settings.plan.node_port_addresses.primary {
        lines.push(format!(
            "No Node object is named {node}: NodePorts are at every address of this machine (--hostname-override)."
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
    let mut told: Vec<(ObjectName, Vec<String>)> = Vec::new();
    told.extend(addressless.iter().map(|service| {
        let line = format!("{}: has no address with a port", service.name);
        (service.name.clone(), vec![line])
    }));
    told.extend(
        without
            .iter()
            .map(|of| (of.name.clone(), without_rules(of))),
    );
    told.retain(|(name, _)| view.is_wanted(name));
    told.sort();
    if !told.is_empty() {
        lines.extend([String::new(), "Services without rules:".to_owned()]);
        lines.extend(told.into_iter().flat_map(|(_, lines)| lines));
    }
    lines
}

/// How many Services there are, and what becomes of them.
fn counts(view: &View<'_>, without: &[Unserved], addressless: usize) -> String {
    let of = |is: fn(&Why) -> bool| without.iter().filter(|service| is(&service.why)).count();
    let on_purpose = of(|why| matches!(why, Why::Headless(_) | Why::ExternalName(_)));
    let others = of(|why| matches!(why, Why::OtherProxy(_)));
    let unusable = of(|why| matches!(why, Why::NoAddressYet)) + addressless;
    let all = view.objects.services.len();
    let parts = [
        (
            all.saturating_sub(without.len() + addressless),
            "with rules",
        ),
        (on_purpose, "headless or ExternalName"),
        (others, "left to other proxies"),
        (unusable, "without an address"),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let mut text = count(all, "Service");
    if !parts.is_empty() {
        text += &format!(": {}", parts.join(", "));
    }
    text += ".";
    if view.settings.unread > 0 {
        let unread = count(view.settings.unread, "document or object");
        text += &format!(" Not read: {unread} (standard error says why).");
    }
    text
}

/// A number of things: `1 Service`, `2 Services`. Of `document or object` both words take the plural.
pub(super) fn count(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {}s", what.replace(" or ", "s or ")),
    }
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

/// A front end of a Service, with its addresses, and what happens to connections to it.
pub(super) fn front_end(view: &View<'_>, service: &Service, frontend: Frontend) -> String {
    let mut text = frontend.to_string();
    if frontend.address().is_none() {
        let addresses = node_port_addresses(view, frontend.family());
        text += &format!(" at {addresses}");
    }
    let outcome = match view.snapshot.claimants(frontend).next() {
        Some(owner) if *owner != service.name => {
            let why = view.snapshot.precedence(frontend);
            format!("not here, {owner} has it: {why}")
        }
        _ => outcome(view, frontend),
    };
    format!("{text}: {outcome}")
}

/// Where NodePorts are.
fn node_port_addresses(view: &View<'_>, family: Family) -> String {
    let members = view.tables.get(family).members.iter();
    let addresses = members.filter_map(|member| match member {
        Member::NodePortAddress(address) => Some(address.to_string()),
        _ => None,
    });
    let addresses: Vec<String> = addresses.collect();
    match addresses.len() {
        0 => format!("no {family} address of this node"),
        all if all > MOST_ADDRESSES => {
            let named = addresses[..MOST_ADDRESSES].join(", ");
            format!("{named} and {} more", all - MOST_ADDRESSES)
        }
        _ => addresses.join(", "),
    }
}

/// What happens to connections to a front end.
fn outcome(view: &View<'_>, frontend: Frontend) -> String {
    let tables = view.tables.get(frontend.family());
    let balance = match &tables.rules[&frontend] {
        Rule::Reject => {
            let why = lack(view.snapshot, frontend);
            return format!("refused, no endpoint can serve it ({why})");
        }
        Rule::Drop => return "dropped, no endpoint is on this node (policy Local)".to_owned(),
        Rule::Balance(balance) => balance,
    };
    let mut text = count(balance.backends.len(), "endpoint");
    if balance.policy == Policy::ExternalLocal {
        text += &match balance.local.len() {
            0 => "; none for clients outside, since none is on this node (policy Local)".to_owned(),
            local => format!("; {} for clients outside", count(local, "endpoint")),
        };
    }
    if let Some(affinity) = balance.affinity {
        let seconds = affinity.timeout.seconds();
        text += &format!("; a client keeps its own for {seconds} s");
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
