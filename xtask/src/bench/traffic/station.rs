//! A station: a node with a client pod, a server pod and, most often, a proxy that serves so many Services.
//!
//! The proxy runs in the node's namespace and is fed by an API server at the node's loopback address. One Service, in the
//! middle of the others, has the server pod as its only endpoint; the others' endpoints are not there.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use proxyd_tests::agent::Agent;
use proxyd_tests::apiserver::{ApiServer, Options};
use proxyd_tests::cluster::{CLUSTER_CIDR, Cluster, Pod};
use proxyd_tests::generation::Generation;
use proxyd_tests::sockets::Sockets;
use proxyd_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::path as utf8;
use super::super::peer::{self, PeerMode};
use super::super::workload::Workload;
use super::load::{self, Figures, Load};
use super::server::{self, Port};
use super::{Caller, Label, To};

/// The first of the server's ports, and the first of the Service's: every packet has its port translated too.
const SERVER_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;

/// The endpoints of each Service that is not measured.
const ENDPOINTS: usize = 3;

/// How long a proxy may take until the Service answers: kube-proxy needs some 15 s for 10,000 Services.
const SYNC_PATIENCE: Duration = Duration::from_secs(180);

/// How long nothing may change in the rules before they are taken for complete.
const QUIET: Duration = Duration::from_secs(2);

/// How many lines of a proxy that does not serve are shown.
const SHOWN_LINES: usize = 20;

/// The tracked flows of UDP are of no use to anyone, and should not fill the table. Those of TCP stay for their two minutes
/// in TIME_WAIT, as on any node; there are no more of them than clients have ports.
const TIMEOUTS: &[(&str, &str)] = &[
    ("net/netfilter/nf_conntrack_udp_timeout", "1"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "1"),
];

/// A program that takes kube-proxy's flags, and how it is to do its work.
pub(super) struct Proxy {
    /// What it is called in the results.
    pub(super) name: String,
    binary: PathBuf,
    by: By,
}

/// What balances the client's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// nftables rules.
    Rules,
    /// Programs where its sockets connect.
    Sockets,
    /// Programs at the devices that its packets pass.
    Devices,
    /// The same, and packets of known connections go past the node's routing.
    FastPath,
    /// The rules of a peer.
    Peer(PeerMode),
}

impl Proxy {
    /// One that makes nftables rules.
    pub(super) fn new(name: &str, binary: &Path) -> Result<Self> {
        ensure!(binary.is_file(), "there is no {}", binary.display());
        Ok(Self {
            name: name.to_owned(),
            binary: binary.canonicalize()?,
            by: By::Rules,
        })
    }

    /// One that balances sockets.
    pub(super) fn at_sockets(name: &str, binary: &Path) -> Result<Self> {
        Ok(Self {
            by: By::Sockets,
            ..Self::new(name, binary)?
        })
    }

    /// One that translates packets at devices, as it does for clients whose sockets are elsewhere.
    pub(super) fn at_devices(name: &str, binary: &Path) -> Result<Self> {
        Ok(Self {
            by: By::Devices,
            ..Self::new(name, binary)?
        })
    }

    /// As [`at_devices`](Self::at_devices), past the node's routing.
    pub(super) fn on_fast_path(name: &str, binary: &Path) -> Result<Self> {
        Ok(Self {
            by: By::FastPath,
            ..Self::new(name, binary)?
        })
    }

    /// Another one than ours, in one of its modes.
    pub(super) fn peer(binary: &Path, mode: PeerMode) -> Result<Self> {
        Ok(Self {
            by: By::Peer(mode),
            ..Self::new(&peer::name(binary, mode), binary)?
        })
    }

    /// What its rules are made by.
    fn mode(&self) -> PeerMode {
        match self.by {
            By::Peer(mode) => mode,
            By::Rules | By::Sockets | By::Devices | By::FastPath => PeerMode::Nftables,
        }
    }
}

/// The node and what is on it.
pub(super) struct Station {
    /// The proxy's name, if there is one, and its number of Services.
    pub(super) proxy: Option<(String, u32)>,
    cluster_ip: IpAddr,
    balances_sockets: bool,
    client: Pod,
    server: Pod,
    // In this order: the proxy ends first.
    _agent: Option<Agent>,
    _sockets: Option<Sockets>,
    _api: Option<ApiServer>,
    directory: TempDir,
    cluster: Cluster,
}

impl Station {
    /// A station without any rules.
    pub(super) fn without_proxy() -> Result<Self> {
        let cluster = Cluster::new();
        let client = cluster.node1.pod("client");
        let server = cluster.node1.pod("server");
        for pod in [&client, &server] {
            pod.host.netns.sysctls(&[load::REUSE]);
        }
        server::start(&server.host.netns, SERVER_PORT)?;
        Ok(Self {
            proxy: None,
            cluster_ip: server.host.v4,
            balances_sockets: false,
            client,
            server,
            _agent: None,
            _sockets: None,
            _api: None,
            directory: TempDir::new()?,
            cluster,
        })
    }

