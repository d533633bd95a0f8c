//! What is said about settings that have no effect, and about those that cannot be used.

use super::*;

#[test]
fn what_has_no_effect_is_noted_once() {
    let config = flags(
        "--oom-score-adj=-999 --oom-score-adj -998 --ipvs-strict-arp=false \
         --logtostderr=true --log_dir=/x --kube-api-qps 5 --v=2 --cleanup=false",
    )
    .unwrap();
    assert_eq!(config.mode, Mode::Agent);
    let named: Vec<_> = config
        .notes
        .iter()
        .map(|note| {
            note.to_string()
                .split_once(" has no effect")
                .unwrap()
                .0
                .to_owned()
        })
        .collect();
    let expected = [
        "--ipvs-strict-arp",
        "--kube-api-qps",
        "--log-dir",
        "--logtostderr",
        "--oom-score-adj",
    ];
    assert_eq!(named, expected);

    let check = |config: Result<Config, String>, expected: &str| {
        assert_eq!(config.unwrap().notes, [format!("WARN {expected}").as_str()]);
    };
    check(
        flags("--close-tcp-of-deleted-endpoints"),
        "--close-tcp-of-deleted-endpoints has no effect without --backend ebpf",
    );
    let closes = flags("--backend ebpf --close-tcp-of-deleted-endpoints").unwrap();
    assert!(closes.closes_tcp && closes.notes.is_empty());
    check(
        flags("--detect-local-mode ClusterCIDR"),
        "--detect-local-mode: ClusterCIDR without --cluster-cidr tells no pods apart: nothing is masqueraded on its \
         way to a ClusterIP",
    );
    check(
        flags("--bind-address 10.0.0.1"),
        "--bind-address: 10.0.0.1 has no effect: the Node object says which addresses are the node's",
    );
    check(
        with_fields("mode: nftables\nnftables: {masqeradeAll: true}", &[]),
        "nftables.masqeradeAll in FILE: not a known field; it is ignored",
    );
    check(
        with_fields("mode: nftables\nnodeportAddresses: [10.0.0.0/8]", &[]),
        "nodeportAddresses in FILE: not a known field; it is ignored",
    );
}

#[test]
fn a_gate_is_told_of_at_the_level_at_which_it_matters() {
    let check = |config: Result<Config, String>, expected: &[&str]| {
        assert_eq!(config.unwrap().notes, *expected);
    };
    check(flags("--feature-gates=AllowServiceExternalIPs=true"), &[]);
    check(
        flags("--feature-gates=AllowServiceExternalIPs=false"),
        &[
            "INFO --feature-gates: AllowServiceExternalIPs=false: addresses in spec.externalIPs of Services are not served",
        ],
    );
    check(
        with_fields(
            "mode: nftables\nfeatureGates: {TopologyAwareHints: false, NFTablesProxyMode: true, WinDSR: true}",
            &[],
        ),
        &[
            "DEBUG featureGates in FILE: NFTablesProxyMode=true: so it is, the rules are those of nftables",
            "WARN featureGates in FILE: TopologyAwareHints=false has no effect: hints for zones are followed in any case",
            "INFO featureGates in FILE: WinDSR=true has no effect: nothing that proxyd does depends on this gate",
        ],
    );
    check(
        flags(
            "--nodeport-addresses=localhost --feature-gates=KubeProxyNFTablesLocalhostNodePorts=false",
        ),
        &[
            "WARN NodePorts are not at localhost: the feature gate KubeProxyNFTablesLocalhostNodePorts is false",
        ],
    );
    let error = flags("--feature-gates=A").unwrap_err();
    assert_eq!(
        error,
        "invalid value \"A\" for --feature-gates: write it as NAME=true or NAME=false"
    );
    let error = flags("--feature-gates=A=maybe").unwrap_err();
    assert_eq!(
        error,
        "invalid value \"A=maybe\" for --feature-gates: write true or false"
    );
}

