//! The made-up cluster on a real API server.
//!
//! All objects are in namespaces of their own, which must not be there before and are removed at the end, with what is
//! in them: also after an error, and after Ctrl-C. (After a SIGKILL they stay; the next run says how to remove them.)
//! The server allocates the ClusterIPs. Services have no selector, so no controller of the cluster touches their slices.
//! The proxy says that it is a node that is there; it only reads what belongs to others.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use proxyd_tests::apiserver::Resource;
use proxyd_tests::netns::Netns;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::super::workload::{NAMESPACES, namespace};
use super::listener::Listener;
use super::relay::Relay;
use super::{Taken, address};

/// How many requests are on their way at once where order does not matter.
const CONCURRENCY: usize = 32;

/// How long our namespaces may take to be gone, and how often they are looked for.
const GONE_PATIENCE: Duration = Duration::from_secs(300);
const GONE_INTERVAL: Duration = Duration::from_millis(100);

/// When a controller that removes namespaces has begun with them, if there is one: Kubernetes' waits for five seconds.
const CONTROLLER_PATIENCE: Duration = Duration::from_secs(15);

/// What our namespaces are labelled with.
const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "proxyd-bench");

/// A real API server, with our namespaces on it. Dropping it removes them.
pub(super) struct Real {
    objects: Arc<Objects>,
    node: String,
    kubeconfig: Kubeconfig,
    server: (String, u16),
    relay: Option<Relay>,
    received: Arc<AtomicU64>,
    /// The server's process, if it is on this machine.
    process: Option<Listener>,
    runtime: Runtime,
}

impl Real {
    /// Connects to a server, and makes our namespaces there.
    pub(super) fn connect(file: &Path) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(file)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options);
        let config = runtime.block_on(config)?;
        let url = &config.cluster_url;
        let port = if url.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let host = url.host().context("the kubeconfig names no server")?;
        let server = (
            host.trim_matches(['[', ']']).to_owned(),
            url.port_u16().unwrap_or(port),
        );
        let _context = runtime.enter();
        let objects = Arc::new(Objects(Client::try_from(config)?));
        let node = runtime.block_on(objects.any_node())?;
        runtime.block_on(objects.refuse_leftovers())?;
        remove_on_signals(&runtime, &objects)?;
        let real = Self {
            objects,
            node,
            kubeconfig,
            process: Listener::find(&server.0, server.1),
            server,
            relay: None,
            received: Arc::default(),
            runtime,
        };
        match &real.process {
            Some(process) => println!("the API server's CPU is that of {}", process.name),
            None => println!("NOT RUN: the API server's CPU: it is not on this machine"),
        }
        // From here on an error drops it, which removes what has been made.
        real.runtime.block_on(real.objects.make_namespaces())?;
        Ok(real)
    }

    /// The name of a node of the cluster.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Makes the server reachable in a namespace of the network, and returns a kubeconfig for there.
    pub(super) fn attach(&mut self, netns: &Netns) -> Result<String> {
        let (server, received) = (self.server.clone(), self.received.clone());
        let relay = Relay::start(&self.runtime, netns, server, received)?;
        let mut kubeconfig = self.kubeconfig.clone();
        for named in &mut kubeconfig.clusters {
            let Some(cluster) = &mut named.cluster else {
                continue;
            };
            let scheme = match &cluster.server {
                Some(server) if server.starts_with("http://") => "http",
                _ => "https",
            };
            cluster.server = Some(format!("{scheme}://{}", relay.address));
            // The certificate is for the server's name, which the relay does not have.
            cluster
                .tls_server_name
                .get_or_insert_with(|| self.server.0.clone());
        }
        self.relay = Some(relay);
        // JSON is YAML.
        Ok(serde_json::to_string(&kubeconfig)?)
    }

    /// What was taken from the server so far: what it sent through namespaces, and its CPU time, whatever for.
    pub(super) fn taken(&self) -> Result<Taken> {
        Ok(Taken {
            bytes: self.received.load(Ordering::Relaxed),
            cpu: self.process.as_ref().map(Listener::cpu).transpose()?,
        })
    }

    /// Creates Services with their slices, and returns their ClusterIPs, in order.
    pub(super) fn create(&self, pairs: Vec<[Value; 2]>) -> Result<Vec<Ipv4Addr>> {
        let create = async |[service, slice]: [Value; 2]| {
            let made = self.objects.create_service(service).await?;
            let mut slice: EndpointSlice = typed(slice)?;
            slice.metadata.uid = None;
            let namespace = slice.namespace().unwrap_or_default();
            let slices: Api<EndpointSlice> = self.objects.api(&namespace);
            slices.create(&PostParams::default(), &slice).await?;
            address(&serde_json::to_value(made)?)
        };
        self.runtime.block_on(
            stream::iter(pairs)
                .map(create)
                .buffered(CONCURRENCY)
                .try_collect(),
        )
    }

    /// Replaces a slice.
    pub(super) fn replace(&self, slice: Value) -> Result<()> {
        let mut slice: EndpointSlice = typed(slice)?;
        slice.metadata.uid = None;
        let namespace = slice.namespace().unwrap_or_default();
        let slices: Api<EndpointSlice> = self.objects.api(&namespace);
        let name = slice.name_any();
        let replace = async {
            slices
                .replace(&name, &PostParams::default(), &slice)
                .await
                .map(drop)
        };
        Ok(self.runtime.block_on(replace)?)
    }

    /// Deletes a Service or a slice.
    pub(super) fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        let gone = self.objects.delete(resource, namespace, name);
        Ok(self.runtime.block_on(gone)?)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.objects.remove()) {
            eprintln!("error: what the bench made on the server is not all removed: {error:#}");
            eprintln!("{}", how_to_remove());
        }
    }
}

