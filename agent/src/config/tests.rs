//! What flags and files mean, and which of them counts.

mod effective;
mod lenient;
mod node_ports;
mod told;

use std::fs;

use clap::Parser as _;
use tempfile::TempDir;

use super::*;
use crate::model::PerFamily;
use crate::plan::Detector;
use crate::plan::NodePortAddresses;
use crate::plan::PodNetworks;

/// What kubeadm puts into the ConfigMap kube-proxy, with all that is empty or null.
const KUBEADM: &str = include_str!("kubeadm.yaml");

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn config(args: &[&str]) -> Result<Config, String> {
    let cli = Cli::try_parse_from([&["proxyd"], args].concat()).map_err(|e| e.to_string())?;
    Config::from_cli(cli).map_err(|e| e.to_string())
}

/// The configuration by a file and flags beside it. The file shows as FILE in messages.
fn with_file(text: &str, args: &[&str]) -> Result<Config, String> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("config.conf");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let shown = |text: String| text.replace(path, "FILE");
    let config = config(&[&["--config", path], args].concat()).map_err(shown)?;
    let notes = config.notes.iter().cloned();
    let notes = notes.map(|note| note.map(shown)).collect();
    let source = match config.source {
        SourceConfig::Kubernetes {
            kubeconfig: Some(file),
            master,
        } => SourceConfig::Kubernetes {
            kubeconfig: Some(KubeconfigFile {
                place: shown(file.place),
                ..file
            }),
            master,
        },
        source => source,
    };
    Ok(Config {
        notes,
        source,
        ..config
    })
}

/// With the two fields that every file has.
fn with_fields(fields: &str, args: &[&str]) -> Result<Config, String> {
    with_file(&format!("{HEAD}{fields}\n"), args)
}

