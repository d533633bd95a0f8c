//! A real kube-apiserver and its etcd, where the machine has them.
//!
//! `KUBEBUILDER_ASSETS` names a directory with the binaries `kube-apiserver` and `etcd`: the convention of
//! controller-runtime's envtest, whose flags these are. Without it the tier says that it has not run. Both processes
//! are children of the test and end with it; everything they write is in a temporary directory.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use tempfile::TempDir;

use crate::apiserver::kubeconfig;
use crate::wait;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN: &str = "proxyd-tests";

/// A running kube-apiserver. Dropping it ends it and its etcd.
#[derive(Debug)]
pub struct Envtest {
    // Fields are dropped in this order: the server, its etcd, their files.
    apiserver: Process,
    _etcd: Process,
    dir: TempDir,
    port: u16,
}

impl Envtest {
    /// Starts the real server, or says why not and returns nothing. Panics if the binaries are there but do not work.
    pub async fn start() -> Option<Self> {
        let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
            // Not eprintln: the harness would keep it to itself.
            let _ = writeln!(
                std::io::stderr(),
                "NOT RUN: real kube-apiserver tier: KUBEBUILDER_ASSETS is not set to a directory with \
                 kube-apiserver and etcd"
            );
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [etcd_port, peer_port, port] = free_ports();
        let etcd = start_etcd(&assets, dir.path(), (etcd_port, peer_port));
        let apiserver = start_apiserver(&assets, dir.path(), (etcd_port, port));
        let mut server = Self {
            apiserver,
            _etcd: etcd,
            dir,
            port,
        };
        server.wait_until_ready().await;
        Some(server)
    }

    /// The URL of the server, without a slash at the end.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The bearer token of an administrator.
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// The text of a kubeconfig file for this server. Its certificate is self-signed, and not checked.
    pub fn kubeconfig(&self) -> String {
        let cluster = format!("server: {}\n    insecure-skip-tls-verify: true", self.url());
        kubeconfig(&cluster, &format!("{{token: {TOKEN}}}"))
    }

    async fn wait_until_ready(&mut self) {
        let client = client(&self.kubeconfig()).await;
        let ended = wait::poll_async(START_TIMEOUT, async || {
            let request = axum::http::Request::get("/readyz")
                .body(Vec::new())
                .expect("a valid request");
            let is_ready = client.request_text(request).await.is_ok();
            let exited = self
                .apiserver
                .0
                .try_wait()
                .expect("a child can be waited for");
            (is_ready || exited.is_some()).then_some(exited)
        });
        let ended = ended.await;
        assert!(
            ended == Some(None),
            "kube-apiserver is not ready ({ended:?}):\n{}",
            self.log()
        );
    }

    fn log(&self) -> String {
        let read =
            |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        let (etcd, apiserver) = (read("etcd.log"), read("kube-apiserver.log"));
        format!("--- etcd\n{etcd}\n--- kube-apiserver\n{apiserver}")
    }
}

/// A client for the text of a kubeconfig file. It shows every answer: nothing is tried again behind the test's back.
pub async fn client(kubeconfig: &str) -> kube::Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.expect("a usable kubeconfig");
    config.default_retry = false;
    kube::Client::try_from(config).expect("a client")
}

fn start_etcd(assets: &Path, dir: &Path, (port, peer_port): (u16, u16)) -> Process {
    let url = format!("http://127.0.0.1:{port}");
    let peer_url = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(assets.join("etcd"));
    command
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"))
        .arg(format!("--listen-peer-urls={peer_url}"))
        .arg(format!("--initial-advertise-peer-urls={peer_url}"))
        .arg(format!("--initial-cluster=default={peer_url}"))
        .arg("--unsafe-no-fsync");
    Process::spawn(command, &dir.join("etcd.log"))
}

fn start_apiserver(assets: &Path, dir: &Path, (etcd_port, port): (u16, u16)) -> Process {
    let key = dir.join("sa-signer.key");
    generate_rsa_key(&key);
    let tokens = dir.join("tokens.csv");
    let line = format!("{TOKEN},admin,admin,system:masters\n");
    std::fs::write(&tokens, line).expect("the temporary directory is writable");
    let mut command = Command::new(assets.join("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg("--bind-address=127.0.0.1")
        .arg("--advertise-address=127.0.0.1")
        // The endpoint reconciler refuses a loopback address, and nobody here needs its Endpoints.
        .arg("--endpoint-reconciler-type=none")
        .arg(format!("--secure-port={port}"))
        .arg(format!("--cert-dir={}", dir.join("certs").display()))
        .arg(format!("--token-auth-file={}", tokens.display()))
        .arg("--authorization-mode=AlwaysAllow")
        // Service accounts are made by a controller that does not run here.
        .arg("--disable-admission-plugins=ServiceAccount")
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .arg(format!(
            "--service-account-issuer=https://127.0.0.1:{port}/"
        ))
        // The public half is read out of the private key.
        .arg(format!("--service-account-key-file={}", key.display()))
        .arg(format!(
            "--service-account-signing-key-file={}",
            key.display()
        ));
    Process::spawn(command, &dir.join("kube-apiserver.log"))
}

fn generate_rsa_key(path: &Path) {
    let output = Command::new("openssl")
        .arg("genrsa")
        .arg("-out")
        .arg(path)
        .arg("2048")
        .output();
    let output = output.expect("openssl, to make the key that signs service account tokens");
    assert!(
        output.status.success(),
        "openssl genrsa ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Ports that were free a moment ago: all are held at once so that they differ.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("the socket is bound").port())
}

/// A child process that ends, by its id, with its owner.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn spawn(mut command: Command, log: &Path) -> Self {
        let log = File::create(log).expect("the temporary directory is writable");
        let stdout = log.try_clone().expect("a file can be duplicated");
        let child = command.stdout(stdout).stderr(log).spawn();
        Self(child.unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only when the process has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