/// Our objects on the server.
struct Objects(Client);

impl Objects {
    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.0.clone(), namespace)
    }

    async fn any_node(&self) -> Result<String> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        let first = nodes.list(&ListParams::default().limit(1)).await?;
        let first = first.items.first().context("the cluster has no node")?;
        Ok(first.name_any())
    }

    async fn refuse_leftovers(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.0.clone());
        for number in 0..NAMESPACES {
            if namespaces.get_opt(&namespace(number)).await?.is_some() {
                bail!(
                    "{} is there already; {}",
                    namespace(number),
                    how_to_remove()
                );
            }
        }
        Ok(())
    }

    async fn make_namespaces(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.0.clone());
        for number in 0..NAMESPACES {
            let object = json!({ "metadata": { "name": namespace(number), "labels": { LABEL.0: LABEL.1 } } });
            namespaces
                .create(&PostParams::default(), &typed(object)?)
                .await?;
        }
        Ok(())
    }

    async fn create_service(&self, service: Value) -> Result<Service> {
        let mut service: Service = typed(service)?;
        service.metadata.uid = None;
        service.status = None;
        if let Some(spec) = &mut service.spec {
            (spec.cluster_ip, spec.cluster_ips, spec.selector) = (None, None, None);
        }
        let namespace = service.namespace().unwrap_or_default();
        let services: Api<Service> = self.api(&namespace);
        Ok(services.create(&PostParams::default(), &service).await?)
    }

    async fn delete(&self, resource: Resource, namespace: &str, name: &str) -> kube::Result<()> {
        let params = DeleteParams::default();
        if resource == Resource::Services {
            let services: Api<Service> = self.api(namespace);
            services.delete(name, &params).await.map(drop)
        } else {
            let slices: Api<EndpointSlice> = self.api(namespace);
            slices.delete(name, &params).await.map(drop)
        }
    }

    /// Removes our namespaces and what is in them. A cluster removes the contents itself, but a lone API server does not.
    async fn remove(&self) -> Result<()> {
        for number in 0..NAMESPACES {
            let namespace = namespace(number);
            let services: Api<Service> = self.api(&namespace);
            let slices: Api<EndpointSlice> = self.api(&namespace);
            let everything = ListParams::default();
            let (services, slices) =
                tokio::try_join!(services.list(&everything), slices.list(&everything))?;
            let services = services.items.iter().map(ResourceExt::name_any);
            let slices = slices.items.iter().map(ResourceExt::name_any);
            let all = services
                .map(|name| (Resource::Services, name))
                .chain(slices.map(|name| (Resource::EndpointSlices, name)));
            let all: Vec<_> = all.collect();
            stream::iter(all)
                .map(async |(resource, name)| {
                    unless_gone(self.delete(resource, &namespace, &name).await)
                })
                .buffer_unordered(CONCURRENCY)
                .try_collect::<()>()
                .await?;
            let namespaces: Api<Namespace> = Api::all(self.0.clone());
            let params = DeleteParams::default();
            unless_gone(namespaces.delete(&namespace, &params).await.map(drop))?;
        }
        self.wait_until_gone().await
    }

    /// Waits until our namespaces are gone, for the next cluster needs them. What removes them is a controller, which notes
    /// in their conditions what it found. A lone API server has none: where nobody notes anything, it is told by us that
    /// they are empty.
    async fn wait_until_gone(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.0.clone());
        let started = Instant::now();
        for number in 0..NAMESPACES {
            let name = namespace(number);
            while let Some(mut found) = namespaces.get_opt(&name).await? {
                ensure!(started.elapsed() < GONE_PATIENCE, "{name} does not go");
                let status = found.status.as_ref();
                let conditions = status.and_then(|status| status.conditions.as_ref());
                let is_noted = conditions.is_some_and(|conditions| !conditions.is_empty());
                if is_noted || started.elapsed() < CONTROLLER_PATIENCE {
                    tokio::time::sleep(GONE_INTERVAL).await;
                    continue;
                }
                found.spec.get_or_insert_default().finalizers = None;
                let params = PostParams::default();
                let finalized = namespaces.replace_subresource("finalize", &name, &params, &found);
                unless_gone(finalized.await.map(drop))?;
            }
        }
        Ok(())
    }
}

