//! A stand-in for kube-proxy, for tests: as much of one as the bench sees.
//!
//! It takes kube-proxy's flags, follows the API server and writes rules of the shape that mode has, all of them anew each
//! time. Its `/healthz` is kube-proxy's, too: 200 from the start, with a time for each family, though nothing is written.
//! Its `/metrics` tell when that was done. It takes its time, so that who takes the 200 for a sign is found out.
//!
//! It is this test program itself: a script in its place starts the test [`is_a_kube_proxy`] with the flags. Where
//! `PROXYD_BENCH_PEER` names a real kube-proxy, the tests take that.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Service as ServiceObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use tempfile::TempDir;

use super::peer::PeerMode;
use super::workload::Service;

/// Hands the flags to the test that is the stand-in.
const VARIABLE: &str = "PROXYD_BENCH_STAND_IN";

/// Names a real kube-proxy.
const REAL: &str = "PROXYD_BENCH_PEER";

/// What kube-proxy needs until its first rules are written, at least.
const FIRST_SYNC: Duration = Duration::from_millis(300);

/// Puts the stand-in into a folder, as a program, and returns its path; or that of a real one.
pub(super) fn install(directory: &TempDir) -> PathBuf {
    if let Some(real) = std::env::var_os(REAL) {
        return real.into();
    }
    let program = directory.path().join("kube-proxy");
    let script = format!(
        "#!/bin/sh\n{VARIABLE}=\"$*\" exec '{}' --exact bench::stand_in::is_a_kube_proxy --nocapture\n",
        std::env::current_exe().unwrap().display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    program
}

/// kube-proxy's flags: those that it heeds, and those that it only takes.
#[derive(Parser)]
struct Flags {
    #[arg(long)]
    proxy_mode: String,
    #[arg(long)]
    healthz_bind_address: String,
    #[arg(long)]
    kubeconfig: PathBuf,
    #[arg(long)]
    hostname_override: String,
    #[arg(long)]
    metrics_bind_address: String,
    #[arg(long)]
    conntrack_max_per_core: u32,
    #[arg(long)]
    conntrack_min: u32,
}

/// Only the process that the script starts has something to do.
#[test]
fn is_a_kube_proxy() {
    let Ok(flags) = std::env::var(VARIABLE) else {
        return;
    };
    let flags = std::iter::once("kube-proxy").chain(flags.split(' '));
    let flags = Flags::parse_from(flags);
    let mode = PeerMode::from_str(&flags.proxy_mode, false).unwrap();
    let server = Server::start([&flags.healthz_bind_address, &flags.metrics_bind_address]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(follow(mode, &flags.kubeconfig, &server));
}

/// Serves `/healthz` and `/metrics`.
struct Server {
    is_written: Arc<AtomicBool>,
}

impl Server {
    fn start(addresses: [&str; 2]) -> Self {
        let is_written = Arc::<AtomicBool>::default();
        for address in addresses {
            let (listener, is_written) = (TcpListener::bind(address).unwrap(), is_written.clone());
            thread::spawn(move || {
                for stream in listener.incoming() {
                    // Who has gone does not want an answer any more.
                    drop(answer(&stream.unwrap(), is_written.load(Ordering::Relaxed)));
                }
            });
        }
        Self { is_written }
    }
}

fn answer(mut stream: &TcpStream, is_written: bool) -> io::Result<()> {
    let lines = BufReader::new(stream).lines();
    let head: Vec<_> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let body = match head.first() {
        Some(line) if line.starts_with("GET /healthz ") => {
            r#"{"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-01T00:00:00Z","healthy":true}}}"#
        }
        _ if is_written => {
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.7e+09\n"
        }
        _ => "",
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// What the API server has: of each Service its address, and of its slice the endpoints.
#[derive(Default)]
struct World {
    services: BTreeMap<usize, Ipv4Addr>,
    endpoints: BTreeMap<usize, Vec<Ipv4Addr>>,
}

enum Change {
    Service(usize, Option<Ipv4Addr>),
    Slice(usize, Option<Vec<Ipv4Addr>>),
}

impl World {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Service(number, Some(ip)) => drop(self.services.insert(number, ip)),
            Change::Service(number, None) => drop(self.services.remove(&number)),
            Change::Slice(number, Some(ips)) => drop(self.endpoints.insert(number, ips)),
            Change::Slice(number, None) => drop(self.endpoints.remove(&number)),
        }
    }

    /// All rules, of one table, which take the place of those that are there.
    fn rules(&self, mode: PeerMode) -> String {
        let table = mode.table();
        let (mut chains, mut ways, mut elements) = (String::new(), String::new(), String::new());
        for (number, cluster_ip) in &self.services {
            let service = Service {
                number: *number,
                cluster_ip: *cluster_ip,
            };
            let endpoints = self.endpoints.get(number).map_or(&[][..], |ips| ips);
            if endpoints.is_empty() {
                continue;
            }
            let chain = mode.service_chain(service);
            if mode == PeerMode::Iptables {
                for endpoint in endpoints {
                    let chain = mode.endpoint_chain(service, *endpoint);
                    writeln!(chains, "chain {chain} {{ counter accept; }}").unwrap();
                }
            }
            writeln!(chains, "chain {chain} {{").unwrap();
            match mode {
                PeerMode::Nftables => {
                    let all = endpoints.iter().enumerate();
                    let all = all.map(|(index, ip)| format!("{index} : {ip} . 8080"));
                    let (all, count) = (all.collect::<Vec<_>>().join(", "), endpoints.len());
                    let to = format!("numgen random mod {count} map {{ {all} }}");
                    writeln!(chains, "meta l4proto tcp dnat ip to {to}").unwrap();
                    writeln!(elements, "{cluster_ip} . tcp . 80 : goto {chain},").unwrap();
                }
                PeerMode::Iptables => {
                    for endpoint in endpoints {
                        let chain = mode.endpoint_chain(service, *endpoint);
                        writeln!(chains, "counter jump {chain};").unwrap();
                    }
                    writeln!(ways, "ip daddr {cluster_ip} tcp dport 80 jump {chain};").unwrap();
                }
            }
            writeln!(chains, "}}").unwrap();
        }
        if mode == PeerMode::Nftables {
            write!(
                chains,
                "map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict;
                 elements = {{ {elements} }}; }}"
            )
            .unwrap();
        }
        format!(
            "table ip {table} {{ }}\ndelete table ip {table}\n
             table ip {table} {{\n{chains}\nchain services {{\n{ways}\n}}\n}}\n"
        )
    }
}

