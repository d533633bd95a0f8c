//! The command line. A flag has kube-proxy's name wherever kube-proxy has one.

use std::path::PathBuf;

use clap::Parser;

/// A Kubernetes service proxy: keeps the nftables rules of one node right, so that connections to Services
/// reach their endpoints.
#[derive(Debug, Parser)]
#[command(name = "proxyd", version)]
pub struct Cli {
    /// Print the complete rule set, as text that `nft -f` loads, and exit. Nothing is changed; with
    /// --manifests no root is needed. Exits with 1 if part of the input was refused
    #[arg(long)]
    pub dry_run: bool,

    /// Remove proxyd's rules, and nothing else, and exit
    #[arg(long, conflicts_with_all = ["dry_run", "manifests", "kubeconfig", "master"])]
    pub cleanup: bool,

    /// Take Services (with their ClusterIPs), EndpointSlices and Nodes from files instead of a cluster: YAML or
    /// JSON as kubectl prints it. A directory stands for its *.yaml, *.yml and *.json files; - is standard
    /// input. The agent reads them again when they change
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["kubeconfig", "master"])]
    pub manifests: Vec<PathBuf>,

    /// The kubeconfig file that says where the API server is and who calls. Without it, and without --master
    /// and --manifests, the service account of the pod that proxyd runs in
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The URL of the API server; overrides the one in --kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// The name of this node, if its Node object is not named as the host is
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// The networks of the cluster's pods, such as 10.244.0.0/16,fd00:244::/48. Traffic to a ClusterIP from
    /// elsewhere is masqueraded; without this flag none is
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,

    /// Which of the node's addresses have NodePorts: networks such as 192.168.0.0/16,::/0, or `primary` for
    /// the addresses of the Node object (those of the machine where there is no Node object)
    #[arg(
        long,
        value_name = "primary|CIDR,…",
        value_delimiter = ',',
        default_value = "primary"
    )]
    pub nodeport_addresses: Vec<String>,

    /// The bit of the packet mark that asks for masquerade; nobody else on the node may use it
    #[arg(
        long,
        value_name = "BIT",
        default_value_t = 14,
        value_parser = clap::value_parser!(u8).range(0..=31)
    )]
    pub iptables_masquerade_bit: u8,

    /// How much to log: 2 what matters to an operator, 4 every sync, 6 everything
    #[arg(short, long, value_name = "LEVEL", default_value_t = 2)]
    pub v: u8,
}
