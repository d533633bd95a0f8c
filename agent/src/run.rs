//! Wires the tasks: sources send events, one loop owns the engine and brings the kernel along.
//!
//! No change waits for a timer: the first event is synced at once, and those that arrive meanwhile go together
//! into the next sync. The loop has a thread of its own, because talking to the kernel blocks.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};

use crate::config::{Config, SourceConfig};
use crate::dataplane::nft::Nft;
use crate::dataplane::{Dataplane, DataplaneError};
use crate::dry_run::{DryRun, Settings, dry_run};
use crate::engine::Engine;
use crate::event::Event;
use crate::host::addresses::{self, AddressError};
use crate::model::{Family, PerFamily};
use crate::plan::NodePortAddresses;
use crate::source::kube::{self, KubeError};
use crate::source::manifests::{self, ManifestError, Manifests};

/// The first pause after a failed sync; it doubles with each failure in a row.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest pause after a failed sync.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

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
    /// The kernel's rules cannot be changed.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The machine's addresses are not known.
    #[error(transparent)]
    Addresses(#[from] AddressError),
}

/// What the loop takes.
enum Message {
    Event(Event),
    Stop(&'static str),
}

/// Keeps the rules right until a signal ends it; they stay in place then.
///
/// # Errors
/// What makes it impossible to begin. Later failures are logged and tried again.
pub fn agent(config: &Config) -> Result<(), RunError> {
    let started = Instant::now();
    let mut dataplane = Nft::new(&config.skeleton)?;
    let runtime = runtime()?;
    let (sender, receiver) = mpsc::channel();
    start_sources(&runtime, config, &sender)?;
    {
        let _context = runtime.enter();
        runtime.spawn(stop_on_signals(sender).map_err(RunError::Start)?);
    }
    info!(
        "node {}: waiting for Services, EndpointSlices, the Node and the machine's addresses",
        config.node_name
    );
    let mut engine = Engine::new(config.plan.clone());
    let signal = sync_loop(&mut engine, &mut dataplane, &receiver, started);
    info!("{signal}: stopping; the rules stay in place (proxyd --cleanup removes them)");
    runtime.shutdown_background();
    Ok(())
}

/// Starts the tasks that send events.
fn start_sources(
    runtime: &Runtime,
    config: &Config,
    sender: &Sender<Message>,
) -> Result<(), RunError> {
    let send = {
        let sender = sender.clone();
        move |event| sender.send(Message::Event(event)).is_ok()
    };
    runtime.spawn(addresses::watch(send.clone()));
    let node_name = config.node_name.clone();
    match &config.source {
        SourceConfig::Kubernetes { kubeconfig, master } => {
            let client =
                runtime.block_on(kube::client(kubeconfig.as_deref(), master.as_deref()))?;
            runtime.spawn(kube::watch(client, node_name, send));
        }
        SourceConfig::Manifests(paths) => {
            let paths = paths.clone();
            runtime.spawn_blocking(move || {
                if let Err(error) = manifests::watch(&paths, &node_name, send) {
                    warn!("manifests are not watched for changes any more: {error}");
                }
            });
        }
    }
    Ok(())
}

/// Handles events and syncs until a message says to stop; returns why.
fn sync_loop(
    engine: &mut Engine,
    dataplane: &mut dyn Dataplane,
    receiver: &Receiver<Message>,
    started: Instant,
) -> &'static str {
    let mut retry = PerFamily::<Retry>::default();
    let mut in_sync_once = false;
    loop {
        let due = Family::ALL
            .into_iter()
            .filter_map(|family| retry.get(family).at)
            .min();
        let first = match due {
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let received = Instant::now();
        let first = match first {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return "every source ended",
        };
        for message in first.into_iter().chain(receiver.try_iter()) {
            match message {
                Message::Event(event) => engine.handle(event),
                Message::Stop(signal) => return signal,
            }
        }
        for family in Family::ALL {
            let retry = retry.get_mut(family);
            if retry.at.is_none_or(|at| at <= received) {
                sync(engine, dataplane, family, retry);
            }
        }
        let in_sync = engine.is_ready()
            && Family::ALL
                .iter()
                .all(|family| retry.get(*family).at.is_none());
        if in_sync && !std::mem::replace(&mut in_sync_once, true) {
            info!(
                "in sync {} ms after the start: {} Services have rules; {} objects are not served or only in part",
                started.elapsed().as_millis(),
                engine.snapshot().service_count(),
                engine.complaint_count(),
            );
        }
    }
}

/// When and how a family that failed is tried again.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    failures: u32,
    reported: String,
}

/// Syncs one family, and notes when to try again if it fails.
fn sync(engine: &mut Engine, dataplane: &mut dyn Dataplane, family: Family, retry: &mut Retry) {
    let started = Instant::now();
    match engine.sync(family, dataplane) {
        Ok(synced) => {
            if synced.full || synced.changes > 0 {
                debug!("{family}: {synced} in {:?}", started.elapsed());
            }
            if retry.failures > 0 {
                info!("{family}: in sync again after {} failures", retry.failures);
            }
            *retry = Retry::default();
        }
        Err(error) => {
            let pause = FIRST_RETRY
                .saturating_mul(1 << retry.failures.min(16))
                .min(LONGEST_RETRY);
            retry.at = Some(started + pause);
            retry.failures += 1;
            let text = error.to_string();
            // The same failure again is no news.
            if text != retry.reported {
                warn!("{family}: the rules are not in sync: {text}; trying again");
                retry.reported = text;
            }
        }
    }
}

/// Removes our rules from the kernel.
///
/// # Errors
/// The kernel's refusal for one family; the other was tried all the same.
pub fn cleanup(config: &Config) -> Result<(), RunError> {
    let mut dataplane = Nft::new(&config.skeleton)?;
    let results = Family::ALL.map(|family| dataplane.cleanup(family));
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(())
}

/// Plans everything once. Nothing is changed; with manifests nothing but files and, where the rules depend on
/// them, the machine's addresses are read. Also returns what was wrong with the manifests.
///
/// # Errors
/// That the API server or the machine's addresses cannot be read.
pub fn plan_once(config: &Config) -> Result<(DryRun, Vec<ManifestError>), RunError> {
    let runtime = runtime()?;
    let (objects, errors) = match &config.source {
        SourceConfig::Manifests(paths) => Manifests::new(paths).read(),
        SourceConfig::Kubernetes { kubeconfig, master } => {
            let objects = runtime.block_on(async {
                let client = kube::client(kubeconfig.as_deref(), master.as_deref()).await?;
                kube::list_once(&client, &config.node_name).await
            })?;
            (objects, Vec::new())
        }
    };
    let node_says = config.plan.node_port_addresses == NodePortAddresses::Primary
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
        host_addresses,
    };
    Ok((dry_run(&objects, settings), errors))
}

fn runtime() -> Result<Runtime, RunError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Start)
}

/// Sends the message to stop when the first signal to end comes.
fn stop_on_signals(sender: Sender<Message>) -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        // If nobody listens, the agent is stopping already.
        let _ = sender.send(Message::Stop(name));
    })
}
