//! The file of `--config`: a `KubeProxyConfiguration`, YAML or JSON → raw settings.
//!
//! The fields are those of `kubeproxy.config.k8s.io/v1alpha1` (`k8s.io/kube-proxy/config/v1alpha1`). Those that
//! proxyd has no use for are known by name and taken silently; any other one is noted, as kube-proxy does, and
//! costs nothing else. A value of the wrong type refuses the file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::duration;
use super::given::{ConfigError, Given, Place};
use super::raw::{Raw, non_empty};

/// The one version that there is.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// The kind of the object in the file.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// Fields of kube-proxy, some of older releases, that have no effect.
const WITHOUT_EFFECT: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "configSyncPeriod",
    "featureGates",
    "iptables.localhostNodePorts",
    "iptables.minSyncPeriod",
    "iptables.snatNodeInternalIP",
    "ipvs.excludeCIDRs",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.tcpFinTimeout",
    "ipvs.tcpTimeout",
    "ipvs.udpTimeout",
    "logging.flushFrequency",
    "logging.options",
    "logging.vmodule",
    "nftables.minSyncPeriod",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "windowsRunAsService",
    "winkernel",
];

/// A file that was read.
#[derive(Debug)]
pub(super) struct File {
    path: Arc<Path>,
    fields: Fields,
    /// The fields that kube-proxy does not know.
    unknown: Vec<String>,
}

/// The fields that matter. Everything may be missing or null, as kubeadm leaves it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields {
    client_connection: Option<ClientConnection>,
    hostname_override: Option<String>,
    mode: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    detect_local_mode: Option<String>,
    detect_local: Option<DetectLocal>,
    node_port_addresses: Option<Vec<String>>,
    bind_address: Option<String>,
    bind_address_hard_fail: Option<bool>,
    enable_profiling: Option<bool>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    iptables: Option<Rules>,
    ipvs: Option<Ipvs>,
    nftables: Option<Rules>,
    logging: Option<Logging>,
    conntrack: Option<Conntrack>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

