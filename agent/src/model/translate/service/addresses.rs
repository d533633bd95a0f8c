//! The addresses of a Service: ClusterIPs, load-balancer addresses and `externalIPs`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::super::{address, mapped};
use crate::model::{Complaint, ServiceType};

/// What follows from an address that cannot be served.
const SKIPPED: &str = "it is skipped";

/// The addresses of a Service, each in one list only.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// At most one of each family, as the API has it.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Those that a load balancer sends here as they are.
    pub(super) load_balancer_ips: Vec<IpAddr>,
    /// `externalIPs`.
    pub(super) external_ips: Vec<IpAddr>,
}

/// Reads the addresses. The families that the Service has are those of its ClusterIPs: other addresses of a
/// family that it has not are not served, as with kube-proxy.
pub(super) fn addresses(
    object: &api::Service,
    spec: &api::ServiceSpec,
    kind: ServiceType,
    complaints: &mut Vec<Complaint>,
) -> Addresses {
    let mut addresses = Addresses {
        cluster_ips: cluster_ips(spec, complaints),
        ..Addresses::default()
    };
    // The API server clears these when the type changes.
    if kind == ServiceType::LoadBalancer {
        let ingress = object
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref());
        for (i, entry) in ingress.unwrap_or_default().iter().enumerate() {
            // With "Proxy", and with a host name, connections have to pass through the load balancer.
            let is_vip = matches!(entry.ip_mode.as_deref(), None | Some("VIP"));
            if let Some(text) = entry.ip.as_deref().filter(|ip| is_vip && !ip.is_empty()) {
                let field = format!("status.loadBalancer.ingress[{i}].ip");
                match addresses.outer(text, field) {
                    Ok(ip) => addresses.load_balancer_ips.extend(ip),
                    Err(complaint) => complaints.push(complaint),
                }
            }
        }
    }
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        match addresses.outer(text, format!("spec.externalIPs[{i}]")) {
            Ok(ip) => addresses.external_ips.extend(ip),
            Err(complaint) => complaints.push(complaint),
        }
    }
    addresses
}

impl Addresses {
    /// Reads an address beside the ClusterIPs; `None` if it is there already.
    fn outer(&self, text: &str, field: String) -> Result<Option<IpAddr>, Complaint> {
        let ip = address(text, field.clone(), SKIPPED)?;
        if !self
            .cluster_ips
            .iter()
            .any(|own| own.is_ipv4() == ip.is_ipv4())
        {
            let ip = match mapped(text) {
                Some(ip) => format!("{ip}, an IPv4 address mapped to IPv6"),
                None => ip.to_string(),
            };
            let reason = format!("the Service has no ClusterIP of the family of {ip}; {SKIPPED}");
            return Err(Complaint::new(field, reason));
        }
        let mut known = self
            .cluster_ips
            .iter()
            .chain(&self.load_balancer_ips)
            .chain(&self.external_ips);
        Ok((!known.any(|own| *own == ip)).then_some(ip))
    }
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
        match address(text, field.clone(), SKIPPED) {
            Ok(ip) if kept.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) => {
                let reason = format!("{ip} is a second address of one family; {SKIPPED}");
                complaints.push(Complaint::new(field, reason));
            }
            Ok(ip) => kept.push(ip),
            Err(complaint) => complaints.push(complaint),
        }
    }
    kept
}
