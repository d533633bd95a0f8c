//! The fields of a `KubeProxyConfiguration` that matter here, those of `v1alpha1` and of `v1alpha2` beside each other,
//! and the names of those that do not.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::leaf::{flag, flags, number, section, text, texts};

/// Fields of kube-proxy, some of older releases, that have no effect.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "configHardFail",
    "configSyncPeriod",
    "iptables.minSyncPeriod",
    "iptables.snatNodeInternalIP",
    "ipvs.excludeCIDRs",
    "ipvs.masqueradeBit",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.tcpFinTimeout",
    "ipvs.tcpTimeout",
    "ipvs.udpTimeout",
    "linux.oomScoreAdj",
    "logging.flushFrequency",
    "logging.options",
    "logging.vmodule",
    "minSyncPeriod",
    "nftables.minSyncPeriod",
    "nodeIPOverride",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "windows",
    "windowsRunAsService",
    "winkernel",
];

/// Where `v1alpha1` has what `v1alpha2` has elsewhere.
pub(super) const OF_V1ALPHA1: &[(&str, &str)] = &[
    ("bindAddress", "nodeIPOverride"),
    ("clusterCIDR", "detectLocal.clusterCIDRs"),
    ("conntrack", "linux.conntrack"),
    ("healthzBindAddress", "healthzBindAddresses"),
    ("iptables.masqueradeAll", "linux.masqueradeAll"),
    ("iptables.minSyncPeriod", "minSyncPeriod"),
    ("iptables.syncPeriod", "syncPeriod"),
    ("ipvs.minSyncPeriod", "minSyncPeriod"),
    ("ipvs.syncPeriod", "syncPeriod"),
    ("metricsBindAddress", "metricsBindAddresses"),
    ("nftables.masqueradeAll", "linux.masqueradeAll"),
    ("nftables.minSyncPeriod", "minSyncPeriod"),
    ("nftables.syncPeriod", "syncPeriod"),
    ("oomScoreAdj", "linux.oomScoreAdj"),
    ("windowsRunAsService", "windows.runAsService"),
];

/// Where `v1alpha2` has what `v1alpha1` has elsewhere.
pub(super) const OF_V1ALPHA2: &[(&str, &str)] = &[
    ("detectLocal.clusterCIDRs", "clusterCIDR"),
    ("healthzBindAddresses", "healthzBindAddress"),
    ("healthzBindPort", "healthzBindAddress"),
    ("linux", "conntrack, nftables.masqueradeAll and oomScoreAdj"),
    ("metricsBindAddresses", "metricsBindAddress"),
    ("metricsBindPort", "metricsBindAddress"),
    ("minSyncPeriod", "nftables.minSyncPeriod"),
    ("nodeIPOverride", "bindAddress"),
    ("syncPeriod", "nftables.syncPeriod"),
    ("windows", "windowsRunAsService"),
];

/// The fields that matter. Everything may be missing or null, as kubeadm leaves it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Fields {
    #[serde(deserialize_with = "section")]
    pub(super) client_connection: Option<ClientConnection>,
    #[serde(deserialize_with = "text")]
    pub(super) hostname_override: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) mode: Option<String>,
    #[serde(rename = "clusterCIDR", deserialize_with = "text")]
    pub(super) cluster_cidr: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) detect_local_mode: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) detect_local: Option<DetectLocal>,
    #[serde(deserialize_with = "texts")]
    pub(super) node_port_addresses: Option<Vec<String>>,
    #[serde(deserialize_with = "text")]
    pub(super) bind_address: Option<String>,
    #[serde(deserialize_with = "flag")]
    pub(super) bind_address_hard_fail: Option<bool>,
    #[serde(deserialize_with = "flag")]
    pub(super) enable_profiling: Option<bool>,
    #[serde(deserialize_with = "text")]
    pub(super) healthz_bind_address: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) metrics_bind_address: Option<String>,
    #[serde(deserialize_with = "texts")]
    pub(super) healthz_bind_addresses: Option<Vec<String>>,
    #[serde(deserialize_with = "number")]
    pub(super) healthz_bind_port: Option<i64>,
    #[serde(deserialize_with = "texts")]
    pub(super) metrics_bind_addresses: Option<Vec<String>>,
    #[serde(deserialize_with = "number")]
    pub(super) metrics_bind_port: Option<i64>,
    #[serde(deserialize_with = "section")]
    pub(super) iptables: Option<Rules>,
    #[serde(deserialize_with = "section")]
    pub(super) ipvs: Option<Ipvs>,
    #[serde(deserialize_with = "section")]
    pub(super) nftables: Option<Rules>,
    #[serde(deserialize_with = "text")]
    pub(super) sync_period: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) logging: Option<Logging>,
    #[serde(deserialize_with = "flags")]
    pub(super) feature_gates: Option<BTreeMap<String, bool>>,
    #[serde(deserialize_with = "section")]
    pub(super) conntrack: Option<Conntrack>,
    #[serde(deserialize_with = "section")]
    pub(super) linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClientConnection {
    #[serde(deserialize_with = "text")]
    pub(super) kubeconfig: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DetectLocal {
    #[serde(deserialize_with = "text")]
    pub(super) bridge_interface: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) interface_name_prefix: Option<String>,
    #[serde(rename = "clusterCIDRs", deserialize_with = "texts")]
    pub(super) cluster_cidrs: Option<Vec<String>>,
}

/// The section of a mode.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rules {
    #[serde(deserialize_with = "flag")]
    pub(super) masquerade_all: Option<bool>,
    #[serde(deserialize_with = "number")]
    pub(super) masquerade_bit: Option<i64>,
    #[serde(deserialize_with = "text")]
    pub(super) sync_period: Option<String>,
    /// Of `iptables` alone.
    #[serde(deserialize_with = "flag")]
    pub(super) localhost_node_ports: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Ipvs {
    #[serde(deserialize_with = "text")]
    pub(super) sync_period: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Logging {
    #[serde(deserialize_with = "text")]
    pub(super) format: Option<String>,
    #[serde(deserialize_with = "number")]
    pub(super) verbosity: Option<i64>,
}

/// What `v1alpha2` has for Linux alone.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Linux {
    #[serde(deserialize_with = "section")]
    pub(super) conntrack: Option<Conntrack>,
    #[serde(deserialize_with = "flag")]
    pub(super) masquerade_all: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Conntrack {
    #[serde(deserialize_with = "number")]
    pub(super) max_per_core: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) min: Option<i64>,
    #[serde(deserialize_with = "text")]
    pub(super) tcp_established_timeout: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) tcp_close_wait_timeout: Option<String>,
    #[serde(deserialize_with = "flag")]
    pub(super) tcp_be_liberal: Option<bool>,
    #[serde(deserialize_with = "text")]
    pub(super) udp_timeout: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) udp_stream_timeout: Option<String>,
}
