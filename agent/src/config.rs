//! Raw flags → checked configuration, once, before anything runs.

use std::path::PathBuf;

use ipnet::IpNet;

use crate::cli::Cli;
use crate::dataplane::nft::{Detector, SkeletonConfig};
use crate::model::PerFamily;
use crate::plan::{NodePortAddresses, PlanConfig, PodNetworks};

/// What proxyd is to do, and with what.
#[derive(Debug, Clone)]
pub struct Config {
    /// What to do.
    pub mode: Mode,
    /// Where Services, EndpointSlices and the Node come from.
    pub source: SourceConfig,
    /// The name of this node.
    pub node_name: String,
    /// Settings of the plan.
    pub plan: PlanConfig,
    /// Settings of the rules' skeleton.
    pub skeleton: SkeletonConfig,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Keep the rules right until told to stop.
    Agent,
    /// Print the rules.
    DryRun,
    /// Remove the rules.
    Cleanup,
}

/// Where Services, EndpointSlices and the Node come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// Files and directories; `-` is standard input.
    Manifests(Vec<PathBuf>),
    /// A Kubernetes API server.
    Kubernetes {
        /// The kubeconfig file.
        kubeconfig: Option<PathBuf>,
        /// The URL of the API server.
        master: Option<http::Uri>,
    },
}

/// A flag whose value cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("invalid value {value:?} for --{flag}: {reason}")]
pub struct FlagError {
    flag: &'static str,
    value: String,
    reason: String,
}

impl Config {
    /// Checks the flags.
    ///
    /// # Errors
    /// The first flag whose value cannot be used.
    pub fn from_cli(cli: Cli) -> Result<Self, FlagError> {
        let mode = match (cli.dry_run, cli.cleanup) {
            (true, _) => Mode::DryRun,
            (_, true) => Mode::Cleanup,
            _ => Mode::Agent,
        };
        let source = if cli.manifests.is_empty() {
            SourceConfig::Kubernetes {
                kubeconfig: cli.kubeconfig,
                master: cli.master.as_deref().map(url).transpose()?,
            }
        } else {
            SourceConfig::Manifests(cli.manifests)
        };
        let cluster = networks("cluster-cidr", &cli.cluster_cidr)?;
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = cluster
            .iter()
            .copied()
            .partition(|network| network.network().is_ipv4());
        Ok(Self {
            mode,
            source,
            node_name: node_name(cli.hostname_override)?,
            plan: PlanConfig {
                node_port_addresses: node_port_addresses(&cli.nodeport_addresses)?,
                pod_networks: PodNetworks::Fixed(cluster),
                masquerade_all: false,
            },
            skeleton: SkeletonConfig {
                detector: PerFamily {
                    v4: detector(&v4),
                    v6: detector(&v6),
                },
                pod_networks: PerFamily { v4, v6 },
                masquerade_bit: cli.iptables_masquerade_bit,
            },
        })
    }
}

/// By source address, where there are networks to go by.
fn detector(networks: &[IpNet]) -> Detector {
    if networks.is_empty() {
        Detector::None
    } else {
        Detector::Source
    }
}

/// The name of this node: trimmed and in lower case, as kubelet and kube-proxy have it.
fn node_name(hostname_override: Option<String>) -> Result<String, FlagError> {
    let error = |value: &str, reason: String| FlagError {
        flag: "hostname-override",
        value: value.to_owned(),
        reason,
    };
    let name = match hostname_override {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .map_err(|errno| {
                error(
                    "",
                    format!("the host's name cannot be read ({errno}); give the node's name"),
                )
            })?
            .to_string_lossy()
            .into_owned(),
    };
    let trimmed = name.trim().to_lowercase();
    if trimmed.is_empty() {
        return Err(error(&name, "the node's name is empty".to_owned()));
    }
    Ok(trimmed)
}

/// The URL of an API server. One without a scheme is taken for http, as client-go does.
fn url(value: &str) -> Result<http::Uri, FlagError> {
    let with_scheme = if value.contains("://") {
        value.to_owned()
    } else {
        format!("http://{value}")
    };
    with_scheme.parse().map_err(|error| FlagError {
        flag: "master",
        value: value.to_owned(),
        reason: format!("not a URL ({error}); write it as https://host:6443"),
    })
}

fn node_port_addresses(values: &[String]) -> Result<NodePortAddresses, FlagError> {
    const FLAG: &str = "nodeport-addresses";
    match values {
        [only] if only == "primary" => Ok(NodePortAddresses::Primary),
        values if values.iter().any(|value| value == "primary") => Err(FlagError {
            flag: FLAG,
            value: values.join(","),
            reason: "`primary` stands alone".to_owned(),
        }),
        values => networks(FLAG, values).map(NodePortAddresses::In),
    }
}

fn networks(flag: &'static str, values: &[String]) -> Result<Vec<IpNet>, FlagError> {
    let parse = |value: &String| {
        let network: IpNet = value.trim().parse().map_err(|_| FlagError {
            flag,
            value: value.clone(),
            reason: "not a network; write an address and a prefix length, such as 10.244.0.0/16"
                .to_owned(),
        })?;
        Ok(network.trunc())
    };
    // An empty value means that the flag is not set, as kube-proxy's manifests have it.
    values
        .iter()
        .filter(|value| !value.trim().is_empty())
        .map(parse)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn config(args: &[&str]) -> Result<Config, String> {
        let cli =
            Cli::try_parse_from([&["proxyd", "--hostname-override", " Node-1 "], args].concat())
                .map_err(|error| error.to_string())?;
        Config::from_cli(cli).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_become_configuration() {
        let config =
            config(&["--cluster-cidr", "10.244.1.7/16,fd00:244::/48", "--dry-run"]).unwrap();
        assert_eq!(config.node_name, "node-1");
        assert_eq!(config.mode, Mode::DryRun);
        assert_eq!(
            config.skeleton.pod_networks.v4,
            ["10.244.0.0/16".parse().unwrap()]
        );
        assert_eq!(
            config.skeleton.pod_networks.v6,
            ["fd00:244::/48".parse().unwrap()]
        );
        assert_eq!(config.plan.node_port_addresses, NodePortAddresses::Primary);
    }

    #[test]
    fn an_empty_network_is_none_and_a_url_needs_no_scheme() {
        let config = config(&["--cluster-cidr=", "--master", "localhost:8080"]).unwrap();
        assert_eq!(config.skeleton.pod_networks, PerFamily::default());
        let master = Some("http://localhost:8080".parse().unwrap());
        assert_eq!(
            config.source,
            SourceConfig::Kubernetes {
                kubeconfig: None,
                master
            }
        );
    }

    #[test]
    fn a_bad_flag_says_which_and_what_would_be_right() {
        let error = |args: &[&str]| config(args).unwrap_err();
        assert!(error(&["--cluster-cidr", "10.0.0.0"]).contains("--cluster-cidr: not a network"));
        assert!(error(&["--nodeport-addresses", "primary,10.0.0.0/8"]).contains("stands alone"));
        assert!(error(&["--iptables-masquerade-bit", "32"]).contains("0..=31"));
        assert!(error(&["--hostname-override", ""]).contains("cannot be used multiple times"));
        assert!(error(&["--manifests", "a", "--kubeconfig", "b"]).contains("cannot be used with"));
        assert!(error(&["--master", "not a url"]).contains("--master: not a URL"));
        assert!(error(&["--no-such-flag"]).contains("unexpected argument"));
    }
}
