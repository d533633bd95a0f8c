//! The command line. A flag has kube-proxy's name wherever kube-proxy has one.
//!
//! Nothing is checked here but what tells flags apart: a value may also come from the file of `--config`, and
//! [`crate::config`] checks both alike. So a flag that was not given is `None`, and defaults stand there.

mod ignored;
mod told;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

use crate::config::boolean;
use crate::dataplane::Backend;
use crate::dataplane::ebpf::{self, maglev::TableSize};
use crate::dry_run::Output;
use crate::model::ObjectName;
pub use ignored::Ignored;
pub use told::flags;

/// A Kubernetes service proxy: keeps the nftables rules of one node right, so that connections to Services
/// reach their endpoints.
///
/// Takes kube-proxy's flags and its configuration file. Flags of kube-proxy that proxyd has no use for are
/// accepted, and named in the log.
#[derive(Debug, Parser)]
#[command(name = "proxyd", version)]
pub struct Cli {
    /// Print the complete rule set, as text that `nft -f` loads, and exit. Nothing is changed; with
    /// --manifests no root is needed. Exits with 1 if part of the input was refused
    #[arg(long)]
    pub dry_run: bool,

    /// How --dry-run prints. text: the rules, and with --backend ebpf what the BPF maps hold, as comments; summary:
    /// each Service's addresses and endpoints, without rules; json: what the BPF maps hold, with --backend ebpf only
    #[arg(
        short,
        long,
        requires = "dry_run",
        value_name = "FORMAT",
        value_enum,
        default_value_t = Output::Text,
        hide_possible_values = true
    )]
    pub output: Output,

    /// The one Service that --dry-run is to print, such as kube-system/kube-dns; without a namespace one of `default`
    #[arg(long, requires = "dry_run", value_name = "[NAMESPACE/]NAME", value_parser = service_name)]
    pub service: Option<ObjectName>,

    /// Remove proxyd's rules, and nothing else, and exit
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = boolean,
        conflicts_with_all = ["dry_run", "manifests"],
        value_name = "BOOL"
    )]
    pub cleanup: bool,

    /// A file with a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1 or v1alpha2), as kubeadm writes it.
    /// When it changes, proxyd ends, to be started anew. What a flag says goes before what the file says
    /// (kube-proxy ignores most flags beside a file)
    #[arg(long, value_name = "FILE")]
    pub config: Option<OsString>,

    /// Write the configuration that flags and --config come to, as a file for --config, and exit
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub write_config_to: Option<OsString>,

    /// Make the settings that need root (those of connection tracking, and with --backend ebpf the ports that are
    /// reserved), and exit; without them, proxyd can run with CAP_NET_ADMIN alone
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = boolean,
        conflicts_with = "dry_run",
        value_name = "BOOL"
    )]
    pub init_only: bool,

    /// How much to log: 2 what matters to an operator, 4 every sync, 6 everything
    /// [default: 2]
    #[arg(short, long, value_name = "LEVEL")]
    pub v: Option<u8>,

    /// How the log is written: text, or json with the field names of Kubernetes' components [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<String>,

    /// Where Services come from, and which node this is.
    #[command(flatten)]
    pub source: SourceFlags,
    /// What the rules do.
    #[command(flatten)]
    pub traffic: TrafficFlags,
    /// What balances.
    #[command(flatten)]
    pub backend: BackendFlags,
    /// What others can ask proxyd.
    #[command(flatten)]
    pub health: HealthFlags,
    /// What proxyd sets in the kernel's connection tracking.
    #[command(flatten)]
    pub conntrack: ConntrackFlags,
    /// Flags of kube-proxy that have no effect.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Where Services come from, and which node this is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct SourceFlags {
    /// The kubeconfig file that says where the API server is and who calls. Without it, and without --master
    /// and --manifests, the service account of the pod that proxyd runs in
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<OsString>,

    /// The URL of the API server; overrides the one in --kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// Take Services (with their ClusterIPs), EndpointSlices and Nodes from files instead of a cluster: YAML or
    /// JSON as kubectl prints it. A directory stands for its *.yaml, *.yml and *.json files, and not for those of
    /// directories in it; - is standard input. Can be given more than once. The agent reads them again when they
    /// change
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "master"])]
    pub manifests: Vec<PathBuf>,

    /// The name of this node, if its Node object is not named as the host is
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
}

