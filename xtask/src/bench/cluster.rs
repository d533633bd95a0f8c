//! The cluster that is measured: a made-up one, on the tests' API server or on a real one.
//!
//! A namespace of the network that a proxy runs in is attached to it; then the proxy finds the server at its loopback
//! address. Objects are written one after the other, so that their order is that of the server's versions.

mod listener;
mod real;
mod relay;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxyd_tests::apiserver::{ApiServer, Options, Resource};
use proxyd_tests::netns::Netns;
use serde_json::{Value, json};

use super::workload::{Service, Workload, namespace};
use real::Real;

/// The address of the tests' API server, the same in every namespace.
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 6443);

/// The made-up cluster: what is in it, and who serves it.
pub(super) struct Cluster {
    workload: Workload,
    server: Server,
    services: Vec<State>,
}

/// What was taken from a real server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// What it sent.
    pub(super) bytes: u64,
    /// Its CPU time, if its process is known.
    pub(super) cpu: Option<Duration>,
}

impl Taken {
    /// What was taken in between.
    pub(super) fn since(self, before: Self) -> Self {
        let cpu = self.cpu.zip(before.cpu);
        Self {
            bytes: self.bytes - before.bytes,
            cpu: cpu.map(|(now, before)| now - before),
        }
    }
}

enum Server {
    Tests(Option<ApiServer>),
    Real(Box<Real>),
}

/// What is known of a Service: its address, and the version of its slice.
#[derive(Debug, Clone, Copy)]
struct State {
    cluster_ip: Ipv4Addr,
    version: usize,
}

impl Cluster {
    /// A cluster on the tests' API server, or on a real one by its kubeconfig. There, all is removed again on the way
    /// out, whichever it is.
    ///
    /// # Errors
    /// That the real server does not take the objects.
    pub(super) fn make(workload: Workload, kubeconfig: Option<&Path>) -> Result<Self> {
        let server = match kubeconfig {
            None => Server::Tests(None),
            Some(file) => Server::Real(Box::new(Real::connect(file)?)),
        };
        let mut cluster = Self {
            workload,
            server,
            services: Vec::new(),
        };
        if let Server::Real(_) = cluster.server {
            cluster.create_all()?;
        }
        Ok(cluster)
    }

    /// The name of the node that proxies run as.
    pub(super) fn node(&self) -> &str {
        match &self.server {
            Server::Tests(_) => "node-1",
            Server::Real(real) => real.node(),
        }
    }

    /// Makes the server reachable in a namespace, and in no other. Writes a kubeconfig for proxies there, and returns
    /// its path.
    pub(super) fn attach(&mut self, netns: &Netns, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("kubeconfig");
        let kubeconfig = match &mut self.server {
            Server::Real(real) => real.attach(netns)?,
            Server::Tests(server) => {
                let listener = netns.enter(|| TcpListener::bind(ADDRESS))?;
                if let Some(server) = server {
                    server.stop();
                    server.resume_on(listener);
                    server.kubeconfig()
                } else {
                    let made = server.insert(ApiServer::serve_on(listener, Options::default()));
                    made.create(&json!({
                        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
                        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }] },
                    }));
                    let kubeconfig = made.kubeconfig();
                    self.create_all()?;
                    kubeconfig
                }
            }
        };
        std::fs::write(&path, kubeconfig)?;
        Ok(path)
    }

    /// What was taken so far from a real server.
    pub(super) fn taken(&self) -> Result<Option<Taken>> {
        match &self.server {
            // It is a part of this process.
            Server::Tests(_) => Ok(None),
            Server::Real(real) => real.taken().map(Some),
        }
    }

    /// The Service with this number.
    pub(super) fn service(&self, number: usize) -> Service {
        Service {
            number,
            cluster_ip: self.services[number].cluster_ip,
        }
    }

    /// How many Services there are.
    pub(super) fn len(&self) -> usize {
        self.services.len()
    }

    /// How many endpoints a Service has.
    pub(super) fn endpoints(&self) -> usize {
        self.workload.endpoints
    }

    /// Replaces the first endpoint of a Service by another; returns the one before, and the new one.
    pub(super) fn replace_endpoint(&mut self, number: usize) -> Result<[Ipv4Addr; 2]> {
        let version = self.services[number].version;
        self.services[number].version += 1;
        self.write(number)?;
        Ok([version, version + 1].map(|version| Workload::first_endpoint(number, version)))
    }

    /// Creates Services beyond those that are there, each with its slice.
    pub(super) fn grow(&mut self, count: usize) -> Result<()> {
        let first = self.services.len();
        let numbers = first..first + count;
        let objects = |number| {
            [
                self.workload.service(number),
                self.workload.slice(number, 0),
            ]
        };
        let addresses = match &mut self.server {
            Server::Tests(server) => {
                let server = server.as_ref().context("attached before")?;
                let mut addresses = Vec::with_capacity(count);
                for [service, slice] in numbers.map(objects) {
                    server.create(&service);
                    server.create(&slice);
                    addresses.push(address(&service)?);
                }
                addresses
            }
            Server::Real(real) => real.create(numbers.map(objects).collect())?,
        };
        let state = |cluster_ip| State {
            cluster_ip,
            version: 0,
        };
        self.services.extend(addresses.into_iter().map(state));
        Ok(())
    }

    /// Deletes the last Services, then their slices.
    pub(super) fn shrink(&mut self, count: usize) -> Result<()> {
        let numbers = self.services.len() - count..self.services.len();
        for number in numbers {
            for (resource, name) in [
                (Resource::Services, format!("svc-{number}")),
                (Resource::EndpointSlices, format!("svc-{number}-abcde")),
            ] {
                match &self.server {
                    Server::Tests(server) => {
                        let server = server.as_ref().context("attached before")?;
                        server.delete(resource, &namespace(number), &name);
                    }
                    Server::Real(real) => real.delete(resource, &namespace(number), &name)?,
                }
            }
        }
        self.services.truncate(self.services.len() - count);
        Ok(())
    }

    fn create_all(&mut self) -> Result<()> {
        self.grow(self.workload.services)
    }

    fn write(&self, number: usize) -> Result<()> {
        let slice = self.workload.slice(number, self.services[number].version);
        match &self.server {
            Server::Tests(server) => {
                server.as_ref().context("attached before")?.update(&slice);
                Ok(())
            }
            Server::Real(real) => real.replace(slice),
        }
    }
}

/// The ClusterIP that a Service says.
fn address(service: &Value) -> Result<Ipv4Addr> {
    let text = service["spec"]["clusterIP"].as_str();
    text.and_then(|text| text.parse().ok())
        .with_context(|| format!("no IPv4 ClusterIP: {service}"))
}
