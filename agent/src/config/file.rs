//! The file of `--config`: a `KubeProxyConfiguration`, YAML or JSON → raw settings.
//!
//! The fields are those of `kubeproxy.config.k8s.io/v1alpha1` and `v1alpha2` (`k8s.io/kube-proxy/config`). Those that
//! proxyd has no use for are known by name and taken silently; any other one is noted, as kube-proxy does, and
//! costs nothing else. A value of the wrong type refuses the file.

mod document;
mod fields;
mod leaf;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use super::Note;
use super::duration;
use super::given::{ConfigError, Given, Place};
use super::raw::{Raw, non_empty};
use crate::http::{health, metrics_server};
use document::Document;
use fields::{Fields, OF_V1ALPHA1, OF_V1ALPHA2, WITHOUT_EFFECT};

/// The version that kubeadm writes.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// The version after it.
const API_VERSION_2: &str = "kubeproxy.config.k8s.io/v1alpha2";

/// The kind of the object in the file.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// A file that was read.
#[derive(Debug)]
pub(super) struct File {
    path: Arc<Path>,
    text: String,
    fields: Fields,
    /// What is odd about it.
    notes: Vec<Note>,
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
        Self::parse(path, text).map_err(error)
    }

    fn parse(path: &Path, text: String) -> Result<Self, String> {
        let document = Document::parse(&text)?;
        let mut value = document.value;
        let found = |key| value.get(key).and_then(Value::as_str).unwrap_or_default();
        if found("kind") != KIND {
            return Err(format!("kind: {:?} is not {KIND}", found("kind")));
        }
        let (version, of_other, other) = match found("apiVersion") {
            API_VERSION => ("v1alpha1", OF_V1ALPHA2, "v1alpha2"),
            API_VERSION_2 => ("v1alpha2", OF_V1ALPHA1, "v1alpha1"),
            version => {
                return Err(format!(
                    "apiVersion: {version:?} is not known; write {API_VERSION}"
                ));
            }
        };
        let file = path.display();
        let twice = document.twice.iter().map(|key| {
            Note::warn(format!(
                "{key} in {file}: it is there more than once; the last one counts"
            ))
        });
        let mut notes: Vec<_> = twice.collect();
        if document.has_more {
            notes.push(Note::warn(format!(
                "{file}: the first document counts; what is behind it is ignored"
            )));
        }
        for (field, instead) in of_other {
            if take(&mut value, field) {
                notes.push(Note::warn(format!(
                    "{field} in {file}: a field of {other}, which {version} has as {instead}; it is ignored"
                )));
            }
        }
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&value, &mut track);
        let fields = serde_ignored::deserialize(tracked, |path| {
            // Optional sections show as a question mark.
            let field = path.to_string().replace(".?", "");
            if !WITHOUT_EFFECT.contains(&field.as_str()) {
                notes.push(Note::warn(format!(
                    "{field} in {file}: not a known field; it is ignored"
                )));
            }
        });
        let fields = fields.map_err(|error| format!("{}: {error}", track.path()))?;
        Ok(Self {
            path: path.into(),
            text,
            fields,
            notes,
        })
    }

    /// What to tell about the file.
    pub(super) fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Its path, and what it held.
    pub(super) fn contents(&self) -> (&Path, &str) {
        (&self.path, &self.text)
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
        let linux = fields.linux.unwrap_or_default();
        let masquerade_all = [
            nftables.masquerade_all,
            iptables.masquerade_all,
            linux.masquerade_all,
        ];
        let masquerade_all = masquerade_all.contains(&Some(true)).then_some(true);
        let detect_local = fields.detect_local.unwrap_or_default();
        // Of two versions of one setting the file has the one of its own.
        let (in_linux, conntrack) = match linux.conntrack {
            Some(conntrack) => (true, conntrack),
            None => (false, fields.conntrack.unwrap_or_default()),
        };
        let conntrack_field = |field, field_2| if in_linux { field_2 } else { field };
        let healthz = ("0.0.0.0", health::DEFAULT_PORT);
        let healthz = bind_address(
            fields.healthz_bind_addresses,
            fields.healthz_bind_port,
            healthz,
        );
        let metrics = ("127.0.0.1", metrics_server::DEFAULT_PORT);
        let metrics = bind_address(
            fields.metrics_bind_addresses,
            fields.metrics_bind_port,
            metrics,
        );
        let connection = fields.client_connection;
        let kubeconfig = connection.and_then(|connection| connection.kubeconfig);
        let logging = fields.logging.unwrap_or_default();
        let cidrs = fields.cluster_cidr.unwrap_or_default();
        let cidrs = list("clusterCIDR", cidrs.split(',').map(str::to_owned).collect());
        let cidrs_2 = detect_local.cluster_cidrs.unwrap_or_default();
        Raw {
            kubeconfig: text("clientConnection.kubeconfig", kubeconfig).map(|given| Given {
                value: PathBuf::from(given.value),
                place: given.place,
            }),
            master: None,
            hostname_override: text("hostnameOverride", fields.hostname_override),
            proxy_mode: text("mode", fields.mode.clone()),
            detect_local_mode: text("detectLocalMode", fields.detect_local_mode),
            cluster_cidr: cidrs.or_else(|| list("detectLocal.clusterCIDRs", cidrs_2)),
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
            localhost_node_ports: iptables.localhost_node_ports.map(|value| Given {
                value,
                place: place("iptables.localhostNodePorts"),
            }),
            feature_gates: (fields.feature_gates.into_iter().flatten())
                .map(|(name, value)| {
                    let place = place("featureGates");
                    (name, Given { value, place })
                })
                .collect(),
            sync_period: period("nftables.syncPeriod", nftables.sync_period)
                .or_else(|| period("iptables.syncPeriod", iptables_period))
                .or_else(|| period("ipvs.syncPeriod", ipvs?.sync_period))
                .or_else(|| period("syncPeriod", fields.sync_period)),
            log_format: text("logging.format", logging.format),
            // kubeadm writes 0 where nobody asked for a level.
            verbosity: number(
                "logging.verbosity",
                logging.verbosity.filter(|level| *level != 0),
            ),
            bind_address: text("bindAddress", fields.bind_address),
            healthz_bind_address: text("healthzBindAddress", fields.healthz_bind_address)
                .or_else(|| text("healthzBindAddresses", healthz)),
            healthz_port: None,
            metrics_bind_address: text("metricsBindAddress", fields.metrics_bind_address)
                .or_else(|| text("metricsBindAddresses", metrics)),
            metrics_port: None,
            bind_address_hard_fail: fields.bind_address_hard_fail,
            profiling: fields.enable_profiling,
            conntrack_max_per_core: number(
                conntrack_field("conntrack.maxPerCore", "linux.conntrack.maxPerCore"),
                conntrack.max_per_core,
            ),
            conntrack_min: number(
                conntrack_field("conntrack.min", "linux.conntrack.min"),
                conntrack.min,
            ),
            tcp_timeout_established: text(
                conntrack_field(
                    "conntrack.tcpEstablishedTimeout",
                    "linux.conntrack.tcpEstablishedTimeout",
                ),
                conntrack.tcp_established_timeout,
            ),
            tcp_timeout_close_wait: text(
                conntrack_field(
                    "conntrack.tcpCloseWaitTimeout",
                    "linux.conntrack.tcpCloseWaitTimeout",
                ),
                conntrack.tcp_close_wait_timeout,
            ),
            tcp_be_liberal: conntrack.tcp_be_liberal,
            udp_timeout: text(
                conntrack_field("conntrack.udpTimeout", "linux.conntrack.udpTimeout"),
                conntrack.udp_timeout,
            ),
            udp_timeout_stream: text(
                conntrack_field(
                    "conntrack.udpStreamTimeout",
                    "linux.conntrack.udpStreamTimeout",
                ),
                conntrack.udp_stream_timeout,
            ),
        }
    }
}

