//! Feature gates (`--feature-gates`, `featureGates`): those that mean something here, and what to tell of the others.
//!
//! The names are those of Kubernetes 1.36 and 1.37 (`pkg/features`, `component-base`). A cluster may give all its
//! components the same gates, so those of other components are no fault.

use std::collections::BTreeMap;

use super::Note;
use super::check;
use super::given::{ConfigError, Given};

/// Gates of what proxyd does in any case.
const ALWAYS_ON: &[(&str, &str)] = &[
    (
        "KubeProxyDrainingTerminatingNodes",
        "a node that is being removed fails its health check",
    ),
    ("MultiCIDRServiceAllocator", "ServiceCIDRs are watched"),
    ("NFTablesNetlink", "elements of the rules go over netlink"),
    ("NFTablesProxyMode", "the rules are those of nftables"),
    (
        "PreferSameTrafficDistribution",
        "hints for nodes and zones are followed",
    ),
    ("ServiceTrafficDistribution", "hints for zones are followed"),
    ("TopologyAwareHints", "hints for zones are followed"),
];

/// What the gates say that mean something here; those that nobody set have their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gates {
    /// `AllowServiceExternalIPs` (Kubernetes 1.36; KEP-5707).
    pub(super) external_ips: bool,
    /// `KubeProxyNFTablesLocalhostNodePorts` (Kubernetes 1.37; KEP-6032): on, unless it is set to false, since
    /// nobody has NodePorts there who does not ask for them.
    pub(super) localhost_node_ports: bool,
    /// `WatchListClient` (client-go; KEP-3157).
    pub(super) streaming_lists: bool,
}

/// Each gate's value with the place where it was set. A flag goes before the file, gate by gate.
pub(super) type Set = BTreeMap<String, Given<bool>>;

/// The gates of `--feature-gates`: `A=true,B=false`.
///
/// # Errors
/// The first one that is not written so.
pub(super) fn of_flag(texts: &[String]) -> Result<Set, ConfigError> {
    let pairs = texts.iter().map(|text| text.trim());
    let pairs = pairs.filter(|text| !text.is_empty()).map(|text| {
        let given = Given::flag("feature-gates", text.to_owned());
        let parsed = given.parse(|text| {
            let (name, value) = text
                .split_once('=')
                .ok_or("write it as NAME=true or NAME=false")?;
            Ok((name.trim().to_owned(), check::boolean(value.trim())?))
        })?;
        let (name, value) = parsed;
        Ok((name, Given::flag("feature-gates", value)))
    });
    pairs.collect()
}

/// What the gates mean, and what to tell of them.
pub(super) fn gates(set: &Set) -> (Gates, Vec<Note>) {
    let mut gates = Gates {
        external_ips: true,
        localhost_node_ports: true,
        streaming_lists: true,
    };
    let mut notes = Vec::new();
    for (name, Given { value, place }) in set {
        let always = ALWAYS_ON.iter().find(|(gate, _)| gate == name);
        match (name.as_str(), *value, always) {
            ("AllowServiceExternalIPs", value, _) => {
                gates.external_ips = value;
                if !value {
                    notes.push(Note::info(format!(
                        "{place}: AllowServiceExternalIPs=false: addresses in spec.externalIPs of Services are not \
                         served"
                    )));
                }
            }
            ("KubeProxyNFTablesLocalhostNodePorts", value, _) => {
                gates.localhost_node_ports = value;
            }
            ("WatchListClient", value, _) => gates.streaming_lists = value,
            (_, true, Some((_, what))) => {
                notes.push(Note::debug(format!("{place}: {name}=true: so it is, {what}")));
            }
            (_, false, Some((_, what))) => {
                notes.push(Note::warn(format!(
                    "{place}: {name}=false has no effect: {what} in any case"
                )));
            }
            (_, value, None) => notes.push(Note::info(format!(
                "{place}: {name}={value} has no effect: nothing that proxyd does depends on this gate"
            ))),
        }
    }
    (gates, notes)
}
