//! The skeleton: the constant program of one family, as text that nft 1.0.1 and later load.
//!
//! It holds no Service: those are elements of its maps. Its [`Skeleton::version`] stands in the table's
//! comment and changes with any letter of the program and any expression of its chains, so that a restart knows
//! whether it may adopt what is there. nft prints some rules otherwise than they were written, so the text itself is never compared.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::chains;
use super::elements::{At, Chain, Set};
use crate::model::{Family, PerFamily};
use crate::plan::Masquerade;

/// The name of the table, in both families.
pub(super) const TABLE: &str = "proxyd";

/// The chain that marks a connection for masquerade.
pub(super) const MARK_CHAIN: &str = "mark-for-masquerade";

/// The chain that refuses a connection.
pub(super) const REJECT_CHAIN: &str = "send-reject";

/// The set of networks whose traffic to a ClusterIP is not masqueraded.
pub(super) const POD_NETWORKS: &str = "pod-networks";

/// How a packet's source is told to be a pod of this cluster or node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detector {
    /// Nothing tells pods apart.
    None,
    /// By the set of pod networks.
    Source,
    /// By the interface that the packet came in from.
    Interface {
        /// The name of the interface, or how it begins.
        name: String,
        /// Whether every interface whose name begins so is meant.
        prefix: bool,
    },
}

/// The settings that the program depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkeletonConfig {
    /// The networks of the cluster's pods (`--cluster-cidr`). Traffic to a ClusterIP from elsewhere is
    /// masqueraded; none for a family: none of it is.
    pub pod_networks: PerFamily<Vec<IpNet>>,
    /// How pods are told apart, for each family.
    pub detector: PerFamily<Detector>,
    /// The bit of the packet mark that asks for masquerade (`--iptables-masquerade-bit`), 0 to 31.
    pub masquerade_bit: u8,
}

/// The program of one family.
#[derive(Debug, Clone)]
pub struct Skeleton {
    family: Family,
    pod_networks: Vec<IpNet>,
    mark: u32,
    version: String,
}

impl Skeleton {
    /// Makes the program of a family.
    pub fn new(family: Family, config: &SkeletonConfig) -> Self {
        let mut skeleton = Self {
            family,
            pod_networks: IpNet::aggregate(config.pod_networks.get(family)),
            mark: 1 << config.masquerade_bit,
            version: String::new(),
        };
        let shapes = Chain::SHAPES.map(|(_, at, masquerade)| Chain::Balance {
            at,
            masquerade,
            count: 1,
        });
        let has_pod_networks = skeleton.has_pod_networks();
        let mut program = skeleton.text().into_bytes();
        program.extend(skeleton.chains_text(&shapes.into()).into_bytes());
        program.extend(
            shapes
                .iter()
                .flat_map(|chain| chains::bytes(*chain, family, has_pod_networks)),
        );
        skeleton.version = format!("proxyd {:016x}", fnv1a(&program));
        skeleton
    }

    /// Tells programs apart: equal for equal programs only.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it is known which sources are pods of the cluster.
    pub(super) fn has_pod_networks(&self) -> bool {
        !self.pod_networks.is_empty()
    }

