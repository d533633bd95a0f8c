//! Flags and the file of `--config` → checked configuration, once, before anything runs.
//!
//! Both become raw settings, each with the place where it was made; flags are laid over the file; what comes of
//! it is checked in one way. I/O: reads the file, and the host's name where no other was given.

mod check;
mod detect;
mod duration;
mod effective;
mod file;
mod gates;
mod given;
mod node_ports;
mod note;
mod raw;
mod yaml;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use check::boolean;
pub use given::ConfigError;
pub use note::Note;

use crate::cli::Cli;
use crate::dataplane::Backend;
use crate::dataplane::ebpf::Places;
use crate::dataplane::nft::SkeletonConfig;
use crate::dry_run::Output;
use crate::host::sysctl::ConntrackConfig;
use crate::http::{health, metrics_server};
use crate::model::ObjectName;
use crate::plan::PlanConfig;
use crate::source::kube::KubeconfigFile;
use check::Server;
use file::File;
use node_ports::ProxyMode;
use raw::Raw;

/// What proxyd is to do, and with what.
#[derive(Debug, Clone)]
pub struct Config {
    /// What to do.
    pub mode: Mode,
    /// The one Service that a dry run prints; nothing: all.
    pub only: Option<ObjectName>,
    /// Where Services, EndpointSlices and the Node come from.
    pub source: SourceConfig,
    /// Whether lists are streamed where the API server can (the feature gate `WatchListClient`).
    pub streaming_lists: bool,
    /// The name of this node.
    pub node_name: String,
    /// Settings of the plan.
    pub plan: PlanConfig,
    /// Settings of the rules' skeleton.
    pub skeleton: SkeletonConfig,
    /// What balances.
    pub backend: Backend,
    /// Where things of the machine are that the eBPF back end needs.
    pub places: Places,
    /// TCP connections to endpoints that are gone are closed, where sockets are balanced.
    pub closes_tcp: bool,
    /// How to log.
    pub logging: LogConfig,
    /// Settings of what others can ask.
    pub health: HealthConfig,
    /// Where the addresses of the servers were set.
    pub server_places: ServerPlaces,
    /// Settings of the kernel's connection tracking.
    pub conntrack: ConntrackConfig,
    /// The file that settings came from.
    pub file: Option<ConfigFile>,
    /// What an operator should know of these settings: those without effect, or with less than they may think.
    /// To be logged at the start.
    pub notes: Vec<Note>,
}

/// The file of `--config` as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its path.
    pub path: PathBuf,
    /// What it held.
    pub text: String,
}

/// Where the addresses of the servers were set: a flag, or a field and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPlaces {
    /// That of [`HealthConfig::healthz`].
    pub healthz: String,
    /// That of [`HealthConfig::metrics`].
    pub metrics: String,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Keep the rules right until told to stop.
    Agent,
    /// Print the rules, or what they come to.
    DryRun(Output),
    /// Remove the rules.
    Cleanup,
    /// Make the settings that only root may make.
    Init,
    /// Write the configuration to a file.
    WriteConfig(PathBuf),
}

/// Where Services, EndpointSlices and the Node come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// Files and directories; `-` is standard input.
    Manifests(Vec<PathBuf>),
    /// A Kubernetes API server.
    Kubernetes {
        /// The kubeconfig file.
        kubeconfig: Option<KubeconfigFile>,
        /// The URL of the API server.
        master: Option<http::Uri>,
    },
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// What a line looks like (`--logging-format`).
    pub format: LogFormat,
    /// How much (`-v`).
    pub verbosity: u8,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object, with the field names of Kubernetes' components.
    Json,
}

/// What others can ask proxyd, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// Where `/healthz` and `/livez` are served; `None` for nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is served; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether an address that cannot be had ends the agent; else it is a warning.
    pub hard_fail: bool,
    /// Whether the log's verbosity can be set over HTTP.
    pub profiling: bool,
    /// An update that waits for longer than twice this means that the rules are out of sync.
    pub sync_period: Duration,
}