/// A list of flags in one text.
fn flags(text: &str) -> Result<Config, String> {
    config(&text.split_whitespace().collect::<Vec<_>>())
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn socket(text: &str) -> Option<SocketAddr> {
    Some(text.parse().unwrap())
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

/// What holds when nobody says anything.
fn assert_defaults(config: &Config) {
    assert!(!config.plan.masquerade_all);
    assert_eq!(config.skeleton.masquerade_bit, 14);
    assert_eq!(
        config.health,
        HealthConfig {
            healthz: socket("0.0.0.0:10256"),
            metrics: socket("127.0.0.1:10249"),
            hard_fail: false,
            profiling: false,
            sync_period: Duration::from_secs(30),
        }
    );
    assert_eq!(
        config.conntrack,
        ConntrackConfig {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established: seconds(86_400),
            tcp_close_wait: seconds(3_600),
            tcp_be_liberal: false,
            udp: None,
            udp_stream: None,
        }
    );
}

#[test]
fn without_flags_the_defaults_are_those_of_kube_proxy() {
    let config = config(&[]).unwrap();
    assert_defaults(&config);
    assert_eq!(
        config.plan.node_port_addresses,
        NodePortAddresses::primary()
    );
    assert_eq!(config.notes, [""; 0]);
    assert_eq!(config.mode, Mode::Agent);
    assert_eq!(config.plan.pod_networks, PodNetworks::Fixed(vec![]));
    let none = PerFamily::from_fn(|_| Detector::None);
    assert_eq!(config.skeleton.detector, none);
    let host = nix::unistd::gethostname().unwrap();
    assert_eq!(config.node_name, host.to_str().unwrap().to_lowercase());
}

#[test]
fn flags_become_configuration() {
    let config = config(&[
        "--hostname-override",
        " Node-1 ",
        "--cluster-cidr",
        "10.244.1.7/16,fd00:244::/48",
        "--dry-run",
        "--masquerade-all",
        "--bind-address-hard-fail=True",
        "--nodeport-addresses=192.168.0.0/16",
        "--nodeport-addresses=::/0",
        "--proxy-mode=nftables",
    ])
    .unwrap();
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.mode, Mode::DryRun(Output::Text));
    assert_eq!(
        config.plan.pod_networks,
        PodNetworks::Fixed(nets(&["10.244.0.0/16", "fd00:244::/48"]))
    );
    assert_eq!(
        config.plan.node_port_addresses,
        NodePortAddresses::within(nets(&["192.168.0.0/16", "::/0"]))
    );
    assert!(config.plan.masquerade_all && config.health.hard_fail);
    assert_eq!(config.notes, [""; 0]);

    let config = flags(
        "--iptables-sync-period=1m30s --iptables-masquerade-bit=31 --conntrack-max-per-core=0 --conntrack-min=7 \
         --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=500ms \
         --conntrack-tcp-be-liberal --conntrack-udp-timeout=30s --conntrack-udp-timeout-stream=2m",
    )
    .unwrap();
    assert_eq!(config.health.sync_period, Duration::from_secs(90));
    assert_eq!(config.skeleton.masquerade_bit, 31);
    assert_eq!(
        config.conntrack,
        ConntrackConfig {
            max_per_core: 0,
            min: 7,
            tcp_established: None,
            tcp_close_wait: Some(Duration::from_millis(500)),
            tcp_be_liberal: true,
            udp: seconds(30),
            udp_stream: seconds(120),
        }
    );
}

#[test]
fn an_empty_flag_is_none_and_a_url_needs_no_scheme() {
    let config = flags(
        "--cluster-cidr= --nodeport-addresses= --detect-local-mode= --proxy-mode= --kubeconfig= --config= \
         --hostname-override= --master localhost:8080",
    )
    .unwrap();
    assert_defaults(&config);
    let master = Some("http://localhost:8080".parse().unwrap());
    let kubeconfig = None;
    assert_eq!(
        config.source,
        SourceConfig::Kubernetes { kubeconfig, master }
    );
}

#[test]
fn a_detector_is_what_the_mode_says() {
    let check = |args: &str, networks: PodNetworks, v4: Detector, v6: Detector| {
        let config = flags(args).unwrap();
        assert_eq!(config.plan.pod_networks, networks, "{args}");
        assert_eq!(config.skeleton.detector, PerFamily { v4, v6 }, "{args}");
    };
    let fixed = |texts: &[&str]| PodNetworks::Fixed(nets(texts));
    let named = |name: &str, prefix| Detector::Interface {
        name: name.to_owned(),
        prefix,
    };
    check(
        "--cluster-cidr fd00::/48",
        fixed(&["fd00::/48"]),
        Detector::None,
        Detector::Source,
    );
    check(
        "--cluster-cidr 10.0.0.0/8 --detect-local-mode ClusterCIDR",
        fixed(&["10.0.0.0/8"]),
        Detector::Source,
        Detector::None,
    );
    check(
        "--cluster-cidr 10.0.0.0/8 --detect-local-mode NodeCIDR",
        PodNetworks::OfNode,
        Detector::Source,
        Detector::Source,
    );
    check(
        "--detect-local-mode BridgeInterface --pod-bridge-interface cni0",
        fixed(&[]),
        named("cni0", false),
        named("cni0", false),
    );
    check(
        "--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix veth",
        fixed(&[]),
        named("veth", true),
        named("veth", true),
    );
    check(
        "--pod-bridge-interface cni0 --pod-interface-name-prefix veth",
        fixed(&[]),
        Detector::None,
        Detector::None,
    );
}

#[test]
fn servers_listen_where_they_are_told_to() {
    let check = |args: &str, healthz: Option<SocketAddr>, metrics: Option<SocketAddr>| {
        let config = flags(args).unwrap();
        let found = (config.health.healthz, config.health.metrics);
        assert_eq!(found, (healthz, metrics), "{args}");
    };
    let healthz = socket("0.0.0.0:10256");
    let metrics = socket("127.0.0.1:10249");
    check("--healthz-bind-address=", None, metrics);
    check("--metrics-bind-address=", healthz, None);
    check("--healthz-port=0 --metrics-port=0", None, None);
    check("--metrics-port=9", healthz, socket("127.0.0.1:9"));
    check("--metrics-bind-address=::", healthz, socket("[::]:10249"));
    check(
        "--metrics-bind-address=10.0.0.1:9 --metrics-port=8",
        healthz,
        socket("10.0.0.1:9"),
    );
    check(
        "--metrics-bind-address=10.0.0.1 --metrics-port=8",
        healthz,
        socket("10.0.0.1:8"),
    );
    check(
        "--bind-address=::",
        socket("[::]:10256"),
        socket("[::1]:10249"),
    );
}

#[test]
fn the_file_of_kubeadm_says_what_its_cluster_is() {
    let config = with_file(KUBEADM, &[]).unwrap();
    assert_defaults(&config);
    assert_eq!(
        config.source,
        SourceConfig::Kubernetes {
            kubeconfig: Some(KubeconfigFile {
                path: "/var/lib/kube-proxy/kubeconfig.conf".into(),
                place: "clientConnection.kubeconfig in FILE".to_owned(),
            }),
            master: None,
        }
    );
    let networks = PodNetworks::Fixed(nets(&["10.244.0.0/16"]));
    assert_eq!(config.plan.pod_networks, networks);
    assert_eq!(config.skeleton.detector.v4, Detector::Source);
    // The DaemonSet of kubeadm gives this flag too.
    let config = with_file(KUBEADM, &["--hostname-override=node-1"]).unwrap();
    assert_eq!(config.node_name, "node-1");
}

#[test]
fn every_field_of_a_file_is_taken() {
    let text = r#"{
	"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
	"clientConnection": {"kubeconfig": "k", "qps": 5}, "hostnameOverride": "Node-1", "mode": "nftables",
	"clusterCIDR": "10.0.0.0/8,fd00::/8", "detectLocalMode": "BridgeInterface",
	"detectLocal": {"bridgeInterface": "cni0", "interfaceNamePrefix": "veth"},
	"nodePortAddresses": ["10.0.0.0/8"], "bindAddressHardFail": true, "enableProfiling": true,
	"healthzBindAddress": "10.0.0.1:1", "metricsBindAddress": "10.0.0.2",
	"iptables": {"masqueradeBit": 1, "syncPeriod": "1s"},
	"nftables": {"masqueradeBit": 2, "syncPeriod": "2s", "masqueradeAll": true},
	"conntrack": {"maxPerCore": 3, "min": 4, "tcpEstablishedTimeout": "5s", "tcpCloseWaitTimeout": "6s",
		"tcpBeLiberal": true, "udpTimeout": "7s", "udpStreamTimeout": "8s"}
}"#;
    let config = with_file(text, &[]).unwrap();
    assert_eq!(config.notes, [""; 0]);
    assert_eq!(config.node_name, "node-1");
    let bridge = |_| Detector::Interface {
        name: "cni0".to_owned(),
        prefix: false,
    };
    assert_eq!(config.skeleton.detector, PerFamily::from_fn(bridge));
    assert_eq!(config.skeleton.masquerade_bit, 2);
    assert_eq!(
        config.plan.node_port_addresses,
        NodePortAddresses::within(nets(&["10.0.0.0/8"]))
    );
    assert!(config.plan.masquerade_all);
    assert_eq!(
        config.health,
        HealthConfig {
            healthz: socket("10.0.0.1:1"),
            metrics: socket("10.0.0.2:10249"),
            hard_fail: true,
            profiling: true,
            sync_period: Duration::from_secs(2),
        }
    );
    assert_eq!(
        config.conntrack,
        ConntrackConfig {
            max_per_core: 3,
            min: 4,
            tcp_established: seconds(5),
            tcp_close_wait: seconds(6),
            tcp_be_liberal: true,
            udp: seconds(7),
            udp_stream: seconds(8),
        }
    );
    let prefix = with_file(text, &["--detect-local-mode", "InterfaceNamePrefix"]).unwrap();
    assert!(matches!(
        prefix.skeleton.detector.v6,
        Detector::Interface { name, prefix: true } if name == "veth"
    ));
}

