//! The settings as they were given, by flags or by a file, before anything is checked.
//!
//! Two layers of these are laid over each other, and the result is checked once.

use std::path::PathBuf;

use super::gates;
use super::given::{ConfigError, Given};
use crate::cli::Cli;

/// What was given; `None` where nothing was. An empty text counts as nothing, as in kube-proxy's manifests.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) kubeconfig: Option<Given<PathBuf>>,
    pub(super) master: Option<Given<String>>,
    pub(super) hostname_override: Option<Given<String>>,
    pub(super) proxy_mode: Option<Given<String>>,
    pub(super) detect_local_mode: Option<Given<String>>,
    pub(super) cluster_cidr: Option<Given<Vec<String>>>,
    pub(super) pod_bridge_interface: Option<Given<String>>,
    pub(super) pod_interface_name_prefix: Option<Given<String>>,
    pub(super) masquerade_all: Option<bool>,
    pub(super) masquerade_bit: Option<Given<i64>>,
    pub(super) node_port_addresses: Option<Given<Vec<String>>>,
    /// NodePorts at 127.0.0.1, in mode iptables.
    pub(super) localhost_node_ports: Option<Given<bool>>,
    pub(super) feature_gates: gates::Set,
    pub(super) sync_period: Option<Given<String>>,
    pub(super) log_format: Option<Given<String>>,
    pub(super) verbosity: Option<Given<i64>>,
    pub(super) bind_address: Option<Given<String>>,
    /// An empty one is not nothing: it switches the server off.
    pub(super) healthz_bind_address: Option<Given<String>>,
    pub(super) healthz_port: Option<Given<i64>>,
    /// An empty one is not nothing: it switches the server off.
    pub(super) metrics_bind_address: Option<Given<String>>,
    pub(super) metrics_port: Option<Given<i64>>,
    pub(super) bind_address_hard_fail: Option<bool>,
    pub(super) profiling: Option<bool>,
    pub(super) conntrack_max_per_core: Option<Given<i64>>,
    pub(super) conntrack_min: Option<Given<i64>>,
    pub(super) tcp_timeout_established: Option<Given<String>>,
    pub(super) tcp_timeout_close_wait: Option<Given<String>>,
    pub(super) tcp_be_liberal: Option<bool>,
    pub(super) udp_timeout: Option<Given<String>>,
    pub(super) udp_timeout_stream: Option<Given<String>>,
}

impl Raw {
    /// What the flags say.
    ///
    /// # Errors
    /// A feature gate that is none.
    pub(super) fn of_flags(cli: Cli) -> Result<Self, ConfigError> {
        let (source, traffic) = (cli.source, cli.traffic);
        let (health, conntrack) = (cli.health, cli.conntrack);
        let kept = |name, value: Option<String>| value.map(|value| Given::flag(name, value));
        let text = |name, value| kept(name, value).filter(|given| !given.value.is_empty());
        let number = |name, value: Option<i64>| value.map(|value| Given::flag(name, value));
        let list = |name, values| non_empty(values).map(|values| Given::flag(name, values));
        Ok(Self {
            kubeconfig: source
                .kubeconfig
                .filter(|path| !path.is_empty())
                .map(|path| Given::flag("kubeconfig", PathBuf::from(path))),
            master: text("master", source.master),
            hostname_override: text("hostname-override", source.hostname_override),
            proxy_mode: text("proxy-mode", traffic.proxy_mode),
            detect_local_mode: text("detect-local-mode", traffic.detect_local_mode),
            cluster_cidr: list("cluster-cidr", traffic.cluster_cidr),
            pod_bridge_interface: text("pod-bridge-interface", traffic.pod_bridge_interface),
            pod_interface_name_prefix: text(
                "pod-interface-name-prefix",
                traffic.pod_interface_name_prefix,
            ),
            masquerade_all: traffic.masquerade_all,
            masquerade_bit: number("iptables-masquerade-bit", traffic.iptables_masquerade_bit),
            node_port_addresses: list("nodeport-addresses", traffic.nodeport_addresses),
            localhost_node_ports: traffic
                .iptables_localhost_nodeports
                .map(|value| Given::flag("iptables-localhost-nodeports", value)),
            feature_gates: gates::of_flag(&traffic.feature_gates)?,
            sync_period: text("iptables-sync-period", traffic.iptables_sync_period),
            log_format: text("logging-format", cli.logging_format),
            verbosity: number("v", cli.v.map(i64::from)),
            bind_address: text("bind-address", health.bind_address),
            healthz_bind_address: kept("healthz-bind-address", health.healthz_bind_address),
            healthz_port: number("healthz-port", health.healthz_port),
            metrics_bind_address: kept("metrics-bind-address", health.metrics_bind_address),
            metrics_port: number("metrics-port", health.metrics_port),
            bind_address_hard_fail: health.bind_address_hard_fail,
            profiling: health.profiling,
            conntrack_max_per_core: number(
                "conntrack-max-per-core",
                conntrack.conntrack_max_per_core,
            ),
            conntrack_min: number("conntrack-min", conntrack.conntrack_min),
            tcp_timeout_established: text(
                "conntrack-tcp-timeout-established",
                conntrack.conntrack_tcp_timeout_established,
            ),
            tcp_timeout_close_wait: text(
                "conntrack-tcp-timeout-close-wait",
                conntrack.conntrack_tcp_timeout_close_wait,
            ),
            tcp_be_liberal: conntrack.conntrack_tcp_be_liberal,
            udp_timeout: text("conntrack-udp-timeout", conntrack.conntrack_udp_timeout),
            udp_timeout_stream: text(
                "conntrack-udp-timeout-stream",
                conntrack.conntrack_udp_timeout_stream,
            ),
        })
    }