/// What is gone already need not be deleted: slices go with their Service on a whole cluster.
fn unless_gone(deleted: kube::Result<()>) -> kube::Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

/// A signal ends the process without dropping anything, so it removes our objects before.
fn remove_on_signals(runtime: &Runtime, objects: &Arc<Objects>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let objects = objects.clone();
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("removing what was made on the server …");
        if let Err(error) = objects.remove().await {
            eprintln!("error: {error:#}\n{}", how_to_remove());
        }
        std::process::exit(130);
    });
    Ok(())
}

fn how_to_remove() -> String {
    let (label, value) = LABEL;
    format!("remove it by: kubectl delete namespaces -l {label}={value}")
}

fn typed<T: DeserializeOwned>(object: Value) -> Result<T> {
    Ok(serde_json::from_value(object)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use proxyd_tests::apiserver::{ApiServer, Options};
    use proxyd_tests::wait::eventually;
    use tempfile::TempDir;

    use super::super::super::workload::Workload;
    use super::super::Cluster;
    use super::*;

    const SMALL: Workload = Workload {
        services: 60,
        endpoints: 2,
    };

    /// Names the kubeconfig to a test that is started as a process of its own.
    const VARIABLE: &str = "PROXYD_BENCH_TEST_KUBECONFIG";

    /// The tests' server stands for a real one: it allocates addresses, and is outside of the proxy's namespace.
    fn serve() -> (ApiServer, TempDir) {
        let options = Options {
            service_cidr: Some("10.96.0.0/16".parse().unwrap()),
            ..Options::default()
        };
        let server = ApiServer::start_with(options);
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "worker" } });
        server.create(&node);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("real"), server.kubeconfig()).unwrap();
        (server, directory)
    }

    fn assert_as_it_was(server: &ApiServer) {
        for (resource, count) in [
            (Resource::Services, 0),
            (Resource::EndpointSlices, 0),
            (Resource::Namespaces, 0),
            (Resource::Nodes, 1),
        ] {
            assert_eq!(server.objects(resource).len(), count, "{resource:?}");
        }
    }

    #[test]
    fn real_server_is_left_as_it_was() {
        let (server, directory) = serve();
        let kubeconfig = directory.path().join("real");
        let mut cluster = Cluster::make(SMALL, Some(&kubeconfig)).unwrap();
        assert_eq!(cluster.node(), "worker");
        let made = server.objects(Resource::Services);
        assert_eq!(made.len(), 60);
        assert_eq!(made[0]["spec"].get("selector"), None);
        assert!(Cluster::make(SMALL, Some(&kubeconfig)).is_err());
        let still = server.objects(Resource::Services).len();
        assert_eq!(still, 60, "who is refused removes nothing");

        let netns = Netns::new().unwrap();
        let inside = cluster.attach(&netns, directory.path()).unwrap();
        let inside: Kubeconfig = serde_json::from_slice(&std::fs::read(inside).unwrap()).unwrap();
        let inside = inside.clusters[0].cluster.as_ref().unwrap();
        let address = inside.server.as_ref().unwrap().strip_prefix("http://");
        let address = address.unwrap().parse().unwrap();
        let answer = proxyd_tests::http::get(&netns, address, "/api/v1/nodes/worker").unwrap();
        assert_eq!(answer.json()["metadata"]["name"], "worker");
        // At least its body came through, and the server is this process.
        let taken = cluster.taken().unwrap().unwrap();
        assert!(taken.bytes > answer.body.len() as u64, "{taken:?}");
        assert!(taken.cpu > Some(Duration::ZERO), "{taken:?}");

        cluster.replace_endpoint(7).unwrap();
        cluster.grow(5).unwrap();
        cluster.shrink(5).unwrap();
        let slices = server.objects(Resource::EndpointSlices);
        assert_eq!(slices.len(), 60);
        let named = |name: &str| {
            let mut slices = slices.iter();
            slices.find(|s| s["metadata"]["name"] == name).unwrap()
        };
        let first = &named("svc-7-abcde")["endpoints"][0]["addresses"][0];
        assert_eq!(*first, "10.1.7.202");

        drop(cluster);
        assert_as_it_was(&server);
    }

    #[test]
    fn real_server_is_left_as_it_was_after_a_signal() {
        let (server, directory) = serve();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--exact")
            .arg("bench::cluster::real::tests::makes_a_cluster_and_waits")
            .env(VARIABLE, directory.path().join("real"))
            .spawn()
            .unwrap();
        let patience = Duration::from_secs(60);
        eventually("all Services", patience, || {
            server.objects(Resource::EndpointSlices).len() == SMALL.services
        });
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        eventually("the end", patience, || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_as_it_was(&server);
    }

    /// Only the process that the test above starts has something to do.
    #[test]
    fn makes_a_cluster_and_waits() {
        let Some(kubeconfig) = std::env::var_os(VARIABLE) else {
            return;
        };
        let _cluster = Cluster::make(SMALL, Some(kubeconfig.as_ref())).unwrap();
        std::thread::park();
    }
}
