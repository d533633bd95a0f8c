//! The tables that the agent plans for a scene, without an agent: what the tracer walks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clap::Parser as _;
use proxyd::cli::Cli;
use proxyd::config::Config;
use proxyd::model::translate::Objects;
use proxyd::model::{Family, PerFamily, Port, Protocol, Scope, Snapshot};
use proxyd::plan::{self, Tables};
use proxyd::trace::{Outcome, Packet, Target, Tracer};
use serde_json::Value;

use super::call::Call;
use super::cast::{self, Cast};
use super::table::Expected;
use crate::traffic;

/// What is planned for a scene.
#[derive(Debug)]
pub struct Planned {
    config: Config,
    tables: PerFamily<Tables>,
    local_addresses: BTreeSet<IpAddr>,
}

impl Planned {
    /// Plans objects on node-1 with the agent's arguments.
    ///
    /// # Panics
    /// If an argument or an object cannot be read.
    pub fn new(cast: &Cast, objects: &[Value], args: &[&str]) -> Self {
        let own = ["proxyd", "--hostname-override", "node-1"];
        let cli = Cli::try_parse_from([&own, args].concat());
        let cli = cli.unwrap_or_else(|error| panic!("{error}"));
        let config = Config::from_cli(cli).unwrap_or_else(|error| panic!("{error}"));
        let objects = read(objects);
        let mut snapshot = Snapshot::default();
        let services = objects.parsed_services().into_iter();
        snapshot.set_services(services.filter_map(|parsed| parsed.object).collect());
        let slices = objects.parsed_slices("node-1").into_iter();
        snapshot.set_slices(slices.filter_map(|parsed| parsed.object).collect());
        let cidrs = objects.parsed_service_cidrs().into_iter();
        snapshot.set_service_cidrs(cidrs.filter_map(|parsed| parsed.object).collect());
        snapshot.set_node(objects.own_node("node-1"));
        let local_addresses = cast.node_addresses.clone();
        snapshot.set_host_addresses(local_addresses.clone());
        let tables =
            PerFamily::from_fn(|family| plan::tables(&snapshot, &config.plan, family, &Scope::All));
        Self {
            config,
            tables,
            local_addresses,
        }
    }

    /// What the tracer says of a connection.
    ///
    /// # Panics
    /// If it is for port 0.
    pub fn trace(&self, cast: &Cast, call: &Call) -> Outcome {
        let family = Family::of(call.to.ip());
        let tracer = Tracer {
            tables: self.tables.get(family),
            detector: self.config.skeleton.detector.get(family),
            local_addresses: &self.local_addresses,
            rejects_unused_ports: self.config.skeleton.rejects_unused_ports,
        };
        let is_here = self.local_addresses.contains(&call.to.ip());
        let mut packet = Packet {
            interface: cast.interface(&call.from),
            source: call.source(cast),
            destination: call.to.ip(),
            protocol: match call.protocol {
                traffic::Protocol::Tcp => Protocol::Tcp,
                traffic::Protocol::Udp => Protocol::Udp,
                traffic::Protocol::Sctp => Protocol::Sctp,
            },
            port: Port::new(call.to.port()).expect("no table has port 0"),
            returns: false,
        };
        let uplink = cast.interface("client");
        packet.returns = packet.interface == uplink && !is_here;
        let outcome = tracer.trace(&packet);
        // What node-1 sends on of others to an address that the network routes to it comes back, with the source that it had.
        let comes_back = packet.interface.is_some() && cast.is_routed_here(call.to.ip());
        if outcome != Outcome::Unchanged || packet.returns || !comes_back {
            return outcome;
        }
        packet.interface = uplink;
        packet.returns = true;
        tracer.trace(&packet)
    }
}

/// What is wrong with an outcome, if it is not what a table says.
pub fn mismatch(
    outcome: &Outcome,
    expected: &Expected,
    cast: &Cast,
    call: &Call,
) -> Option<String> {
    let matches = match (outcome, expected) {
        (
            Outcome::Balanced {
                targets, affinity, ..
            },
            Expected::Answers {
                servers,
                masqueraded,
                one,
            },
        ) => {
            let mut found: Vec<_> = targets
                .iter()
                .map(
                    |Target {
                         backend,
                         masqueraded,
                     }| { (backend.ip, backend.port.get(), *masqueraded) },
                )
                .collect();
            let mut wanted: Vec<_> = servers
                .iter()
                .map(|server| {
                    let (name, port) = match server.split_once(':') {
                        Some((name, port)) => (name, port.parse().expect("a port")),
                        None => (server.as_str(), cast::PORT),
                    };
                    let ip = cast.address(name, call.family());
                    (ip, port, *masqueraded || name == call.from)
                })
                .collect();
            found.sort_unstable();
            wanted.sort_unstable();
            found == wanted && affinity.is_some() == *one
        }
        (Outcome::Refused(_), Expected::Refused)
        | (Outcome::Dropped(_), Expected::Dropped)
        | (Outcome::Unchanged, Expected::Unserved) => true,
        _ => false,
    };
    (!matches).then(|| format!("{outcome:?}"))
}

fn read(objects: &[Value]) -> Objects {
    fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).expect("the scene's objects are of the API")
    }
    let mut all = Objects::default();
    for object in objects {
        match object["kind"].as_str() {
            Some("Service") => all.services.push(typed(object)),
            Some("EndpointSlice") => all.slices.push(typed(object)),
            Some("Node") => all.nodes.push(typed(object)),
            Some("ServiceCIDR") => all.service_cidrs.push(typed(object)),
            other => panic!("a scene has no {other:?}"),
        }
    }
    all
}