    /// These settings, and where they say nothing, those below.
    pub(super) fn over(self, below: Self) -> Self {
        let mut feature_gates = below.feature_gates;
        feature_gates.extend(self.feature_gates);
        Self {
            feature_gates,
            kubeconfig: self.kubeconfig.or(below.kubeconfig),
            master: self.master.or(below.master),
            hostname_override: self.hostname_override.or(below.hostname_override),
            proxy_mode: self.proxy_mode.or(below.proxy_mode),
            detect_local_mode: self.detect_local_mode.or(below.detect_local_mode),
            cluster_cidr: self.cluster_cidr.or(below.cluster_cidr),
            pod_bridge_interface: self.pod_bridge_interface.or(below.pod_bridge_interface),
            pod_interface_name_prefix: self
                .pod_interface_name_prefix
                .or(below.pod_interface_name_prefix),
            masquerade_all: self.masquerade_all.or(below.masquerade_all),
            masquerade_bit: self.masquerade_bit.or(below.masquerade_bit),
            node_port_addresses: self.node_port_addresses.or(below.node_port_addresses),
            localhost_node_ports: self.localhost_node_ports.or(below.localhost_node_ports),
            sync_period: self.sync_period.or(below.sync_period),
            log_format: self.log_format.or(below.log_format),
            verbosity: self.verbosity.or(below.verbosity),
            bind_address: self.bind_address.or(below.bind_address),
            healthz_bind_address: self.healthz_bind_address.or(below.healthz_bind_address),
            healthz_port: self.healthz_port.or(below.healthz_port),
            metrics_bind_address: self.metrics_bind_address.or(below.metrics_bind_address),
            metrics_port: self.metrics_port.or(below.metrics_port),
            bind_address_hard_fail: self.bind_address_hard_fail.or(below.bind_address_hard_fail),
            profiling: self.profiling.or(below.profiling),
            conntrack_max_per_core: self.conntrack_max_per_core.or(below.conntrack_max_per_core),
            conntrack_min: self.conntrack_min.or(below.conntrack_min),
            tcp_timeout_established: self
                .tcp_timeout_established
                .or(below.tcp_timeout_established),
            tcp_timeout_close_wait: self.tcp_timeout_close_wait.or(below.tcp_timeout_close_wait),
            tcp_be_liberal: self.tcp_be_liberal.or(below.tcp_be_liberal),
            udp_timeout: self.udp_timeout.or(below.udp_timeout),
            udp_timeout_stream: self.udp_timeout_stream.or(below.udp_timeout_stream),
        }
    }
}

/// A list without its empty entries, if anything is left.
pub(super) fn non_empty(values: Vec<String>) -> Option<Vec<String>> {
    let values: Vec<String> = values
        .into_iter()
        .filter(|value| !value.trim().is_empty())
        .collect();
    (!values.is_empty()).then_some(values)
}