    /// The family as nft names it: `ip` or `ip6`.
    pub fn nft_family(&self) -> &'static str {
        match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// The table with its maps and chains, without elements and without the chains that balance.
    pub fn text(&self) -> String {
        let ip = self.nft_family();
        let version = &self.version;
        let mark = self.mark;
        let unmark = !self.mark;
        let pod_networks = self.pod_networks_text();
        format!(
            r#"table {ip} {TABLE} {{
	comment "{version}"

	# New connections: who balances them over how many endpoints.
	map services {{
		typeof {ip} daddr . meta l4proto . th dport : verdict
		counter
	}}
	map node-ports {{
		typeof meta l4proto . th dport : verdict
		counter
	}}
	# The endpoints, each under an index from 0 up.
	map endpoints {{
		typeof {ip} daddr . meta l4proto . th dport . numgen random mod 65536 : {ip} daddr . th dport
	}}
	map node-port-endpoints {{
		typeof meta l4proto . th dport . numgen random mod 65536 : {ip} daddr . th dport
	}}
	# Services that no endpoint can serve now.
	map no-endpoints {{
		typeof {ip} daddr . meta l4proto . th dport : verdict
		counter
	}}
	map no-endpoint-node-ports {{
		typeof meta l4proto . th dport : verdict
		counter
	}}
	# This node's addresses that have NodePorts.
	set node-port-addresses {{
		typeof {ip} daddr
	}}
	# Endpoints that may run here: one that reaches itself through a Service is masqueraded.
	set hairpin {{
		typeof {ip} saddr . {ip} daddr
	}}
{pod_networks}
	chain nat-prerouting {{
		type nat hook prerouting priority -100; policy accept;
		goto balance
	}}
	chain nat-output {{
		type nat hook output priority -100; policy accept;
		goto balance
	}}
	chain balance {{
		{ip} daddr . meta l4proto . th dport vmap @services
		{ip} daddr @node-port-addresses fib daddr type local meta l4proto . th dport vmap @node-ports
	}}

	chain {MARK_CHAIN} {{
		meta mark set meta mark or {mark:#010x}
	}}
	chain nat-postrouting {{
		type nat hook postrouting priority 100; policy accept;
		meta mark & {mark:#010x} != 0 goto do-masquerade
		ct status dnat {ip} saddr . {ip} daddr @hairpin goto do-masquerade
	}}
	# The mark goes first: an overlay's outer packet keeps it and would be translated again.
	chain do-masquerade {{
		meta mark set meta mark and {unmark:#010x}
		masquerade fully-random
	}}

	chain filter-input {{
		type filter hook input priority -110; policy accept;
		ct state new goto refuse
	}}
	chain filter-forward {{
		type filter hook forward priority -110; policy accept;
		ct state new goto refuse
	}}
	chain filter-output {{
		type filter hook output priority -110; policy accept;
		ct state new goto refuse
	}}
	chain refuse {{
		{ip} daddr . meta l4proto . th dport vmap @no-endpoints
		{ip} daddr @node-port-addresses fib daddr type local meta l4proto . th dport vmap @no-endpoint-node-ports
	}}
	chain {REJECT_CHAIN} {{
		meta l4proto tcp reject with tcp reset
		reject
	}}
}}
"#
        )
    }

    /// Chains that balance, for as many back ends as each is for.
    pub(super) fn chains_text(&self, chains: &BTreeSet<Chain>) -> String {
        let ip = self.nft_family();
        let mut text = format!("table {ip} {TABLE} {{\n");
        for chain in chains {
            let Chain::Balance {
                at,
                masquerade,
                count,
            } = *chain
            else {
                continue;
            };
            let mark = match masquerade {
                Masquerade::Always => format!("\t\tjump {MARK_CHAIN}\n"),
                Masquerade::OutsidePods if self.pod_networks.is_empty() => String::new(),
                Masquerade::OutsidePods => {
                    format!("\t\t{ip} saddr != @{POD_NETWORKS} jump {MARK_CHAIN}\n")
                }
            };
            let (key, set) = match at {
                At::Address => (
                    format!("{ip} daddr . meta l4proto . th dport"),
                    Set::Endpoints,
                ),
                At::NodePort => ("meta l4proto . th dport".to_owned(), Set::NodePortEndpoints),
            };
            let map = set.name();
            write!(
                text,
                "\tchain {chain} {{\n{mark}\t\tdnat {ip} to {key} . numgen random mod {count} map @{map}\n\t}}\n"
            )
            .expect("writing to a String never fails");
        }
        text + "}\n"
    }

    /// The set of pod networks, if there is one. They come from flags and are part of the program.
    fn pod_networks_text(&self) -> String {
        if self.pod_networks.is_empty() {
            return String::new();
        }
        let ip = self.nft_family();
        let networks: Vec<String> = self.pod_networks.iter().map(IpNet::to_string).collect();
        let networks = networks.join(", ");
        format!(
            "\t# Where the cluster's pods are; others are masqueraded on their way to a ClusterIP.\n\
             \tset {POD_NETWORKS} {{\n\t\ttypeof {ip} saddr\n\t\tflags interval\n\
             \t\telements = {{ {networks} }}\n\t}}\n"
        )
    }
}

/// The FNV-1a hash of 64 bits. Only has to tell programs apart, and to be the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