/// What the rules do.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traffic")]
pub struct TrafficFlags {
    /// How to tell which traffic comes from pods; what else goes to a ClusterIP is masqueraded. ClusterCIDR:
    /// sources in --cluster-cidr; NodeCIDR: in the podCIDRs of the Node object; BridgeInterface: what comes in
    /// from --pod-bridge-interface; InterfaceNamePrefix: from an interface whose name begins with
    /// --pod-interface-name-prefix [default: ClusterCIDR]
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,

    /// The networks of the cluster's pods, such as 10.244.0.0/16,fd00:244::/48. Without any, mode ClusterCIDR
    /// tells no pods apart, and nothing is masqueraded on its way to a ClusterIP
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,

    /// The bridge that pods are at, for mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// How the names of the pods' interfaces begin, for mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Masquerade all traffic to ClusterIPs
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = boolean,
        value_name = "BOOL"
    )]
    pub masquerade_all: Option<bool>,

    /// Refuse connections to ports that no Service has at load-balancer and external addresses of Services, where this node would send
    /// them back the way they came. kube-proxy leaves such to the network, where they go round between router and node. Addresses of the
    /// node itself are never touched [default: true]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = boolean,
        value_name = "BOOL"
    )]
    pub reject_unused_service_ports: bool,

    /// The bit of the packet mark that asks for masquerade, 0 to 31; nobody else on the node may use it
    /// [default: 14]
    #[arg(long, value_name = "BIT")]
    pub iptables_masquerade_bit: Option<i64>,

    /// Which of the node's addresses have NodePorts: networks such as 192.168.0.0/16; `primary` for the addresses
    /// of the Node object (those of the machine where there is no Node object); `all`; `localhost` for 127.0.0.1
    /// and ::1; or several of these [default: primary]
    #[arg(
        long,
        value_name = "primary|localhost|all|CIDR,…",
        value_delimiter = ','
    )]
    pub nodeport_addresses: Vec<String>,

    /// `nftables`. The other modes of kube-proxy, iptables and ipvs, are taken for it; with them, NodePorts are at
    /// all addresses of the node if --nodeport-addresses says nothing (iptables: at 127.0.0.1 too, for TCP)
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,

    /// With --proxy-mode iptables: whether NodePorts are at 127.0.0.1 too (kube-proxy's way) [default: true]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide = true,
        value_parser = boolean,
        value_name = "BOOL"
    )]
    pub iptables_localhost_nodeports: Option<bool>,

    /// Feature gates of Kubernetes, such as AllowServiceExternalIPs=false, with which externalIPs of Services are
    /// not served
    #[arg(long, value_name = "GATE=BOOL,…", value_delimiter = ',')]
    pub feature_gates: Vec<String>,

    /// How long rules may be behind; the health check fails after twice as long [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<String>,
}

/// What balances.
#[derive(Debug, Args)]
#[command(next_help_heading = "Back end")]
pub struct BackendFlags {
    /// What balances. Programs and maps of ebpf stay in the kernel while no agent runs, as rules do
    #[arg(long, value_name = "BACKEND", value_enum, default_value_t = Backend::Nftables)]
    pub backend: Backend,

    /// The directory of cgroup v2 whose processes' sockets --backend ebpf balances [default: the root]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// The directory in a BPF filesystem where --backend ebpf keeps its programs and maps
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/proxyd")]
    pub bpf_path: PathBuf,

    /// The devices where --backend ebpf translates packets of clients outside, and of pods whose sockets it does not see, such as
    /// eth0,cali* [default: those that a route leads to]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub devices: Vec<String>,

    /// Whether --backend ebpf attaches to devices by tcx links where the kernel has them (Linux 6.6), rather than by clsact filters
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub enable_tcx: bool,

    /// With --backend ebpf, all packets of connections that devices translate but the first of each go from device to device, past this
    /// node's routing and firewall. Not together with network policies or other rules that track connections on the node
    #[arg(long)]
    pub fast_path: bool,

    /// How many slots tables have by which --backend ebpf chooses endpoints for clients outside, the same on all nodes: a
    /// prime number, a hundred times as many as a Service has endpoints or more
    #[arg(long, value_name = "PRIME", default_value_t = TableSize::DEFAULT)]
    pub maglev_table_size: TableSize,