/// Follows the API server for ever.
async fn follow(mode: PeerMode, kubeconfig: &std::path::Path, server: &Server) {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options);
    let client = Client::try_from(config.await.unwrap()).unwrap();
    let services: Api<ServiceObject> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::all(client);
    let all = ListParams::default();
    let (listed, of_slices) = tokio::try_join!(services.list(&all), slices.list(&all)).unwrap();
    let version = |metadata: kube::core::ListMeta| metadata.resource_version.unwrap();
    let mut world = World::default();
    listed
        .items
        .iter()
        .for_each(|s| world.apply(of_service(s, true)));
    of_slices
        .items
        .iter()
        .for_each(|s| world.apply(of_slice(s, true)));
    let params = WatchParams::default();
    let (at, at_slices) = (version(listed.metadata), version(of_slices.metadata));
    let services = services.watch(&params, &at).await.unwrap().boxed();
    let slices = slices.watch(&params, &at_slices).await.unwrap().boxed();
    tokio::time::sleep(FIRST_SYNC).await;
    load(&world.rules(mode));
    server.is_written.store(true, Ordering::Relaxed);
    let services = services.try_filter_map(async |event| Ok(told(event, of_service)));
    let slices = slices.try_filter_map(async |event| Ok(told(event, of_slice)));
    let mut changes =
        stream::select(services.boxed_local(), slices.boxed_local()).ready_chunks(1000);
    while let Some(batch) = changes.next().await {
        batch
            .into_iter()
            .for_each(|change| world.apply(change.unwrap()));
        load(&world.rules(mode));
    }
}

fn told<T>(event: WatchEvent<T>, change: fn(&T, bool) -> Change) -> Option<Change> {
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => Some(change(&object, true)),
        WatchEvent::Deleted(object) => Some(change(&object, false)),
        WatchEvent::Bookmark(_) => None,
        WatchEvent::Error(error) => panic!("{error:?}"),
    }
}

fn of_service(service: &ServiceObject, is_there: bool) -> Change {
    let ip = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_ref());
    let ip = ip.unwrap().parse().unwrap();
    Change::Service(number(&service.name_any()), is_there.then_some(ip))
}

fn of_slice(slice: &EndpointSlice, is_there: bool) -> Change {
    let addresses = slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|endpoint| &endpoint.addresses);
    let addresses = addresses.map(|address| address.parse().unwrap()).collect();
    Change::Slice(number(&slice.name_any()), is_there.then_some(addresses))
}

/// Of `svc-7` and `svc-7-abcde`: 7.
fn number(name: &str) -> usize {
    name.split('-').nth(1).unwrap().parse().unwrap()
}

fn load(rules: &str) {
    let mut nft = Command::new("nft");
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}
