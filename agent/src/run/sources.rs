//! Where events come from: opened first, when nothing is changed yet, and started later.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use ::kube::Client;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::RunError;
use super::changes::Changes;
use crate::config::{Config, SourceConfig};
use crate::event::Event;
use crate::host::addresses;
use crate::http::metrics::Requests;
use crate::source::kube::{self, Api, Patience};
use crate::source::manifests::{Manifests, Watched};
use crate::sync_loop::Message;

/// Where Services, EndpointSlices and the Node come from, and settings.
pub(super) struct Sources {
    objects: Objects,
    settings: Option<Changes>,
}

enum Objects {
    /// An API server, which may be away.
    Cluster(Api),
    /// Files, which are there.
    Files(Watched),
}

impl Sources {
    /// Finds out where events come from. Nothing is read yet but what says so.
    ///
    /// # Errors
    /// That nothing says so, or that it cannot be used.
    pub(super) fn open(
        runtime: &Runtime,
        config: &Config,
        requests: &Arc<Requests>,
    ) -> Result<Self, RunError> {
        let objects = match &config.source {
            SourceConfig::Kubernetes { kubeconfig, master } => {
                let api = kube::client(kubeconfig.as_ref(), master.as_ref(), requests);
                let api = runtime.block_on(api)?;
                Objects::Cluster(if config.streaming_lists {
                    api
                } else {
                    api.without_streaming_lists()
                })
            }
            SourceConfig::Manifests(paths) => Objects::Files(Watched::new(Manifests::at(paths)?)?),
        };
        let settings = config.file.as_ref().and_then(Changes::of);
        Ok(Self { objects, settings })
    }

    /// The client of the API server, if there is one.
    pub(super) fn client(&self) -> Option<Client> {
        match &self.objects {
            Objects::Cluster(api) => Some(api.client.clone()),
            Objects::Files(_) => None,
        }
    }

    /// Starts the tasks that send events. Where one ends, the agent ends.
    pub(super) fn start(self, runtime: &Runtime, node_name: &str, sender: &Sender<Message>) {
        let ends_with = |what: &'static str, task: JoinHandle<()>| {
            runtime.spawn(async move {
                match task.await {
                    Ok(()) => format!("{what} ended"),
                    Err(error) => format!("{what} ended: {error}"),
                }
            })
        };
        let send = send_to(sender);
        let node_name = node_name.to_owned();
        let watch_addresses = runtime.spawn(addresses::watch(send.clone()));
        let objects = match self.objects {
            Objects::Cluster(api) => {
                runtime.spawn(kube::watch(api, node_name, Patience::default(), send))
            }
            Objects::Files(watched) => {
                runtime.spawn_blocking(move || watched.run(&node_name, send))
            }
        };
        let settings = self.settings;
        let settings = settings.map(|changes| runtime.spawn_blocking(|| changes.wait()));
        let tasks = [
            Some(ends_with("the watch of addresses", watch_addresses)),
            Some(ends_with("the watch of Services", objects)),
            settings,
        ];
        for task in tasks.into_iter().flatten() {
            let sender = sender.clone();
            runtime.spawn(async move {
                let how = task.await.unwrap_or_else(|error| error.to_string());
                // If nobody listens, the agent is stopping already.
                let _ = sender.send(Message::SourceEnded(how));
            });
        }
    }
}

/// What sources call with an event. It tells whether events are still taken.
pub(super) fn send_to(sender: &Sender<Message>) -> impl Fn(Event) -> bool + Clone + Send + 'static {
    let sender = sender.clone();
    move |event| sender.send(Message::Event(event, Instant::now())).is_ok()
}
