//! The skeleton: the constant program of one family, as text that nft 1.0.1 and later load.
//!
//! It holds no Service: those are elements of its maps. Its [`Skeleton::version`] stands in the table's
//! comment and changes with any letter of the program and any expression of its chains, so that a restart knows
//! whether it may adopt what is there. nft prints some rules otherwise than they were written, so the text itself is never compared.

use std::collections::BTreeSet;

use proxyd_ebpf_common::MASQUERADE_PORTS;

use super::chains;
use super::elements::Set;
use super::shapes::{At, Chain, Step};
use crate::model::{AffinityTimeout, Family, PerFamily, Protocol};
use crate::plan::Detector;

/// The name of the table, in both families.
pub(super) const TABLE: &str = "proxyd";

/// The chain that marks a connection for masquerade.
pub(super) const MARK_CHAIN: &str = "mark-for-masquerade";

/// The chain that refuses a connection.
pub(super) const REJECT_CHAIN: &str = "send-reject";

/// The map of the choices that are remembered for clients.
pub(super) const AFFINITY: &str = "affinity";

/// How many choices are remembered in a family, at most. Linux sets aside 16 bytes for each from the start.
const AFFINITY_SIZE: u32 = 131_072;

/// The settings that the program depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkeletonConfig {
    /// What tells pods of this cluster or node from others.
    pub detector: PerFamily<Detector>,
    /// The bit of the packet mark that asks for masquerade (`--iptables-masquerade-bit`), 0 to 31.
    pub masquerade_bit: u8,
}

/// What the rules do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// They balance connections, and refuse and drop.
    Balance,
    /// They refuse and drop only: others balance. No connection is tracked for that, so what they say of new connections they
    /// say of packets: of TCP's, those that ask for one.
    Refuse,
}

/// The match of a packet from a pod, or of one that is from elsewhere.
fn from_pod(detector: &Detector, ip: &str, wanted: bool) -> String {
    let not = if wanted { "" } else { "!= " };
    match detector {
        Detector::None => unreachable!("steps ask for pods only where a detector knows them"),
        Detector::Source => format!("{ip} saddr {not}@pod-networks"),
        Detector::Interface { name, prefix } => {
            let any = if *prefix { "*" } else { "" };
            format!("iifname {not}\"{name}{any}\"")
        }
    }
}

/// The program of one family.
#[derive(Debug, Clone)]
pub struct Skeleton {
    family: Family,
    detector: Detector,
    duty: Duty,
    mark: u32,
    version: String,
}

impl Skeleton {
    /// Makes the program of a family that balances.
    pub fn new(family: Family, config: &SkeletonConfig) -> Self {
        Self::with(Duty::Balance, family, config)
    }

    /// Makes the program of a family.
    pub fn with(duty: Duty, family: Family, config: &SkeletonConfig) -> Self {
        let mut skeleton = Self {
            family,
            duty,
            detector: config.detector.get(family).clone(),
            mark: 1 << config.masquerade_bit,
            version: String::new(),
        };
        let samples: BTreeSet<Chain> = [At::Address, At::NodePort]
            .into_iter()
            .flat_map(Chain::samples)
            .chain([Chain::Remember(AffinityTimeout::DEFAULT)])
            .collect();
        let mut program = skeleton.text().into_bytes();
        program.extend(skeleton.chains_text(&samples).into_bytes());
        let of_chain = |chain: &Chain| chains::bytes(*chain, &skeleton);
        program.extend(samples.iter().flat_map(of_chain));
        skeleton.version = format!("proxyd {:016x}", fnv1a(&program));
        skeleton
    }

    /// Tells programs apart: equal for equal programs only.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it is known which packets come from pods.
    pub(super) fn knows_pods(&self) -> bool {
        self.detector.knows_pods()
    }

    /// What tells packets from pods from others.
    pub(super) fn detector(&self) -> &Detector {
        &self.detector
    }

    /// What the rules do.
    pub(super) fn duty(&self) -> Duty {
        self.duty
    }

    /// The rules of a chain. Where nothing goes there, it has none.
    pub(super) fn steps(&self, chain: Chain) -> Vec<Step> {
        match self.duty {
            Duty::Balance => chain.steps(self.knows_pods()),
            Duty::Refuse => Vec::new(),
        }
    }