    /// How many connections --backend ebpf can translate at devices at a time; of more, those that were silent for longest are
    /// forgotten. Some 420 bytes of the kernel's memory each, taken at once
    #[arg(long, value_name = "NUMBER", default_value_t = ebpf::CONNECTIONS,
          value_parser = clap::value_parser!(u32).range(1_024..=16_777_216))]
    pub connection_table_size: u32,

    /// With --backend ebpf, also close TCP connections to endpoints that are in no EndpointSlice of the Service any
    /// more; clients see ECONNABORTED. Connected UDP sockets are always closed
    #[arg(long)]
    pub close_tcp_of_deleted_endpoints: bool,
}

/// What others can ask proxyd.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct HealthFlags {
    /// Where /healthz and /livez are served; empty: nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,

    /// Where /metrics is served; empty: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,

    /// End if one of these addresses cannot be had, instead of a warning
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = boolean,
        value_name = "BOOL"
    )]
    pub bind_address_hard_fail: Option<bool>,

    /// Let whoever reaches --metrics-bind-address change how much is logged: PUT /debug/flags/v with a level
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = boolean,
        value_name = "BOOL"
    )]
    pub profiling: Option<bool>,

    /// The port of --healthz-bind-address where that names none; 0: not served (kube-proxy's old way)
    #[arg(long, value_name = "PORT", hide = true)]
    pub healthz_port: Option<i64>,

    /// The port of --metrics-bind-address where that names none; 0: not served (kube-proxy's old way)
    #[arg(long, value_name = "PORT", hide = true)]
    pub metrics_port: Option<i64>,

    /// Only its family matters: an IPv6 address makes IPv6 ones the defaults of the two above
    #[arg(long, value_name = "IP", hide = true)]
    pub bind_address: Option<String>,
}

/// What proxyd sets in the kernel's connection tracking.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection tracking")]
pub struct ConntrackFlags {
    /// How many connections can be tracked for each CPU; the kernel's limit is raised to that, never lowered.
    /// 0 leaves it as it is, whatever --conntrack-min says [default: 32768]
    #[arg(long, value_name = "NUMBER")]
    pub conntrack_max_per_core: Option<i64>,

    /// How many connections can be tracked at the least [default: 131072]
    #[arg(long, value_name = "NUMBER")]
    pub conntrack_min: Option<i64>,

    /// How long an idle TCP connection is kept; 0 leaves it as it is [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,

    /// How long a TCP connection is kept that one side has closed; 0 leaves it as it is [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,

    /// Do not call TCP packets outside the window invalid
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        value_parser = boolean,
        value_name = "BOOL"
    )]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// How long a UDP flow without an answer is kept; 0 leaves it as it is [default: 0]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,

    /// How long an answered UDP flow is kept; 0 leaves it as it is [default: 0]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
}

/// A Service's namespace and name, as `kubectl get service/NAME -n NAMESPACE` has them.
fn service_name(text: &str) -> Result<ObjectName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err("write NAMESPACE/NAME".to_owned());
    }
    Ok(ObjectName::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_shows_what_has_an_effect_in_groups() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        let groups = [
            "Options:",
            "Cluster:",
            "Traffic:",
            "Back end:",
            "Health and metrics:",
            "Connection tracking:",
        ];
        let places: Vec<_> = groups
            .iter()
            .map(|group| help.find(&format!("\n{group}\n")))
            .collect();
        assert!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{help}"
        );
        for hidden in ["oom-score-adj", "--ipvs-scheduler", "--healthz-port"] {
            assert!(!help.contains(hidden), "{hidden}: {help}");
        }
        assert!(help.contains("--detect-local-mode <MODE>"), "{help}");
    }

    #[test]
    fn a_service_is_named_with_its_namespace_or_is_in_the_default_one() {
        assert_eq!(service_name("web"), Ok(ObjectName::new("default", "web")));
        assert_eq!(service_name("shop/web"), Ok(ObjectName::new("shop", "web")));
        for wrong in ["", "/web", "shop/", "services/shop/web"] {
            assert!(service_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn booleans_are_those_of_go() {
        for (text, expected) in [("1", true), ("T", true), ("0", false), ("False", false)] {
            assert_eq!(boolean(text), Ok(expected));
        }
        assert!(boolean("yes").is_err());
    }
}
