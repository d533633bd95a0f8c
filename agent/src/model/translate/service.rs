//! Service → [`Service`]: its type, its ports, and what it is to be served with. `addresses` has the rest.

mod addresses;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;

use super::{PROXY_NAME_LABEL, keep_good, label, name_of, network, port, protocol};
use crate::model::{
    AffinityTimeout, Complaint, Parsed, Port, Service, ServicePort, ServiceType, TrafficPolicy,
};

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
    let addresses = addresses::addresses(object, spec, kind, &mut complaints);
    let ports = ports(spec, &mut complaints);
    complaints.extend(unknown_type(spec));
    let mut policy = |field: &str, value: &Option<String>| match value.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let reason = format!("{other:?} is not one of Cluster, Local; it is served as Cluster");
            complaints.push(Complaint::new(format!("spec.{field}"), reason));
            TrafficPolicy::Cluster
        }
    };
    let internal_policy = policy("internalTrafficPolicy", &spec.internal_traffic_policy);
    let external_policy = policy("externalTrafficPolicy", &spec.external_traffic_policy);
    let created = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second());
    let is_load_balancer = kind == ServiceType::LoadBalancer;
    let has_health_checks = is_load_balancer && external_policy == TrafficPolicy::Local;
    Parsed {
        object: Some(Service {
            name: name.clone(),
            created,
            kind,
            cluster_ips: addresses.cluster_ips.into(),
            load_balancer_ips: addresses.load_balancer_ips.into(),
            external_ips: addresses.external_ips.into(),
            ports: ports.into(),
            internal_policy,
            external_policy,
            affinity: affinity(spec, &mut complaints),
            source_ranges: is_load_balancer
                .then(|| source_ranges(spec, &mut complaints))
                .flatten(),
            health_check_port: has_health_checks
                .then(|| health_check_port(spec, &mut complaints))
                .flatten(),
        }),
        name,
        complaints,
        trigger: None,
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

/// A type that Kubernetes does not know, which counts as ClusterIP.
fn unknown_type(spec: &api::ServiceSpec) -> Option<Complaint> {
    let kind = spec.type_.as_deref()?;
    (!["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind)).then(|| {
        let reason = format!("{kind:?} is not a type of Service; it is served as ClusterIP");
        Complaint::new("spec.type", reason)
    })
}

/// The ports. Of those with one number and protocol the first counts, and of those with one node port too.
fn ports(spec: &api::ServiceSpec, complaints: &mut Vec<Complaint>) -> Vec<ServicePort> {
    let ports = spec.ports.as_deref().unwrap_or_default().iter();
    let ports = ports.enumerate().map(|(i, object)| service_port(i, object));
    let mut kept = keep_good(ports, complaints);
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    kept.retain_mut(|port| {
        let (name, number, protocol) = (&port.name, port.port, port.protocol);
        if !numbers.insert((protocol, number)) {
            let reason = format!("{name:?} is a second port {number} {protocol}; it is skipped");
            complaints.push(Complaint::new("spec.ports", reason));
            return false;
        }
        if let Some(node_port) = port.node_port
            && !node_ports.insert((protocol, node_port))
        {
            let reason = format!(
                "{name:?} has node port {node_port} {protocol}, which another port of this Service has; \
                 it is skipped"
            );
            complaints.push(Complaint::new("spec.ports", reason));
            port.node_port = None;
        }
        true
    });
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

/// How long a client keeps its endpoint. A number that no API server would accept becomes the nearest one.
fn affinity(spec: &api::ServiceSpec, complaints: &mut Vec<Complaint>) -> Option<AffinityTimeout> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let reason = format!("{other:?} is not one of None, ClientIP; there is no affinity");
            complaints.push(Complaint::new("spec.sessionAffinity", reason));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let Some(seconds) = seconds else {
        return Some(AffinityTimeout::DEFAULT);
    };
    let timeout = u32::try_from(seconds).ok().and_then(AffinityTimeout::new);
    timeout.or_else(|| {
        let nearest = seconds.clamp(1, 86_400);
        let reason =
            format!("{seconds} is not a number of seconds from 1 to 86400; {nearest} is used");
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        complaints.push(Complaint::new(field, reason));
        AffinityTimeout::new(nearest.unsigned_abs())
    })
}

/// Who may call the load-balancer addresses; `None`: everybody. Ranges that cannot be read let nobody in.
fn source_ranges(
    spec: &api::ServiceSpec,
    complaints: &mut Vec<Complaint>,
) -> Option<Box<[ipnet::IpNet]>> {
    let texts = spec.load_balancer_source_ranges.as_deref()?;
    let field = |i| format!("spec.loadBalancerSourceRanges[{i}]");
    let ranges = texts.iter().enumerate();
    let ranges = keep_good(ranges.map(|(i, text)| network(text, field(i))), complaints);
    (!texts.is_empty()).then(|| ipnet::IpNet::aggregate(&ranges).into())
}

fn health_check_port(spec: &api::ServiceSpec, complaints: &mut Vec<Complaint>) -> Option<Port> {
    let number = spec.health_check_node_port.filter(|number| *number != 0)?;
    let port = port(number, "spec.healthCheckNodePort".to_owned());
    port.map_err(|complaint| complaints.push(complaint)).ok()
}
