//! The dry run as a summary: each Service's front ends and the endpoints behind them, with pods and nodes.
//!
//! Pure; the same objects give the same bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::translate::pods::{Who, pods};
use crate::model::{Family, Frontend, ObjectName, Service};
use crate::plan::{Backend, Rule};

use super::{View, explain, push_line};

/// Who is at an endpoint of a Service.
type Pods = BTreeMap<(ObjectName, IpAddr), Who>;

/// Everything that was asked for, as text for people.
pub(super) fn summary(view: &View<'_>) -> String {
    let mut text = String::new();
    for line in explain::heading(view) {
        push_line(&mut text, &line);
    }
    let pods = pods(view.objects);
    for service in view.services() {
        of_service(&mut text, view, service, &pods);
    }
    text
}

/// A Service: front ends that lead to the same endpoints, then these.
fn of_service(text: &mut String, view: &View<'_>, service: &Service, pods: &Pods) {
    let frontends = Family::ALL.map(|family| view.frontends_of(service, family));
    let frontends: Vec<Frontend> = frontends.into_iter().flatten().collect();
    if frontends.is_empty() {
        return;
    }
    text.push('\n');
    push_line(text, &format!("{}, {}", service.name, service.kind));
    let mut groups: Vec<(&[Backend], Vec<Frontend>)> = Vec::new();
    for frontend in frontends {
        let rule = view.tables.get(frontend.family()).rules.get(&frontend);
        let backends: &[Backend] = match rule {
            Some(Rule::Balance(balance)) if view.has(service, frontend) => &balance.backends,
            _ => &[],
        };
        match groups.iter_mut().find(|(of, _)| *of == backends) {
            Some((_, frontends)) => frontends.push(frontend),
            None => groups.push((backends, vec![frontend])),
        }
    }
    for (backends, frontends) in groups {
        for frontend in frontends {
            let line = explain::front_end(view, service, frontend);
            push_line(text, &format!("  {line}"));
        }
        for backend in backends {
            let who = pods.get(&(service.name.clone(), backend.ip));
            push_line(text, &endpoint(*backend, who));
        }
    }
}

/// An endpoint: its address and port, its pod, and the node that it runs on.
fn endpoint(backend: Backend, who: Option<&Who>) -> String {
    let mut line = format!("    {backend}");
    if let Some(Who { pod, node, .. }) = who {
        if let Some(pod) = pod {
            line += &format!("  {pod}");
        }
        if let Some(node) = node {
            line += &format!("  on {node}");
        }
    }
    line
}