#[test]
fn a_bad_flag_says_which_and_what_would_be_right() {
    let check = |args: &str, expected: &str| {
        let error = flags(args).unwrap_err();
        assert!(error.contains(expected), "{args}: {error}");
    };
    check("--cluster-cidr 10.0.0.0", "--cluster-cidr: not a network");
    check(
        "--nodeport-addresses primary,local",
        "\"local\" for --nodeport-addresses: not a network; write an address and a prefix length, such as \
         10.244.0.0/16; or primary, localhost or all",
    );
    check(
        "--iptables-masquerade-bit 32",
        "\"32\" for --iptables-masquerade-bit: not a bit of the packet mark, 0 to 31",
    );
    check("--iptables-masquerade-bit x", "--iptables-masquerade-bit");
    check(
        "--hostname-override a --hostname-override b",
        "cannot be used multiple times",
    );
    check("--manifests a --kubeconfig b", "cannot be used with");
    check("--cleanup --dry-run", "cannot be used with");
    check("--no-such-flag", "unexpected argument");
    check(
        "--masquerade-all=maybe",
        "for '--masquerade-all[=<BOOL>]': write true or false",
    );
    check("--proxy-mode kernelspace", "--proxy-mode: write nftables");
    check(
        "--detect-local-mode Cluster",
        "--detect-local-mode: write ClusterCIDR, NodeCIDR,",
    );
    check(
        "--detect-local-mode BridgeInterface",
        "--detect-local-mode: it needs the name of an interface: give --pod-bridge-interface,",
    );
    check(
        "--detect-local-mode InterfaceNamePrefix --pod-bridge-interface a",
        "--detect-local-mode: it needs a prefix of names: give --pod-interface-name-prefix,",
    );
    for name in ["sixteen-letters-", "a/b", "eth*", "..", "a\"b"] {
        check(
            &format!("--detect-local-mode BridgeInterface --pod-bridge-interface {name}"),
            "for --pod-bridge-interface: ",
        );
    }
    check(
        "--iptables-sync-period 0",
        "--iptables-sync-period: must be above zero, such as 30s",
    );
    check(
        "--iptables-sync-period 30",
        "--iptables-sync-period: not a duration; write it as 24h0m0s, 90s or 500ms",
    );
    check(
        "--healthz-bind-address :10256",
        "\":10256\" for --healthz-bind-address: not an address with a port; write it as 0.0.0.0:10256 or [::]:10256",
    );
    check(
        "--metrics-bind-address 10.0.0.1:0",
        "--metrics-bind-address: port 0; write a port such as 10249",
    );
    check(
        "--healthz-port 70000",
        "--healthz-port: not a port, 0 to 65535",
    );
    check("--bind-address host", "--bind-address: not an address");
    check(
        "--conntrack-min=-1",
        "--conntrack-min: not a number from 0 to",
    );
    check(
        "--conntrack-max-per-core=2147483648",
        "--conntrack-max-per-core: not a number from 0 to 2147483647",
    );
    for flag in [
        "conntrack-tcp-timeout-established",
        "conntrack-tcp-timeout-close-wait",
        "conntrack-udp-timeout",
        "conntrack-udp-timeout-stream",
    ] {
        let expected = format!("\"1 day\" for --{flag}: not a duration");
        let error = config(&[&format!("--{flag}=1 day")]).unwrap_err();
        assert!(error.contains(&expected), "{error}");
    }
    let error = config(&["--hostname-override", " "]).unwrap_err();
    assert!(
        error.contains("--hostname-override: the node's name is empty"),
        "{error}"
    );
    let error = config(&["--master", "not a url"]).unwrap_err();
    assert!(error.contains("--master: not a URL"), "{error}");
}

#[test]
fn a_bad_file_says_which_field_and_what_would_be_right() {
    let check = |fields: &str, expected: &str| {
        let error = with_fields(fields, &[]).unwrap_err();
        assert!(error.contains(expected), "{fields}: {error}");
    };
    check(
        "clusterCIDR: 10.0.0.0",
        "invalid value \"10.0.0.0\" for clusterCIDR in FILE: not a network; write",
    );
    check(
        "nodePortAddresses: [primary, everywhere]",
        "\"everywhere\" for nodePortAddresses in FILE: not a network",
    );
    check("mode: kernelspace", "mode in FILE: write nftables");
    check(
        "detectLocalMode: BridgeInterface",
        "detectLocalMode in FILE: it needs the name of an interface: give --pod-bridge-interface, or \
         detectLocal.bridgeInterface in the file of --config",
    );
    check(
        "nftables: {masqueradeBit: 99}",
        "\"99\" for nftables.masqueradeBit in FILE: not a bit",
    );
    check(
        "iptables: {syncPeriod: fast}",
        "\"fast\" for iptables.syncPeriod in FILE: not a duration",
    );
    check("conntrack: {min: -5}", "\"-5\" for conntrack.min in FILE");
    check(
        "conntrack: {udpTimeout: -1s}",
        "conntrack.udpTimeout in FILE: a duration below zero",
    );
    check(
        "healthzBindAddress: host:1",
        "healthzBindAddress in FILE: not an address with a port",
    );
    check(
        "hostnameOverride: ' '",
        "hostnameOverride in FILE: the node's",
    );
    check("mode: [", "--config FILE: not valid YAML: see line ");

    let check = |text: &str, expected: &str| {
        assert_eq!(with_file(text, &[]).unwrap_err(), expected);
    };
    check(
        "kind: ConfigMap\napiVersion: v1",
        "--config FILE: kind: \"ConfigMap\" is not KubeProxyConfiguration",
    );
    check(
        "",
        "--config FILE: kind: \"\" is not KubeProxyConfiguration",
    );
    check(
        "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1",
        "--config FILE: apiVersion: \"kubeproxy.config.k8s.io/v1\" is not known; write \
         kubeproxy.config.k8s.io/v1alpha1",
    );
    let error = config(&["--config", "/nowhere/x"]).unwrap_err();
    assert!(
        error.starts_with("--config /nowhere/x: cannot be read: No such file"),
        "{error}"
    );
}
