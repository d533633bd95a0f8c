//! Wires the tasks for each mode of the program: sources send events, the loop takes them, servers tell of it.

mod changes;
mod servers;
mod sources;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::config::{Config, SourceConfig};
use crate::dataplane::ebpf::{self, Ebpf, Retiring};
use crate::dataplane::nft::Nft;
use crate::dataplane::{Backend, Dataplane, DataplaneError};
use crate::dry_run::{DryRun, Output, Settings, dry_run};
use crate::engine::Engine;
use crate::event::Event;
use crate::host::addresses::{self, AddressError};
use crate::host::closer::Closer;
use crate::host::reconciler::Reconciler;
use crate::host::sole::{self, Claim};
use crate::host::{families, other_proxy, sysctl};
use crate::http::Clock;
use crate::http::listen::ListenError;
use crate::http::metrics::Metrics;
use crate::logging::Verbosity;
use crate::machine::Machine;
use crate::model::{Family, PerFamily};
use crate::source::kube::{self, KubeError};
use crate::source::manifests::{ManifestError, Manifests};
use crate::sync_loop::{Draining, Ended, Message, Publisher, SyncLoop};
use sources::{Sources, send_to};

/// Why proxyd ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The runtime could not be started.
    #[error("starting: {0}")]
    Start(#[source] std::io::Error),
    /// The rules could not be printed.
    #[error("writing to standard output: {0}")]
    Output(#[source] std::io::Error),
    /// The API server cannot be used.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// A path of manifests cannot be read.
    #[error("--manifests {0}")]
    Manifests(#[from] ManifestError),
    /// The manifests cannot be watched.
    #[error("watching --manifests for changes: {0}")]
    Watch(#[from] notify::Error),
    /// The kernel's rules cannot be changed.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A source ended though the agent runs.
    #[error("{0}; stopping, to be started anew; the rules stay in place")]
    SourceEnded(String),
    /// What only root may do could not be done.
    #[error(
        "not all settings could be made; run proxyd --init-only as root (in a pod: privileged)"
    )]
    Init,
    /// The configuration could not be written.
    #[error("--write-config-to {}: {source}", path.display())]
    WriteConfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The machine's addresses are not known.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// An agent runs, and would undo what is asked for.
    #[error(
        "a proxyd runs here ({0}) and would put everything back, so nothing was removed; end it first \
         (in Kubernetes, its pod, and what starts it anew)"
    )]
    AgentRuns(String),
    /// An address of a server cannot be had, and that was said to end the agent.
    #[error("{place}: {source}; proxyd is not to run without it (--bind-address-hard-fail)")]
    Listen {
        /// The setting that names the address.
        place: String,
        /// Why nobody listens there.
        #[source]
        source: ListenError,
    },
}

/// Keeps the rules right until a signal ends it; they stay in place then. `verbosity` is that of the log.
///
/// # Errors
/// What makes it impossible to begin. Later failures are logged and tried again.
pub fn agent(config: &Config, verbosity: &Verbosity) -> Result<(), RunError> {
    let started = Instant::now();
    let runtime = runtime()?;
    // What the caller has to mend comes before what the machine lacks, and both before anything is changed.
    let metrics = Arc::new(Metrics::default());
    let sources = Sources::open(&runtime, config, metrics.requests())?;
    if config.backend == Backend::Ebpf {
        // What the machine lacks does not come by itself.
        ebpf::check(&config.places)?;
    }
    let mut nft = Nft::new(&config.skeleton)?;
    // The one failure that trying again does not mend; all others are tried again by the loop.
    nft.check()?;
    let mut signals = {
        let _context = runtime.enter();
        Signals::listen().map_err(RunError::Start)?
    };
    let alone = runtime.block_on(async {
        tokio::select! {
            name = signals.next() => Err(name),
            sole = sole::wait() => Ok(sole),
        }
    });
    let _sole = match alone {
        Ok(sole) => sole,
        Err(signal) => {
            info!("{signal}: stopping; the other proxyd keeps the rules");
            return Ok(());
        }
    };
    let start = Start {
        runtime: &runtime,
        config,
        verbosity,
        metrics,
        started,
        signals,
    };
    let ended = start.live(sources, nft);
    // Dropping it would wait for the task that reads files, which nobody ends.
    runtime.shutdown_background();
    match ended? {
        Ended::Signal(signal) => {
            info!("{signal}: stopping; the rules stay in place (proxyd --cleanup removes them)");
            Ok(())
        }
        Ended::SourceEnded(how) => Err(RunError::SourceEnded(how)),
    }
}

