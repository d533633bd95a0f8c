//! Service → [`Service`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::{PROXY_NAME_LABEL, keep_good, label, name_of, port, protocol};
use crate::model::{Complaint, Parsed, Service, ServicePort, ServiceType};

/// Translates a Service. Headless and ExternalName Services, those without an address yet and those of
/// another proxy have no rules and come out as ignored.
pub fn service(object: &api::Service) -> Parsed<Service> {
    let name = name_of(&object.metadata);
    let Some(spec) = &object.spec else {
        return Parsed::ignored(name);
    };
    let Some(kind) = served_type(object, spec) else {
        return Parsed::ignored(name);
    };
    let mut complaints = Vec::new();
    let cluster_ips = cluster_ips(spec, &mut complaints);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let ports = keep_good(
        ports.iter().enumerate().map(|(i, p)| service_port(i, p)),
        &mut complaints,
    );
    complaints.extend(unknown_type(spec));
    let ports = without_doubles(ports, &mut complaints);
    complaints.extend(not_yet(object, spec));
    let created = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second());
    Parsed {
        object: Some(Service {
            name: name.clone(),
            created,
            kind,
            cluster_ips,
            ports,
        }),
        name,
        complaints,
    }
}

/// The type, if the Service is one that has rules and that this proxy is to serve.
fn served_type(object: &api::Service, spec: &api::ServiceSpec) -> Option<ServiceType> {
    let kind = match spec.type_.as_deref() {
        Some("ExternalName") => return None,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        _ => ServiceType::ClusterIp,
    };
    let is_served = has_address(spec) && label(&object.metadata, PROXY_NAME_LABEL).is_none();
    is_served.then_some(kind)
}

/// Whether a ClusterIP is allocated; headless Services never have one.
pub(super) fn has_address(spec: &api::ServiceSpec) -> bool {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = listed.first().or(spec.cluster_ip.as_ref());
    !matches!(first.map(String::as_str), None | Some("" | "None"))
}

/// `clusterIPs`, or `clusterIP` where that list is missing; at most one of each family, as the API has it.
fn cluster_ips(spec: &api::ServiceSpec, complaints: &mut Vec<Complaint>) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts: Vec<(String, &str)> = if listed.is_empty() {
        let single = spec.cluster_ip.as_deref().unwrap_or_default();
        vec![("spec.clusterIP".to_owned(), single)]
    } else {
        let field = |i| format!("spec.clusterIPs[{i}]");
        listed
            .iter()
            .enumerate()
            .map(|(i, ip)| (field(i), ip.as_str()))
            .collect()
    };
    let mut kept: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for (field, text) in texts {
        match text.parse::<IpAddr>() {
            Ok(ip) if kept.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) => {
                let reason = format!("{ip} is a second address of one family; it is skipped");
                complaints.push(Complaint::invalid(field, reason));
            }
            Ok(ip) => kept.push(ip),
            Err(_) => {
                let reason = format!("{text:?} is not an IP address; it is skipped");
                complaints.push(Complaint::invalid(field, reason));
            }
        }
    }
    kept
}

fn service_port(index: usize, object: &api::ServicePort) -> Result<ServicePort, Complaint> {
    let field = format!("spec.ports[{index}]");
    let node_port = match object.node_port {
        None | Some(0) => None,
        Some(number) => Some(port(number, format!("{field}.nodePort"))?),
    };
    Ok(ServicePort {
        name: object.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(object.protocol.as_deref(), &field)?,
        port: port(object.port, format!("{field}.port"))?,
        node_port,
    })
}

/// A type that Kubernetes does not know, which counts as ClusterIP.
fn unknown_type(spec: &api::ServiceSpec) -> Option<Complaint> {
    let kind = spec.type_.as_deref()?;
    (!["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind)).then(|| {
        let reason = format!("{kind:?} is not a type of Service; it is served as ClusterIP");
        Complaint::invalid("spec.type", reason)
    })
}

/// Of ports with one number and protocol the first counts.
fn without_doubles(ports: Vec<ServicePort>, complaints: &mut Vec<Complaint>) -> Vec<ServicePort> {
    let mut seen = BTreeSet::new();
    ports
        .into_iter()
        .filter(|port| {
            let is_first = seen.insert((port.protocol, port.port));
            if !is_first {
                let (name, number, protocol) = (&port.name, port.port, port.protocol);
                let reason =
                    format!("{name:?} is a second port {number} {protocol}; it is skipped");
                complaints.push(Complaint::invalid("spec.ports", reason));
            }
            is_first
        })
        .collect()
}

/// Fields that change how a Service is to be served and that this version does not act on.
fn not_yet(object: &api::Service, spec: &api::ServiceSpec) -> impl Iterator<Item = Complaint> {
    const EVERYWHERE: &str = "connections go to endpoints on every node";
    let is = |value: &Option<String>, wanted: &str| value.as_deref() == Some(wanted);
    let has_ingress_ip = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .is_some_and(|ingress| ingress.iter().any(|entry| entry.ip.is_some()));
    let not_empty = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    [
        (
            is(&spec.internal_traffic_policy, "Local"),
            "spec.internalTrafficPolicy",
            EVERYWHERE,
        ),
        (
            is(&spec.external_traffic_policy, "Local"),
            "spec.externalTrafficPolicy",
            EVERYWHERE,
        ),
        (
            is(&spec.session_affinity, "ClientIP"),
            "spec.sessionAffinity",
            "a client's connections are spread over all endpoints",
        ),
        (
            not_empty(&spec.external_ips),
            "spec.externalIPs",
            "these addresses are not served",
        ),
        (
            has_ingress_ip,
            "status.loadBalancer.ingress",
            "these addresses are not served",
        ),
        (
            spec.health_check_node_port.is_some_and(|port| port > 0),
            "spec.healthCheckNodePort",
            "nothing answers there",
        ),
        (
            not_empty(&spec.load_balancer_source_ranges),
            "spec.loadBalancerSourceRanges",
            "nothing is refused because of its source",
        ),
    ]
    .into_iter()
    .filter(|(set, ..)| *set)
    .map(|(_, field, effect)| {
        Complaint::not_yet(
            field,
            format!("not acted on by this version of proxyd: {effect}"),
        )
    })
}