#[test]
fn the_mode_says_which_section_counts() {
    let sections = "iptables: {masqueradeBit: 1, syncPeriod: 1s, masqueradeAll: true}\n\
                    ipvs: {syncPeriod: 2s}\nnftables: {masqueradeBit: 3, syncPeriod: 3s}\n";
    let check = |mode: &str, args: &[&str], bit: u8, period: u64, all: bool| {
        let config = with_fields(&format!("{sections}mode: {mode:?}"), args).unwrap();
        let found = (
            config.skeleton.masquerade_bit,
            config.health.sync_period.as_secs(),
            config.plan.masquerade_all,
        );
        assert_eq!(found, (bit, period, all), "{mode:?} {args:?}");
    };
    check("nftables", &[], 3, 3, false);
    check("iptables", &[], 1, 1, true);
    check("ipvs", &[], 1, 2, true);
    check("", &[], 3, 3, true);
    check("iptables", &["--proxy-mode=nftables"], 3, 3, false);
    let old = with_fields(
        "iptables: {masqueradeBit: 1}\nnftables: {masqueradeBit: null}",
        &[],
    );
    assert_eq!(old.unwrap().skeleton.masquerade_bit, 1);
}

#[test]
fn how_to_log_is_said_by_flag_or_file() {
    let check = |fields: &str, args: &[&str], format, verbosity| {
        let expected = LogConfig { format, verbosity };
        let found = with_fields(fields, args).unwrap();
        assert_eq!(found.logging, expected, "{fields} {args:?}");
        let unknown = found
            .notes
            .iter()
            .find(|note| note.to_string().contains("not a known field"));
        assert_eq!(unknown, None);
    };
    check("mode: nftables", &[], LogFormat::Text, 2);
    check(
        "logging: {format: json, verbosity: 4}",
        &[],
        LogFormat::Json,
        4,
    );
    check(
        "logging: {format: text, verbosity: 0, flushFrequency: 5s}",
        &[],
        LogFormat::Text,
        2,
    );
    check(
        "logging: {format: json, verbosity: 4}",
        &["-v0", "--logging-format=text"],
        LogFormat::Text,
        0,
    );
    let error = flags("--logging-format=xml").unwrap_err();
    assert_eq!(
        error,
        "invalid value \"xml\" for --logging-format: write text or json"
    );
    let error = with_fields("logging: {format: xml}", &[]).unwrap_err();
    assert_eq!(
        error,
        "invalid value \"xml\" for logging.format in FILE: write text or json"
    );
}