/// Takes a field out, if it is there and says something.
fn take(value: &mut Value, path: &str) -> bool {
    let (section, field) = path.rsplit_once('.').unwrap_or(("", path));
    let section = if section.is_empty() {
        Some(value)
    } else {
        value.get_mut(section)
    };
    let taken = section.and_then(|section| section.as_object_mut()?.remove(field));
    taken.is_some_and(|taken| !taken.is_null())
}

/// An address and a port, of what `v1alpha2` has as networks of which one is to be listened at.
fn bind_address(
    addresses: Option<Vec<String>>,
    port: Option<i64>,
    (default, default_port): (&str, u16),
) -> Option<String> {
    let first = non_empty(addresses.unwrap_or_default()).map(|mut list| list.swap_remove(0));
    if first.is_none() && port.is_none() {
        return None;
    }
    let port = port
        .filter(|port| *port != 0)
        .unwrap_or(default_port.into());
    let Some(first) = first else {
        return Some(format!("{default}:{port}"));
    };
    let ip = match first.parse::<IpNet>() {
        Ok(network) if network.network().is_loopback() => match network {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        },
        Ok(network) if [0, network.max_prefix_len()].contains(&network.prefix_len()) => {
            network.network()
        }
        // Told to be no address.
        _ => return Some(first),
    };
    Some(match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    })
}