impl Config {
    /// Reads the file that the flags name, if any, and checks everything.
    ///
    /// # Errors
    /// That the file cannot be used, or the first setting that cannot.
    pub fn from_cli(mut cli: Cli) -> Result<Self, ConfigError> {
        let written_to = cli.write_config_to.take().filter(|path| !path.is_empty());
        let mode = match written_to {
            Some(path) => Mode::WriteConfig(path.into()),
            None if cli.dry_run => Mode::DryRun(check::output(cli.output, cli.backend.backend)?),
            None if cli.cleanup => Mode::Cleanup,
            None if cli.init_only => Mode::Init,
            None => Mode::Agent,
        };
        let file = cli.config.as_deref().filter(|path| !path.is_empty());
        let file = file.map(|path| File::read(path.as_ref())).transpose()?;
        let manifests = std::mem::take(&mut cli.source.manifests);
        let only = cli.service.take();
        let without_effect = cli.ignored.given.iter();
        let mut notes: Vec<_> = without_effect
            .map(|flag| Note::warn(format!("--{flag} has no effect: proxyd has no use for it")))
            .collect();
        notes.extend(file.iter().flat_map(File::notes).cloned());
        let contents = file.as_ref().map(|file| {
            let (path, text) = file.contents();
            ConfigFile {
                path: path.to_owned(),
                text: text.to_owned(),
            }
        });

        let backend = cli.backend.backend;
        let closes_tcp = cli.backend.close_tcp_of_deleted_endpoints;
        let for_programs = [
            (closes_tcp, "--close-tcp-of-deleted-endpoints"),
            (cli.backend.fast_path, "--fast-path"),
        ];
        let idle = for_programs
            .iter()
            .filter(|(is_given, _)| *is_given && backend != Backend::Ebpf);
        notes.extend(
            idle.map(|(_, flag)| {
                Note::warn(format!("{flag} has no effect without --backend ebpf"))
            }),
        );
        let places = Places {
            cgroup: cli.backend.cgroup.take(),
            pins: std::mem::take(&mut cli.backend.bpf_path),
            devices: std::mem::take(&mut cli.backend.devices),
            tcx: cli.backend.enable_tcx,
            fast_path: cli.backend.fast_path,
            table_size: cli.backend.maglev_table_size,
            connections: cli.backend.connection_table_size,
        };
        let rejects_unused_ports = cli.traffic.reject_unused_service_ports;
        let flags = Raw::of_flags(cli)?;
        let mode_flag = flags.proxy_mode.as_ref().map(|given| given.value.clone());
        let has_file = file.is_some();
        let raw = match file {
            Some(file) => flags.over(file.into_raw(mode_flag.as_deref())),
            None => flags,
        };
        let (gates, of_gates) = gates::gates(&raw.feature_gates);
        notes.extend(of_gates);
        let proxy_mode = ProxyMode::of(&raw, has_file)?;
        let (node_port_addresses, of_node_ports) =
            node_ports::addresses(&raw, proxy_mode, gates.localhost_node_ports)?;
        notes.extend(of_node_ports);
        notes.extend(ignored_bind_address(&raw)?);
        let detection = detect::detection(&raw)?;
        notes.extend(detection.note.map(Note::warn));
        Ok(Self {
            mode,
            only,
            source: source(manifests, &raw)?,
            streaming_lists: gates.streaming_lists,
            node_name: check::node_name(raw.hostname_override.as_ref())?,
            plan: PlanConfig {
                node_port_addresses,
                pod_networks: detection.pod_networks,
                masquerade_all: raw.masquerade_all.unwrap_or(false),
                external_ips: gates.external_ips,
            },
            skeleton: SkeletonConfig {
                detector: detection.detector,
                masquerade_bit: check::masquerade_bit(raw.masquerade_bit.as_ref())?,
                rejects_unused_ports,
            },
            backend,
            places,
            closes_tcp: closes_tcp && backend == Backend::Ebpf,
            logging: LogConfig {
                format: check::log_format(raw.log_format.as_ref())?,
                verbosity: check::verbosity(raw.verbosity.as_ref())?,
            },
            health: health(&raw)?,
            server_places: ServerPlaces {
                healthz: healthz_server(&raw).place(),
                metrics: metrics_server(&raw).place(),
            },
            conntrack: conntrack(&raw)?,
            file: contents,
            notes,
        })
    }
}

fn source(manifests: Vec<PathBuf>, raw: &Raw) -> Result<SourceConfig, ConfigError> {
    if !manifests.is_empty() {
        return Ok(SourceConfig::Manifests(manifests));
    }
    Ok(SourceConfig::Kubernetes {
        kubeconfig: raw.kubeconfig.as_ref().map(|given| KubeconfigFile {
            path: given.value.clone(),
            place: given.place.to_string(),
        }),
        master: raw.master.as_ref().map(check::url).transpose()?,
    })
}

/// Tells those who name an address of the node by `--bind-address` that proxyd goes by the Node object.
fn ignored_bind_address(raw: &Raw) -> Result<Option<Note>, ConfigError> {
    let address = check::bind_address(raw.bind_address.as_ref())?;
    let place = raw.bind_address.as_ref().map(|given| &given.place);
    Ok(place.filter(|_| !address.is_unspecified()).map(|place| {
        Note::warn(format!(
            "{place}: {address} has no effect: the Node object says which addresses are the node's"
        ))
    }))
}

/// Where health is told.
fn healthz_server(raw: &Raw) -> Server<'_> {
    Server {
        flag: "healthz-bind-address",
        address: raw.healthz_bind_address.as_ref(),
        port: raw.healthz_port.as_ref(),
        local: false,
        default_port: health::DEFAULT_PORT,
    }
}

/// Where metrics are told.
fn metrics_server(raw: &Raw) -> Server<'_> {
    Server {
        flag: "metrics-bind-address",
        address: raw.metrics_bind_address.as_ref(),
        port: raw.metrics_port.as_ref(),
        local: true,
        default_port: metrics_server::DEFAULT_PORT,
    }
}

fn health(raw: &Raw) -> Result<HealthConfig, ConfigError> {
    let bind_address = check::bind_address(raw.bind_address.as_ref())?;
    Ok(HealthConfig {
        healthz: healthz_server(raw).address(bind_address)?,
        metrics: metrics_server(raw).address(bind_address)?,
        hard_fail: raw.bind_address_hard_fail.unwrap_or(false),
        profiling: raw.profiling.unwrap_or(false),
        sync_period: check::sync_period(raw.sync_period.as_ref())?,
    })
}

fn conntrack(raw: &Raw) -> Result<ConntrackConfig, ConfigError> {
    const HOUR: Duration = Duration::from_secs(3_600);
    let timeout = |given: &Option<_>, default| check::timeout(given.as_ref(), default);
    Ok(ConntrackConfig {
        max_per_core: check::count(raw.conntrack_max_per_core.as_ref(), 32 * 1_024)?,
        min: check::count(raw.conntrack_min.as_ref(), 128 * 1_024)?,
        tcp_established: timeout(&raw.tcp_timeout_established, 24 * HOUR)?,
        tcp_close_wait: timeout(&raw.tcp_timeout_close_wait, HOUR)?,
        tcp_be_liberal: raw.tcp_be_liberal.unwrap_or(false),
        udp: timeout(&raw.udp_timeout, Duration::ZERO)?,
        udp_stream: timeout(&raw.udp_timeout_stream, Duration::ZERO)?,
    })
}

#[cfg(test)]
mod tests;
