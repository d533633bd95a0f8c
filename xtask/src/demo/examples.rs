//! What the demo needs to know from the manifests: the pods to make, and the Services' addresses to ask.
//!
//! It reads the same files as the agent, but only to build the world that they describe. They are ours, so a mistake in
//! them is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

/// The label that says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What the manifests say. Names are without their namespaces: the examples use each once.
#[derive(Debug, Default)]
pub(crate) struct Examples {
    /// The pods that the EndpointSlices name, by name.
    pub(crate) pods: BTreeMap<String, PodSpec>,
    services: BTreeMap<String, Service>,
}

/// A pod to make.
#[derive(Debug, Default)]
pub(crate) struct PodSpec {
    /// Its node's name.
    pub(crate) node: String,
    /// One address of each family that a slice has.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// What it listens on.
    pub(crate) ports: BTreeSet<u16>,
    /// The Services that it is an endpoint of.
    pub(crate) services: BTreeSet<String>,
}

impl Examples {
    /// Reads the `.yaml` files of a directory.
    ///
    /// # Errors
    /// If a file cannot be read, or an object in it is not what its kind says.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let mut examples = Self::default();
        for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let text = fs::read_to_string(&path)?;
                examples
                    .add(&text)
                    .with_context(|| path.display().to_string())?;
            }
        }
        Ok(examples)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        for object in serde_saphyr::from_multiple::<Value>(text)? {
            match object["kind"].as_str() {
                Some("Service") => {
                    let service: Service = serde_json::from_value(object)?;
                    let name = service
                        .metadata
                        .name
                        .clone()
                        .context("a Service without a name")?;
                    self.services.insert(name, service);
                }
                Some("EndpointSlice") => self.add_slice(&serde_json::from_value(object)?)?,
                _ => (),
            }
        }
        Ok(())
    }

    fn add_slice(&mut self, slice: &EndpointSlice) -> Result<()> {
        let labels = slice.metadata.labels.as_ref();
        let service = labels
            .and_then(|labels| labels.get(SERVICE_NAME))
            .context("a slice of no Service")?;
        let ports = slice.ports.iter().flatten().filter_map(|port| port.port);
        let ports = ports.map(u16::try_from).collect::<Result<Vec<_>, _>>()?;
        for endpoint in slice.endpoints.iter().flatten() {
            let target = endpoint
                .target_ref
                .as_ref()
                .and_then(|target| target.name.clone());
            let pod = self
                .pods
                .entry(target.context("an endpoint without a pod")?)
                .or_default();
            pod.node = endpoint
                .node_name
                .clone()
                .context("an endpoint without a node")?;
            pod.ports.extend(&ports);
            pod.services.insert(service.clone());
            for address in &endpoint.addresses {
                pod.addresses.insert(address.parse()?);
            }
        }
        Ok(())
    }

    /// The ClusterIP and first port of a Service; the first address of the family.
    ///
    /// # Errors
    /// If there is no such Service, or it has none.
    pub(crate) fn cluster_ip(&self, service: &str, ipv6: bool) -> Result<SocketAddr> {
        let spec = self.spec(service)?;
        let addresses = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|ip| ip.parse::<IpAddr>().ok());
        let address = addresses
            .into_iter()
            .find(|address| address.is_ipv6() == ipv6);
        let address =
            address.with_context(|| format!("Service {service} has no such ClusterIP"))?;
        Ok(SocketAddr::new(address, first_port(spec)?))
    }

    /// The NodePort of a Service's first port.
    ///
    /// # Errors
    /// If there is no such Service, or it has none.
    pub(crate) fn node_port(&self, service: &str) -> Result<u16> {
        let ports = self.spec(service)?.ports.as_ref();
        let port = ports
            .and_then(|ports| ports.first())
            .and_then(|port| port.node_port);
        Ok(u16::try_from(port.with_context(|| {
            format!("Service {service} has no NodePort")
        })?)?)
    }

    /// The load balancer's address of a Service, and its first port.
    ///
    /// # Errors
    /// If there is no such Service, or it has none.
    pub(crate) fn load_balancer(&self, service: &str) -> Result<SocketAddr> {
        let status = self.services.get(service).and_then(|s| s.status.as_ref());
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let first = ingress.and_then(|ingress| ingress.first()?.ip.as_ref());
        let ip = first.with_context(|| format!("Service {service} has no load balancer"))?;
        Ok(SocketAddr::new(
            ip.parse()?,
            first_port(self.spec(service)?)?,
        ))
    }

    /// The names of a Service's pods on a node.
    pub(crate) fn pods_on(&self, node: &str, service: &str) -> BTreeSet<String> {
        let mut pods = self.pods_of(service);
        pods.retain(|name| self.pods[name].node == node);
        pods
    }

    /// The names of a Service's pods.
    pub(crate) fn pods_of(&self, service: &str) -> BTreeSet<String> {
        let pods = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.services.contains(service));
        pods.map(|(name, _)| name.clone()).collect()
    }

    fn spec(&self, service: &str) -> Result<&ServiceSpec> {
        let found = self
            .services
            .get(service)
            .and_then(|service| service.spec.as_ref());
        found.with_context(|| format!("no Service {service} in the examples"))
    }
}

fn first_port(spec: &ServiceSpec) -> Result<u16> {
    let port = spec.ports.as_ref().and_then(|ports| ports.first());
    Ok(u16::try_from(
        port.context("a Service without ports")?.port,
    )?)
}