/// What the live agent is started with.
struct Start<'a> {
    runtime: &'a Runtime,
    config: &'a Config,
    verbosity: &'a Verbosity,
    metrics: Arc<Metrics>,
    started: Instant,
    signals: Signals,
}

impl Start<'_> {
    /// Starts all tasks of the live agent, and runs its loop to the end.
    fn live(self, sources: Sources, mut nft: Nft) -> Result<Ended, RunError> {
        let Self {
            runtime,
            config,
            verbosity,
            metrics,
            started,
            signals,
        } = self;
        let (sender, receiver) = mpsc::channel();
        let clock = Clock::new(started);
        let absent = absent_families();
        let publisher = {
            let _context = runtime.enter();
            runtime.spawn(stop_on_signals(signals, sender.clone()));
            let client = sources.client();
            let metrics = Arc::clone(&metrics);
            let publisher = Publisher::new(clock, client.is_none(), absent, metrics);
            servers::start(config, client, clock, verbosity, &publisher)?;
            publisher
        };
        sources.start(runtime, &config.node_name, &sender);
        // From here on the kernel is changed.
        sysctl::tune(&config.conntrack, Path::new("/"));
        nft.watch(send_to(&sender))?;
        let mut dataplane = dataplane(config, nft, send_to(&sender))?;
        drop(sender);
        info!(
            "node {}: waiting for Services, EndpointSlices, the Node and the machine's addresses",
            config.node_name
        );
        let of_others = Arc::clone(&metrics);
        other_proxy::watch(move |found| of_others.other_proxy(found)).map_err(RunError::Start)?;
        let tracked = Reconciler::start(move |report| {
            for family in Family::ALL {
                if let Some(deleted) = *report.deleted.get(family) {
                    metrics.conntrack(family, report.duration, deleted);
                }
            }
        });
        let sockets = match config.backend {
            Backend::Nftables => None,
            Backend::Ebpf => Some(Closer::start(&config.places).map_err(RunError::Start)?),
        };
        let draining = Draining {
            tracked: tracked.map_err(RunError::Start)?,
            sockets,
        };
        let engine = Engine::new(config.plan.clone())
            .ending_tcp(config.closes_tcp)
            .without(absent)
            .relaying(relayed(config));
        let machine = Machine::new(engine, fastrand::u64(..));
        let dataplane = dataplane.as_mut();
        Ok(SyncLoop::new(machine, dataplane, publisher, draining, clock).run(&receiver))
    }
}

/// The families that the kernel lacks, which is said.
fn absent_families() -> PerFamily<bool> {
    let lacking = families::lacking();
    for family in Family::ALL {
        if let Some(why) = *lacking.get(family) {
            warn!(
                "the kernel has no {family}: {why}; addresses of Services of that family are not served, and it does not count \
                 for /healthz"
            );
        }
    }
    PerFamily::from_fn(|family| lacking.get(family).is_some())
}

/// The families whose NodePorts are relayed at the loopback address. Programs serve those of IPv4 at sockets already, of every
/// protocol.
fn relayed(config: &Config) -> PerFamily<bool> {
    let asked = config.plan.node_port_addresses.localhost;
    match config.backend {
        Backend::Nftables => asked,
        Backend::Ebpf => PerFamily { v4: false, ..asked },
    }
}

/// The data plane of the back end that was asked for. What the other one had beside the rules retires.
fn dataplane(
    config: &Config,
    nft: Nft,
    report: impl Fn(Event) -> bool + Send + Sync + 'static,
) -> Result<Box<dyn Dataplane>, DataplaneError> {
    match config.backend {
        Backend::Nftables if config.places.pins.exists() => {
            Ok(Box::new(Retiring::new(nft, &config.places)))
        }
        Backend::Nftables => Ok(Box::new(nft)),
        Backend::Ebpf => {
            let detector = &config.skeleton.detector;
            Ok(Box::new(Ebpf::attach(
                nft,
                &config.places,
                detector,
                report,
            )?))
        }
    }
}