/// The section of a mode.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rules {
    masquerade_all: Option<bool>,
    masquerade_bit: Option<i64>,
    sync_period: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipvs {
    sync_period: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logging {
    format: Option<String>,
    verbosity: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conntrack {
    max_per_core: Option<i64>,
    min: Option<i64>,
    tcp_established_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: Option<bool>,
    udp_timeout: Option<String>,
    udp_stream_timeout: Option<String>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// That it cannot be read, is no `KubeProxyConfiguration`, or has a value of the wrong type.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |reason| ConfigError::File {
            file: path.to_owned(),
            reason,
        };
        let text = fs::read_to_string(path)
            .map_err(|source| error(format!("cannot be read: {source}")))?;
        Self::parse(path, &text).map_err(error)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let value = value(text)?;
        let found = |key| value.get(key).and_then(Value::as_str).unwrap_or_default();
        if found("kind") != KIND {
            return Err(format!("kind: {:?} is not {KIND}", found("kind")));
        }
        if found("apiVersion") != API_VERSION {
            let version = found("apiVersion");
            return Err(format!(
                "apiVersion: {version:?} is not known; write {API_VERSION}"
            ));
        }
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&value, &mut track);
        let fields = serde_ignored::deserialize(tracked, |path| {
            // Optional sections show as a question mark.
            let field = path.to_string().replace(".?", "");
            if !WITHOUT_EFFECT.contains(&field.as_str()) {
                unknown.push(field);
            }
        });
        let fields = fields.map_err(|error| format!("{}: {error}", track.path()))?;
        Ok(Self {
            path: path.into(),
            fields,
            unknown,
        })
    }

    /// What to tell about the file.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let file = self.path.display();
        self.unknown
            .iter()
            .map(move |field| format!("{field} in {file}: not a known field; it is ignored"))
    }

    /// The settings that the file makes. `mode_flag` is the mode that a flag names in place of the file's: as in
    /// kube-proxy, the mode says which section counts. Without any it is `nftables`, and where that
    /// section says nothing, `iptables`, which would be kube-proxy's.
    pub(super) fn into_raw(self, mode_flag: Option<&str>) -> Raw {
        let Self { path, fields, .. } = self;
        let place = |field| Place::Field {
            file: path.clone(),
            field,
        };
        let text = |field, value: Option<String>| {
            value.filter(|value| !value.is_empty()).map(|value| Given {
                value,
                place: place(field),
            })
        };
        // A period of zero means the default.
        let period = |field, value: Option<String>| {
            text(field, value).filter(|given| duration::parse(&given.value) != Ok(Duration::ZERO))
        };
        let number = |field, value: Option<i64>| {
            value.map(|value| Given {
                value,
                place: place(field),
            })
        };
        let list = |field, values| {
            non_empty(values).map(|value| Given {
                value,
                place: place(field),
            })
        };
        let mode = mode_flag.or(fields.mode.as_deref()).unwrap_or_default();
        let (with_nftables, with_iptables) = match mode {
            "" => (true, true),
            "nftables" => (true, false),
            _ => (false, true),
        };
        let nftables = fields
            .nftables
            .filter(|_| with_nftables)
            .unwrap_or_default();
        let iptables = fields
            .iptables
            .filter(|_| with_iptables)
            .unwrap_or_default();
        let ipvs = fields.ipvs.filter(|_| mode == "ipvs");
        let iptables_period = if mode == "ipvs" {
            None
        } else {
            iptables.sync_period
        };
        // One that is not masquerading says nothing: kubeadm writes false everywhere.
        let masquerade_all = [nftables.masquerade_all, iptables.masquerade_all];
        let masquerade_all = masquerade_all.contains(&Some(true)).then_some(true);
        let detect_local = fields.detect_local.unwrap_or_default();
        let conntrack = fields.conntrack.unwrap_or_default();
        let logging = fields.logging.unwrap_or_default();
        let cidrs = fields.cluster_cidr.unwrap_or_default();
        Raw {
            kubeconfig: fields
                .client_connection
                .and_then(|connection| connection.kubeconfig)
                .filter(|path| !path.as_os_str().is_empty()),
            master: None,
            hostname_override: text("hostnameOverride", fields.hostname_override),
            proxy_mode: text("mode", fields.mode.clone()),
            detect_local_mode: text("detectLocalMode", fields.detect_local_mode),
            cluster_cidr: list("clusterCIDR", cidrs.split(',').map(str::to_owned).collect()),
            pod_bridge_interface: text(
                "detectLocal.bridgeInterface",
                detect_local.bridge_interface,
            ),
            pod_interface_name_prefix: text(
                "detectLocal.interfaceNamePrefix",
                detect_local.interface_name_prefix,
            ),
            masquerade_all,
            masquerade_bit: number("nftables.masqueradeBit", nftables.masquerade_bit)
                .or_else(|| number("iptables.masqueradeBit", iptables.masquerade_bit)),
            node_port_addresses: list(
                "nodePortAddresses",
                fields.node_port_addresses.unwrap_or_default(),
            ),
            sync_period: period("nftables.syncPeriod", nftables.sync_period)
                .or_else(|| period("iptables.syncPeriod", iptables_period))
                .or_else(|| period("ipvs.syncPeriod", ipvs?.sync_period)),
            log_format: text("logging.format", logging.format),
            // kubeadm writes 0 where nobody asked for a level.
            verbosity: number(
                "logging.verbosity",
                logging.verbosity.filter(|level| *level != 0),
            ),
            bind_address: text("bindAddress", fields.bind_address),
            healthz_bind_address: text("healthzBindAddress", fields.healthz_bind_address),
            healthz_port: None,
            metrics_bind_address: text("metricsBindAddress", fields.metrics_bind_address),
            metrics_port: None,
            bind_address_hard_fail: fields.bind_address_hard_fail,
            profiling: fields.enable_profiling,
            conntrack_max_per_core: number("conntrack.maxPerCore", conntrack.max_per_core),
            conntrack_min: number("conntrack.min", conntrack.min),
            tcp_timeout_established: text(
                "conntrack.tcpEstablishedTimeout",
                conntrack.tcp_established_timeout,
            ),
            tcp_timeout_close_wait: text(
                "conntrack.tcpCloseWaitTimeout",
                conntrack.tcp_close_wait_timeout,
            ),
            tcp_be_liberal: conntrack.tcp_be_liberal,
            udp_timeout: text("conntrack.udpTimeout", conntrack.udp_timeout),
            udp_timeout_stream: text("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
        }
    }
}

/// The one document of a text.
fn value(text: &str) -> Result<Value, String> {
    // JSON may be indented by tabs, which YAML does not allow.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| format!("not valid YAML: {error}"))
}
