//! Settings → a client of the API server; what is wrong with them, in words of our own.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::ClientBuilder;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError};

use super::SILENCE;
use super::counted::CountedLayer;
use super::server::{Api, Server};
use super::trouble::explain;
use crate::http::metrics::Requests;
use crate::version;

/// A kubeconfig file, and the setting that named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeconfigFile {
    /// Its path.
    pub path: PathBuf,
    /// The flag, or the field and its file.
    pub place: String,
}

/// Why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// Nothing says where it is.
    #[error(
        "no cluster to watch: give --kubeconfig FILE, --master URL or --manifests PATH, or run in a pod with \
         a service account ({})",
        in_cluster(.0)
    )]
    NoCluster(#[source] InClusterError),
    /// The kubeconfig cannot be used.
    #[error("{}: {}: {}", file.place, file.path.display(), in_file(source))]
    Kubeconfig {
        /// The file.
        file: KubeconfigFile,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// No client could be made of the settings.
    #[error("connecting to the API server {url}: {source}")]
    Client {
        /// Where it is.
        url: String,
        /// What is wrong.
        #[source]
        source: kube::Error,
    },
    /// A list failed.
    #[error("listing {what}: {}{at}", explain(what, source))]
    List {
        /// What was listed.
        what: &'static str,
        /// Where, and what to do about it.
        at: String,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
}

/// Makes a client from flags, or from the service account of the pod. Its requests are counted in `requests`.
///
/// # Errors
/// That nothing says where the API server is, or that what says so cannot be used.
pub async fn client(
    kubeconfig: Option<&KubeconfigFile>,
    master: Option<&http::Uri>,
    requests: &Arc<Requests>,
) -> Result<Api, KubeError> {
    let mut config = match (kubeconfig, master) {
        (Some(file), _) => {
            let error = |source| KubeError::Kubeconfig {
                file: file.clone(),
                source,
            };
            let read = Kubeconfig::read_from(&file.path).map_err(error)?;
            kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(error)?
        }
        (None, Some(url)) => kube::Config::new(url.clone()),
        (None, None) => kube::Config::incluster().map_err(KubeError::NoCluster)?,
    };
    let is_cluster_ip = kubeconfig.is_none() && master.is_none();
    if let Some(url) = master {
        config.cluster_url = url.clone();
    }
    // Watches give up by themselves, a moment earlier.
    config.read_timeout = Some(SILENCE + Duration::from_secs(10));
    // Watches try again by themselves, and say so.
    config.default_retry = false;
    config.headers.push((USER_AGENT, user_agent()));
    let url = config.cluster_url.to_string();
    let url = url.trim_end_matches('/').to_owned();
    requests.go_to(
        config
            .cluster_url
            .authority()
            .map_or("", |host| host.as_str()),
    );
    let client = ClientBuilder::try_from(config);
    let client = client.map_err(|source| KubeError::Client {
        url: url.clone(),
        source,
    })?;
    let counted = CountedLayer(Arc::clone(requests));
    Ok(Api {
        client: client.with_layer(&counted).build(),
        server: Arc::new(Server::at(url, is_cluster_ip)),
        in_pages: false,
    })
}

/// Who asks, as client-go has it and audit logs show it.
fn user_agent() -> HeaderValue {
    let version::Info {
        git_version,
        platform,
        git_commit,
        ..
    } = version::INFO;
    let commit = git_commit.get(..7).unwrap_or("unknown");
    let text = format!("proxyd/{git_version} ({platform}) kubernetes/{commit}");
    HeaderValue::try_from(text).expect("versions and commits are ASCII")
}

/// Why a pod's service account says nothing.
fn in_cluster(error: &InClusterError) -> String {
    match error {
        InClusterError::ReadEnvironmentVariable(_) => {
            "KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is not set".to_owned()
        }
        InClusterError::ParseClusterPort(_) => "KUBERNETES_SERVICE_PORT is no port".to_owned(),
        InClusterError::ParseClusterUrl(_) => "KUBERNETES_SERVICE_HOST is no host".to_owned(),
        InClusterError::ReadDefaultNamespace(error) => {
            format!("the namespace of its service account cannot be read: {error}")
        }
        InClusterError::ReadCertificateBundle(error) => {
            format!("the certificates of its service account cannot be read: {error}")
        }
        InClusterError::ParseCertificates(_) => {
            "the certificates of its service account are not PEM".to_owned()
        }
    }
}

/// What is wrong with a kubeconfig file.
fn in_file(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::CurrentContextNotSet => "it has no current-context".to_owned(),
        KubeconfigError::LoadContext(name) => format!("it has no context {name:?}"),
        KubeconfigError::LoadClusterOfContext(name) => format!("it has no cluster {name:?}"),
        KubeconfigError::ReadConfig(error, _) => format!("cannot be read: {error}"),
        KubeconfigError::Parse(error) => match error.location() {
            Some(place) => format!(
                "not a kubeconfig: see line {}, column {}",
                place.line(),
                place.column()
            ),
            None => "not a kubeconfig".to_owned(),
        },
        KubeconfigError::MissingClusterUrl => "its cluster has no server".to_owned(),
        KubeconfigError::ParseClusterUrl(_) => "the server of its cluster is not a URL".to_owned(),
        KubeconfigError::ParseProxyUrl(_) => "the proxy-url of its cluster is not a URL".to_owned(),
        KubeconfigError::LoadCertificateAuthority(error) => {
            format!(
                "the certificate-authority of its cluster {}",
                in_data(error)
            )
        }
        KubeconfigError::LoadClientCertificate(error) => {
            format!("the client-certificate of its user {}", in_data(error))
        }
        KubeconfigError::LoadClientKey(error) => {
            format!("the client-key of its user {}", in_data(error))
        }
        KubeconfigError::ParseCertificates(_) => "its certificates are not PEM".to_owned(),
        other => match other.source() {
            Some(source) => format!("cannot be used: {source}"),
            None => "cannot be used".to_owned(),
        },
    }
}

/// What is wrong with a certificate or key.
fn in_data(error: &LoadDataError) -> String {
    match error {
        LoadDataError::DecodeBase64(_) => "is not base64".to_owned(),
        LoadDataError::ReadFile(error, path) => format!("is in {}: {error}", path.display()),
        LoadDataError::NoBase64DataOrFile => "is missing".to_owned(),
    }
}