    /// A station with a proxy that has all its rules in the kernel.
    pub(super) fn start(proxy: &Proxy, services: u32) -> Result<Self> {
        let mut station = Self::without_proxy()?;
        let workload = Workload {
            services: usize::try_from(services)?,
            endpoints: ENDPOINTS,
        };
        let node = &station.cluster.node1.host;
        let listener = node.enter(|| TcpListener::bind("127.0.0.1:0"))?;
        let api = ApiServer::serve_on(listener, Options::default());
        api.create(&node_object(&node.name, node.v4));
        let measured = workload.services / 2;
        for number in 0..workload.services {
            let mut service = workload.service(number);
            let mut slice = workload.slice(number, 0);
            if number == measured {
                let ip = service["spec"]["clusterIP"]
                    .as_str()
                    .context("no address")?;
                station.cluster_ip = ip.parse()?;
                measure(&mut service, &mut slice, station.server.host.v4);
            }
            api.create(&service);
            api.create(&slice);
        }
        let kubeconfig = station.directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig())?;
        let args = [
            "--hostname-override",
            &node.name,
            "--cluster-cidr",
            CLUSTER_CIDR,
            "--kubeconfig",
            utf8(&kubeconfig)?,
            // The machine's limit of flows is not for a bench to change.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--proxy-mode",
            proxy.mode().name(),
        ];
        let sockets = match proxy.by {
            By::Rules | By::Peer(_) => None,
            By::Sockets => {
                station.balances_sockets = true;
                let pods = [&station.client, &station.server];
                Some(Sockets::of(&pods.map(|pod| &pod.host.netns)))
            }
            By::Devices | By::FastPath => Some(Sockets::of(&[])),
        };
        let programs = sockets.iter().flat_map(Sockets::args);
        let fast = (proxy.by == By::FastPath).then_some("--fast-path");
        let args: Vec<&str> = args.into_iter().chain(programs).chain(fast).collect();
        let binary = utf8(&proxy.binary)?;
        let mut agent = Agent::start_binary(binary, &node.netns, &args);
        station.wait(&mut agent)?;
        node.netns.sysctls(TIMEOUTS);
        station.proxy = Some((proxy.name.clone(), services));
        station._agent = Some(agent);
        station._sockets = sockets;
        station._api = Some(api);
        Ok(station)
    }

    /// Waits until the Service answers and the rules change no more.
    fn wait(&self, agent: &mut Agent) -> Result<()> {
        let to = SocketAddr::new(self.cluster_ip, Port::Connect.number(SERVICE_PORT));
        let answers = || self.client.enter(|| load::connect_once(to)).is_ok();
        let answered = wait::poll(SYNC_PATIENCE, || {
            let ended = agent.exited();
            (ended.is_some() || answers()).then_some(ended)
        });
        if answered != Some(None) {
            let log = agent.log();
            let last = &log[log.len().saturating_sub(SHOWN_LINES)..];
            let why = answered.flatten().map_or_else(
                || format!("nobody answers at {to} within {SYNC_PATIENCE:?}"),
                |status| format!("it ended with {status}"),
            );
            bail!(
                "the proxy does not serve: {why}; it logged:\n{}",
                last.join("\n")
            );
        }
        let generation = Generation::of(&self.cluster.node1.host.netns)?;
        let (mut last, mut since) = (generation.get()?, Instant::now());
        let started = since;
        while since.elapsed() < QUIET {
            ensure!(
                started.elapsed() < SYNC_PATIENCE,
                "the rules change all the time"
            );
            thread::sleep(QUIET / 20);
            let now = generation.get()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Who calls here. Only where sockets are balanced does what the server pod calls stay in it.
    pub(super) fn clients(&self) -> &[Caller] {
        if self.balances_sockets {
            &[Caller::Client, Caller::Server]
        } else {
            &[Caller::Client]
        }
    }

    /// Puts a load on the way to an address, and notes its figures.
    pub(super) fn load(&self, load: Load, way: &Label, figures: &mut Figures) -> Result<()> {
        let (ip, port) = match way.to {
            To::Pod => (self.server.host.v4, SERVER_PORT),
            To::Service => (self.cluster_ip, SERVICE_PORT),
        };
        let client = match way.from {
            Caller::Client => &self.client,
            Caller::Server => &self.server,
        };
        client.enter(|| load::run(load, ip, port, figures))
    }
}

/// Makes a Service the measured one: all of the server's ports, and the server as its endpoint.
fn measure(service: &mut Value, slice: &mut Value, server: IpAddr) {
    let ports = |first: u16, key: &str| -> Value {
        let port = |port: &Port| {
            let mut object =
                json!({ "name": format!("{port:?}").to_lowercase(), "protocol": port.protocol() });
            object[key] = port.number(first).into();
            if key == "port" && first == SERVICE_PORT {
                object["targetPort"] = port.number(SERVER_PORT).into();
            }
            object
        };
        Port::ALL.iter().map(port).collect()
    };
    service["spec"]["ports"] = ports(SERVICE_PORT, "port");
    slice["ports"] = ports(SERVER_PORT, "port");
    let mut endpoint = slice["endpoints"][0].clone();
    endpoint["addresses"] = json!([server]);
    endpoint["nodeName"] = json!("node-1");
    slice["endpoints"] = json!([endpoint]);
}

/// The Node object of the proxy's own node; kube-proxy waits for it.
fn node_object(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "uid": "00000000-0000-0000-0001-000000000000" },
        "spec": { "podCIDRs": ["10.244.1.0/24"], "podCIDR": "10.244.1.0/24" },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    })
}