#[test]
fn a_flag_goes_before_the_file() {
    let fields = "clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [10.0.0.0/8]\nhostnameOverride: a\n\
                  metricsBindAddress: 10.0.0.1:1\nhealthzBindAddress: 10.0.0.1:1\nbindAddressHardFail: true\nenableProfiling: true\n\
                  iptables: {masqueradeAll: true, syncPeriod: 1s}\nconntrack: {min: 1, udpTimeout: 1s}\n\
                  clientConnection: {kubeconfig: a}";
    let config = with_fields(
        fields,
        &[
            "--cluster-cidr=10.9.0.0/16",
            "--nodeport-addresses=primary",
            "--hostname-override=b",
            "--metrics-bind-address=",
            "--healthz-port=2",
            "--bind-address-hard-fail=false",
            "--profiling=false",
            "--masquerade-all=false",
            "--iptables-sync-period=2s",
            "--conntrack-min=2",
            "--conntrack-udp-timeout=0",
            "--kubeconfig=b",
        ],
    )
    .unwrap();
    assert_eq!(
        config.plan,
        PlanConfig {
            node_port_addresses: NodePortAddresses::primary(),
            pod_networks: PodNetworks::Fixed(nets(&["10.9.0.0/16"])),
            masquerade_all: false,
            external_ips: true,
        }
    );
    assert_eq!(config.node_name, "b");
    assert_eq!(
        config.health,
        HealthConfig {
            healthz: socket("10.0.0.1:2"),
            metrics: None,
            hard_fail: false,
            profiling: false,
            sync_period: Duration::from_secs(2),
        }
    );
    assert_eq!((config.conntrack.min, config.conntrack.udp), (2, None));
    let kubeconfig = Some(KubeconfigFile {
        path: "b".into(),
        place: "--kubeconfig".to_owned(),
    });
    let master = None;
    assert_eq!(
        config.source,
        SourceConfig::Kubernetes { kubeconfig, master }
    );
    // An empty flag says nothing, as where a manifest has nothing to put in.
    let config = with_fields(fields, &["--cluster-cidr=", "--hostname-override="]).unwrap();
    assert_eq!(config.node_name, "a");
    assert_eq!(config.skeleton.detector.v4, Detector::Source);
    let manifests = with_fields(fields, &["--manifests", "m"]).unwrap();
    assert_eq!(manifests.source, SourceConfig::Manifests(vec!["m".into()]));
}
