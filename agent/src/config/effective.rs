//! The configuration in force → kube-proxy's `KubeProxyConfiguration`, as `/configz` tells it.
//!
//! Fields are those of the file of `--config`, so what is told can be given to proxyd, or to kube-proxy, as a file. Only
//! a server that is off cannot be told so: its address is empty, which in a file stands for the default.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::file::{API_VERSION, KIND};
use super::{Config, LogFormat, SourceConfig};
use crate::model::{Family, PerFamily};
use crate::plan::{Detector, NodePortAddresses, PodNetworks};

/// The key under which kube-proxy's `/configz` has its configuration.
const KEY: &str = "kubeproxy.config.k8s.io";

impl Config {
    /// The answer of `/configz`.
    pub fn configz(&self) -> Value {
        json!({ KEY: self.effective() })
    }

    /// The configuration in force, with its defaults.
    pub(super) fn effective(&self) -> Value {
        let kubeconfig = match &self.source {
            SourceConfig::Kubernetes { kubeconfig, .. } => kubeconfig.as_ref(),
            SourceConfig::Manifests(_) => None,
        };
        let kubeconfig = kubeconfig.map(|file| file.path.display().to_string());
        let address = |address: Option<SocketAddr>| match address {
            Some(address) => address.to_string(),
            None => String::new(),
        };
        let (mode, bridge_interface, interface_name_prefix) = self.detection();
        let conntrack = &self.conntrack;
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "mode": "nftables",
            "featureGates": {
                "AllowServiceExternalIPs": self.plan.external_ips,
                "WatchListClient": self.streaming_lists,
            },
            "hostnameOverride": self.node_name,
            "clientConnection": { "kubeconfig": kubeconfig.unwrap_or_default() },
            "logging": {
                "format": match self.logging.format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                },
                "verbosity": self.logging.verbosity,
            },
            "clusterCIDR": match &self.plan.pod_networks {
                PodNetworks::Fixed(networks) => texts(networks).join(","),
                PodNetworks::OfNode => String::new(),
            },
            "detectLocalMode": mode,
            "detectLocal": {
                "bridgeInterface": bridge_interface,
                "interfaceNamePrefix": interface_name_prefix,
            },
            "nodePortAddresses": node_port_addresses(&self.plan.node_port_addresses),
            "bindAddressHardFail": self.health.hard_fail,
            "enableProfiling": self.health.profiling,
            "healthzBindAddress": address(self.health.healthz),
            "metricsBindAddress": address(self.health.metrics),
            "nftables": {
                "masqueradeAll": self.plan.masquerade_all,
                "masqueradeBit": self.skeleton.masquerade_bit,
                "syncPeriod": seconds(self.health.sync_period),
            },
            "conntrack": {
                "maxPerCore": conntrack.max_per_core,
                "min": conntrack.min,
                "tcpBeLiberal": conntrack.tcp_be_liberal,
                "tcpCloseWaitTimeout": timeout(conntrack.tcp_close_wait),
                "tcpEstablishedTimeout": timeout(conntrack.tcp_established),
                "udpStreamTimeout": timeout(conntrack.udp_stream),
                "udpTimeout": timeout(conntrack.udp),
            },
        })
    }

    /// The mode by which pods are told apart, the name of their bridge, and the prefix of their interfaces.
    fn detection(&self) -> (&'static str, &str, &str) {
        if self.plan.pod_networks == PodNetworks::OfNode {
            return ("NodeCIDR", "", "");
        }
        // A detector by interface is the same for both families.
        match self.skeleton.detector.get(Family::V4) {
            Detector::Interface {
                name,
                prefix: false,
            } => ("BridgeInterface", name, ""),
            Detector::Interface { name, prefix: true } => ("InterfaceNamePrefix", "", name),
            Detector::None | Detector::Source => ("ClusterCIDR", "", ""),
        }
    }
}

/// As `--nodeport-addresses` takes them.
fn node_port_addresses(addresses: &NodePortAddresses) -> Vec<String> {
    let primary = addresses.primary.then(|| "primary".to_owned());
    let loopback = match addresses.localhost {
        PerFamily { v4: true, v6: true } => Some("localhost"),
        PerFamily { v4: true, .. } => Some("127.0.0.1/32"),
        PerFamily { v6: true, .. } => Some("::1/128"),
        PerFamily { .. } => None,
    };
    primary
        .into_iter()
        .chain(texts(&addresses.networks))
        .chain(loopback.map(str::to_owned))
        .collect()
}

fn texts(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

/// A time of zero is what leaves the kernel's as it is.
fn timeout(time: Option<Duration>) -> String {
    seconds(time.unwrap_or_default())
}

/// A duration as Go reads it.
fn seconds(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    if nanoseconds.is_multiple_of(1_000_000_000) {
        format!("{}s", duration.as_secs())
    } else {
        format!("{nanoseconds}ns")
    }
}