/// Makes the settings that only root may make, so that an agent with CAP_NET_ADMIN alone finds them made.
///
/// # Errors
/// That one could not be made; which and why was logged.
pub fn init(config: &Config) -> Result<(), RunError> {
    let is_tuned = sysctl::tune(&config.conntrack, Path::new("/"));
    let is_reserved = config.backend == Backend::Nftables || ebpf::reserve_ports();
    if is_tuned && is_reserved {
        info!("all settings are made; proxyd can run without --init-only now");
        Ok(())
    } else {
        Err(RunError::Init)
    }
}

/// Writes the configuration in force as a file for `--config`.
///
/// # Errors
/// That the file cannot be written.
pub fn write_config(config: &Config, path: &Path) -> Result<(), RunError> {
    let written = std::fs::write(path, config.to_yaml());
    let path = path.to_owned();
    written.map_err(|source| RunError::WriteConfig { path, source })
}

/// Removes our rules from the kernel, where no agent runs that would put them back.
///
/// # Errors
/// That one runs. The kernel's refusal for one family; the other was tried all the same.
pub fn cleanup(config: &Config) -> Result<(), RunError> {
    // None begins meanwhile.
    let _sole = match sole::claim() {
        Ok(Claim::Agents(holder)) => return Err(RunError::AgentRuns(holder.to_string())),
        Ok(Claim::Ours(sole)) => Some(sole),
        Ok(Claim::Strangers(_)) | Err(_) => None,
    };
    let mut dataplane = Nft::new(&config.skeleton)?;
    let results = Family::ALL.map(|family| dataplane.cleanup(family));
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    if ebpf::detach(&config.places)? {
        info!("removed {}", config.places.pins.display());
    }
    Ok(())
}

/// Plans everything once. Nothing is changed; with manifests nothing but files and, where the rules depend on
/// them, the machine's addresses are read. Also returns what was wrong with the manifests.
///
/// # Errors
/// That the API server or the machine's addresses cannot be read.
pub fn plan_once(
    config: &Config,
    output: Output,
) -> Result<(DryRun, Vec<ManifestError>), RunError> {
    let runtime = runtime()?;
    let (objects, errors, without_services) = match &config.source {
        SourceConfig::Manifests(paths) => {
            let reading = Manifests::at(paths)?.read();
            let without_services = reading.without_services();
            (reading.objects, reading.errors, without_services)
        }
        SourceConfig::Kubernetes { kubeconfig, master } => {
            let objects = runtime.block_on(async {
                let requests = Arc::default();
                let api = kube::client(kubeconfig.as_ref(), master.as_ref(), &requests).await?;
                kube::list_once(&api, &config.node_name).await
            })?;
            (objects, Vec::new(), None)
        }
    };
    // NodePorts can go by the Node object alone; whether this node may call what source ranges guard cannot.
    let node_says = !objects.has_source_ranges()
        && config.plan.node_port_addresses.networks.is_empty()
        && objects.own_node(&config.node_name).is_some();
    let host_addresses = if node_says {
        Default::default()
    } else {
        runtime.block_on(addresses::list())?
    };
    let settings = Settings {
        node_name: &config.node_name,
        plan: &config.plan,
        skeleton: &config.skeleton,
        backend: config.backend,
        table_size: config.places.table_size,
        output,
        host_addresses,
        unread: errors.iter().filter(|error| error.is_refusal()).count(),
        only: config.only.clone(),
    };
    let mut planned = dry_run(&objects, &settings);
    if without_services.is_some() {
        planned.text.clear();
        planned.failure = without_services;
    }
    Ok((planned, errors))
}

fn runtime() -> Result<Runtime, RunError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Start)
}

/// The signals that end the agent.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens to them. Must run on a tokio runtime.
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The name of the next one that comes.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Sends the message to stop when the first signal to end comes.
async fn stop_on_signals(mut signals: Signals, sender: Sender<Message>) {
    let name = signals.next().await;
    // If nobody listens, the agent is stopping already.
    let _ = sender.send(Message::Stop(name));
}