    /// The family of the rules.
    pub(super) fn family(&self) -> Family {
        self.family
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
        let chains = match self.duty {
            Duty::Balance => self.translation() + &self.filters(),
            Duty::Refuse => self.filters_alone(),
        };
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
	# The endpoints, each under an index: from 0 up on every node, from 32768 up on this one.
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
	# Session affinity: who remembers the clients of a Service for how long, and whom they were sent to.
	map affinities {{
		typeof {ip} daddr . meta l4proto . th dport : verdict
	}}
	map node-port-affinities {{
		typeof meta l4proto . th dport : verdict
	}}
	map {AFFINITY} {{
		typeof {ip} saddr . {ip} daddr . meta l4proto . th dport : {ip} daddr . th dport
		size {AFFINITY_SIZE}
		flags dynamic,timeout
	}}
	# Load-balancer addresses that only some sources may call.
	set guarded {{
		typeof {ip} daddr . meta l4proto . th dport
	}}
	set allowed-sources {{
		typeof {ip} daddr . meta l4proto . th dport . {ip} saddr
		flags interval
	}}
	# The addresses of Services, and the networks that they are allocated from.
	set cluster-ips {{
		typeof {ip} daddr
	}}
	set service-networks {{
		typeof {ip} daddr
		flags interval
	}}
	# This node's addresses that have NodePorts.
	set node-port-addresses {{
		typeof {ip} daddr
	}}
	# Endpoints that may run here: one that reaches itself through a Service is masqueraded.
	set hairpin {{
		typeof {ip} saddr . {ip} daddr
	}}
	# Where the cluster's pods are; others are masqueraded on their way to a ClusterIP.
	set pod-networks {{
		typeof {ip} saddr
		flags interval
	}}

{chains}	chain {REJECT_CHAIN} {{
		meta l4proto tcp reject with tcp reset
		reject
	}}
}}
"#
        )
    }

    /// The chains that balance.
    fn translation(&self) -> String {
        let ip = self.nft_family();
        let mark = self.mark;
        let unmark = !self.mark;
        // BPF programs masquerade beside these rules, before them or after. Clients with a low port get a low one. There is a rule
        // for each protocol, since an anonymous set of them could not be put back like a rule.
        let masquerade = Protocol::ALL.map(|protocol| {
            let last = MASQUERADE_PORTS.0 - 1;
            format!(
                "\t\tmeta l4proto {protocol} th sport >= 1024 masquerade to :1024-{last} fully-random\n"
            )
        });
        let masquerade = masquerade.concat();
        let remember = self.remember_text();
        let verdicts = self.verdicts_text().concat();
        format!(
            r#"	chain nat-prerouting {{
		type nat hook prerouting priority -100; policy accept;
		goto balance
	}}
	chain nat-output {{
		type nat hook output priority -100; policy accept;
		goto balance
	}}
	chain balance {{
{verdicts}	}}

	chain {MARK_CHAIN} {{
		meta mark set meta mark or {mark:#010x}
	}}
	chain nat-postrouting {{
		type nat hook postrouting priority 100; policy accept;
		meta mark & {mark:#010x} != 0 goto do-masquerade
		ct status dnat {ip} saddr . {ip} daddr @hairpin goto do-masquerade
	}}
	# The mark goes first: an overlay's outer packet keeps it and would be translated again. Higher ports are those of BPF programs.
	chain do-masquerade {{
		meta mark set meta mark and {unmark:#010x}
{masquerade}		masquerade fully-random
	}}

	# Who was translated to whom, before anybody translates the source. Chains of type nat see the first packet of a
	# connection only: a client that gets no answer must not be remembered again with each datagram.
	chain nat-postrouting-remember {{
		type nat hook postrouting priority 90; policy accept;
		ct status dnat goto remember
	}}
	chain nat-input-remember {{
		type nat hook input priority 90; policy accept;
		ct status dnat goto remember
	}}
	chain remember {{
{remember}	}}

"#
        )
    }

    /// The chains that refuse and drop, beside those that balance.
    fn filters(&self) -> String {
        let guard = self.guard_text();
        let [refused, refused_here, unserved] = self.refusals_text();
        format!(
            r#"	# Before any translation: sources that may not call an address.
	chain filter-prerouting {{
		type filter hook prerouting priority -110; policy accept;
		ct state new goto guard
	}}
	chain filter-output-guard {{
		type filter hook output priority -110; policy accept;
		ct state new goto guard
	}}
	chain guard {{
{guard}	}}

	# After the translation: what no Service took.
	chain filter-input {{
		type filter hook input priority -110; policy accept;
		ct state new goto refuse
	}}
	chain filter-forward {{
		type filter hook forward priority -110; policy accept;
		ct state new goto refuse
	}}
	chain filter-output {{
		type filter hook output priority -90; policy accept;
		ct state new goto refuse
	}}
	chain refuse {{
{refused}{refused_here}{unserved}	}}
"#
        )
    }

    /// The chains that refuse and drop, where others balance: what those serve has another destination before it comes here. Packets of
    /// connections that are open pass one chain, and two rules of it.
    fn filters_alone(&self) -> String {
        let guard = self.guard_text();
        let [at_addresses, at_node_ports] = self.verdicts_text();
        let [refused, refused_here, unserved] = self.refusals_text();
        let only_new = "\t\tmeta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn accept\n";
        format!(
            r#"	chain filter-input {{
		type filter hook input priority -110; policy accept;
{only_new}		goto refuse-here
	}}
	chain filter-forward {{
		type filter hook forward priority -110; policy accept;
{only_new}		goto refuse
	}}
	chain filter-output {{
		type filter hook output priority -90; policy accept;
{only_new}		goto refuse-here
	}}
	# NodePorts are at addresses of this node.
	chain refuse-here {{
		jump refuse
{at_node_ports}{refused_here}	}}
	chain refuse {{
{guard}{at_addresses}{refused}{unserved}	}}
"#
        )
    }

    /// The rule that stops sources which may not call an address.
    fn guard_text(&self) -> String {
        let ip = self.nft_family();
        format!(
            "\t\t{ip} daddr . meta l4proto . th dport @guarded \
             {ip} daddr . meta l4proto . th dport . {ip} saddr != @allowed-sources drop\n"
        )
    }

    /// The rules that refuse what is called without an endpoint: an address, a NodePort, and what is no Service's.
    fn refusals_text(&self) -> [String; 3] {
        let ip = self.nft_family();
        let [at_addresses, at_node_ports] =
            self.lookups_text(["no-endpoints", "no-endpoint-node-ports"]);
        let unserved = format!(
            "\t\t{ip} daddr @cluster-ips goto {REJECT_CHAIN}\n\
             \t\t{ip} daddr @service-networks drop\n"
        );
        [at_addresses, at_node_ports, unserved]
    }

    /// The rules that find what happens to a new connection, to an address and to a NodePort.
    fn verdicts_text(&self) -> [String; 2] {
        self.lookups_text(["services", "node-ports"])
    }

    /// The rules that look an address up in a map, and a NodePort in another one.
    fn lookups_text(&self, [addresses, node_ports]: [&str; 2]) -> [String; 2] {
        let ip = self.nft_family();
        [
            format!("\t\t{ip} daddr . meta l4proto . th dport vmap @{addresses}\n"),
            format!(
                "\t\t{ip} daddr @node-port-addresses fib daddr type local meta l4proto . th dport vmap @{node_ports}\n"
            ),
        ]
    }

    /// The rules that find who remembers a new connection. The port that a client called has a type only beside
    /// a protocol.
    fn remember_text(&self) -> String {
        let ip = self.nft_family();
        let rule = |protocol: Protocol| {
            let port = format!("meta l4proto {protocol}");
            let key = "meta l4proto . ct original proto-dst";
            format!(
                "\t\t{port} ct original {ip} daddr . {key} vmap @affinities\n\
                 \t\tct original {ip} daddr @node-port-addresses {port} {key} vmap @node-port-affinities\n"
            )
        };
        Protocol::ALL.map(rule).concat()
    }

    /// Chains that were made for a shape.
    pub(super) fn chains_text(&self, chains: &BTreeSet<Chain>) -> String {
        let ip = self.nft_family();
        let chains = chains.iter().map(|chain| {
            let steps = self.steps(*chain).into_iter();
            let rules: String = steps
                .map(|step| format!("\t\t{}\n", self.rule_text(step)))
                .collect();
            format!("\tchain {chain} {{\n{rules}\t}}\n")
        });
        let chains: String = chains.collect();
        format!("table {ip} {TABLE} {{\n{chains}}}\n")
    }

    /// One rule of a chain that was made for a shape.
    fn rule_text(&self, step: Step) -> String {
        let ip = self.nft_family();
        let pods = |wanted| from_pod(&self.detector, ip, wanted);
        match step {
            Step::Mark => format!("jump {MARK_CHAIN}"),
            Step::MarkOutsidePods => format!("{} jump {MARK_CHAIN}", pods(false)),
            Step::PodsGoto(chain) => format!("{} goto {chain}", pods(true)),
            Step::NodeGoto(chain) => format!("fib saddr type local goto {chain}"),
            Step::Recall => format!(
                "dnat {ip} to {ip} saddr . {ip} daddr . meta l4proto . th dport map @{AFFINITY}"
            ),
            Step::Translate { at, first, count } => {
                let (address, map) = match at {
                    At::Address => (format!("{ip} daddr . "), Set::Endpoints.name()),
                    At::NodePort => (String::new(), Set::NodePortEndpoints.name()),
                };
                let offset = match first {
                    0 => String::new(),
                    first => format!(" offset {first}"),
                };
                format!(
                    "dnat {ip} to {address}meta l4proto . th dport . numgen random mod {count}{offset} map @{map}"
                )
            }
            Step::Drop => "drop".to_owned(),
            Step::Remember(protocol, timeout) => format!(
                "meta l4proto {protocol} update @{AFFINITY} {{ {ip} saddr . ct original {ip} daddr . meta l4proto . \
                 ct original proto-dst timeout {}s : {ip} daddr . {protocol} dport }}",
                timeout.seconds()
            ),
        }
    }
}

/// The FNV-1a hash of 64 bits. Only has to tell programs apart, and to be the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
