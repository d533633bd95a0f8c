//! Files as they are in the field: keys that are there twice, documents that are empty, fields of the other version,
//! values of a wrong type.

use super::*;

const DUP_KEY: &str = include_str!("cases/config-dup-key.yaml");
const TRAILING: &str = include_str!("cases/config-trailing.yaml");
const KEYWORDS: &str = include_str!("cases/config-kube-1.37-keywords.yaml");

/// The notes on what is odd about a file.
fn odd(config: &Config) -> Vec<String> {
    let notes = config.notes.iter().map(ToString::to_string);
    notes.filter(|note| note.contains("FILE:")).collect()
}

#[test]
fn a_key_that_is_there_twice_is_a_warning_and_the_last_one_counts() {
    let config = with_file(DUP_KEY, &[]).unwrap();
    assert_eq!(
        config.notes,
        ["WARN mode in FILE: it is there more than once; the last one counts"]
    );
    assert_eq!(
        config.plan.node_port_addresses,
        NodePortAddresses::primary()
    );
    let pods = PodNetworks::Fixed(nets(&["10.180.0.0/16"]));
    assert_eq!(config.plan.pod_networks, pods);

    let config = with_fields("mode: nftables\nconntrack: {min: 1, min: 2}", &[]).unwrap();
    assert_eq!(config.conntrack.min, 2);
    assert_eq!(
        odd(&config),
        ["conntrack.min in FILE: it is there more than once; the last one counts"]
    );
    // A section that is there twice counts as a whole, as in kube-proxy.
    let twice = "mode: nftables\nconntrack: {min: 1, tcpBeLiberal: true}\nconntrack: {min: 3}";
    let config = with_fields(twice, &[]).unwrap();
    assert_eq!(
        (config.conntrack.min, config.conntrack.tcp_be_liberal),
        (3, false)
    );
    let json = format!(
        "{{\n\t\"apiVersion\": {:?}, \"kind\": {:?}, \"mode\": \"ipvs\",\n\t\"mode\": \"nftables\"}}",
        file::API_VERSION,
        file::KIND
    );
    let config = with_file(&json, &[]).unwrap();
    assert_eq!(
        odd(&config),
        ["mode in FILE: it is there more than once; the last one counts"]
    );
}

#[test]
fn the_first_document_counts_and_empty_ones_are_nothing() {
    let config = with_file(TRAILING, &[]).unwrap();
    assert_eq!(odd(&config), [""; 0]);
    let pods = PodNetworks::Fixed(nets(&["10.180.0.0/16"]));
    assert_eq!(config.plan.pod_networks, pods);
    let config = with_file(
        &format!("---\n{HEAD}mode: nftables\n---\n# nothing\n---\n"),
        &[],
    );
    assert_eq!(config.unwrap().notes, [""; 0]);
    let config = with_file(
        &format!("{HEAD}mode: nftables\n---\nkind: KubeletConfiguration\n"),
        &[],
    );
    assert_eq!(
        config.unwrap().notes,
        ["WARN FILE: the first document counts; what is behind it is ignored"]
    );
}

#[test]
fn keywords_of_kubernetes_1_37_stand_beside_each_other() {
    let config = with_file(KEYWORDS, &[]).unwrap();
    let expected = NodePortAddresses {
        localhost: PerFamily { v4: true, v6: true },
        ..NodePortAddresses::primary()
    };
    assert_eq!(config.plan.node_port_addresses, expected);
    assert_eq!(config.notes, [""; 0]);
}

#[test]
fn a_file_of_v1alpha2_means_what_its_fields_say() {
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\nmode: nftables\n\
                syncPeriod: 7s\nminSyncPeriod: 1s\nconfigHardFail: true\nnodeIPOverride: []\n\
                healthzBindAddresses: [10.0.0.1/32]\nhealthzBindPort: 77\nmetricsBindAddresses: ['::/0']\n\
                detectLocal: {clusterCIDRs: [10.0.0.0/8, 'fd00::/8']}\nwindows: {runAsService: false}\n\
                linux: {masqueradeAll: true, oomScoreAdj: -999, conntrack: {min: 5, tcpBeLiberal: true}}\n";
    let config = with_file(text, &[]).unwrap();
    assert_eq!(config.notes, [""; 0]);
    assert_eq!(config.health.sync_period, Duration::from_secs(7));
    assert_eq!(config.health.healthz, socket("10.0.0.1:77"));
    assert_eq!(config.health.metrics, socket("[::]:10249"));
    let pods = PodNetworks::Fixed(nets(&["10.0.0.0/8", "fd00::/8"]));
    assert_eq!(config.plan.pod_networks, pods);
    assert!(config.plan.masquerade_all && config.conntrack.tcp_be_liberal);
    assert_eq!(config.conntrack.min, 5);

    let check = |more: &str, expected: &str| {
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\nmode: nftables\n";
        let error = with_file(&format!("{text}{more}"), &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check(
        "linux: {conntrack: {min: -1}}",
        "for linux.conntrack.min in FILE: not a number",
    );
    check(
        "detectLocal: {clusterCIDRs: [x]}",
        "\"x\" for detectLocal.clusterCIDRs in FILE: not a network",
    );
    check(
        "healthzBindAddresses: [10.0.0.0/8]",
        "\"10.0.0.0/8\" for healthzBindAddresses in FILE: not an address",
    );
}

#[test]
fn fields_of_the_other_version_are_known_by_name() {
    let config = with_fields(
        "mode: nftables\nsyncPeriod: 7s\nlinux: {masqueradeAll: true}",
        &[],
    );
    let config = config.unwrap();
    assert_eq!(config.health.sync_period, Duration::from_secs(30));
    assert!(!config.plan.masquerade_all);
    assert_eq!(
        config.notes,
        [
            "WARN linux in FILE: a field of v1alpha2, which v1alpha1 has as conntrack, nftables.masqueradeAll and \
             oomScoreAdj; it is ignored",
            "WARN syncPeriod in FILE: a field of v1alpha2, which v1alpha1 has as nftables.syncPeriod; it is ignored",
        ]
    );
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\nmode: nftables\n\
                clusterCIDR: 10.0.0.0/8\nnftables: {syncPeriod: 1s}\n";
    let config = with_file(text, &[]).unwrap();
    assert_eq!(config.plan.pod_networks, PodNetworks::Fixed(vec![]));
    assert_eq!(
        config.notes,
        [
            "WARN clusterCIDR in FILE: a field of v1alpha1, which v1alpha2 has as detectLocal.clusterCIDRs; it is \
             ignored",
            "WARN nftables.syncPeriod in FILE: a field of v1alpha1, which v1alpha2 has as syncPeriod; it is ignored",
        ]
    );
}

#[test]
fn a_value_of_a_wrong_type_is_told_in_plain_words() {
    let check = |fields: &str, expected: &str| {
        let error = with_fields(fields, &[]).unwrap_err();
        assert_eq!(error, format!("--config FILE: {expected}"), "{fields}");
    };
    check(
        "nftables: {masqueradeBit: '14'}",
        "nftables.masqueradeBit: \"14\" is a text; a whole number is wanted",
    );
    check(
        "conntrack: {min: 1.5}",
        "conntrack.min: 1.5; a whole number is wanted",
    );
    check(
        "nodePortAddresses: 10.0.0.0/8",
        "nodePortAddresses: \"10.0.0.0/8\" is a text; a list of texts is wanted",
    );
    check(
        "nodePortAddresses: [1]",
        "nodePortAddresses: 1; a text in the list is wanted",
    );
    check(
        "bindAddressHardFail: 'yes'",
        "bindAddressHardFail: \"yes\" is a text; true or false is wanted",
    );
    check(
        "hostnameOverride: [a]",
        "hostnameOverride: a list; a text is wanted",
    );
    check(
        "conntrack: all",
        "conntrack: \"all\" is a text; fields of its own is wanted",
    );
    check(
        "featureGates: {A: 1}",
        "featureGates: 1; true or false for A is wanted",
    );
    check(
        "featureGates: [A]",
        "featureGates: a list; names with true or false is wanted",
    );
    check(
        "clusterCIDR: {a: b}",
        "clusterCIDR: fields; a text is wanted",
    );
}

/// What `--write-config-to` writes is a file that means the same.
#[test]
fn a_configuration_is_written_as_a_file() {
    let before = flags(
        "--hostname-override=x --nodeport-addresses=primary,10.0.0.0/8 --cluster-cidr=10.9.0.0/16",
    )
    .unwrap();
    let text = before.to_yaml();
    assert!(
        text.contains("\nnodePortAddresses:\n  - \"primary\"\n  - \"10.0.0.0/8\"\n"),
        "{text}"
    );
    let after = with_file(&text, &[]).unwrap();
    assert_eq!(after.effective(), before.effective());
    let own = config(&[]).unwrap();
    assert!(
        own.to_yaml().contains("\nhostnameOverride: \"\"\n"),
        "it may be for other hosts"
    );
    let mode = config(&["--write-config-to", "f"]).unwrap().mode;
    assert_eq!(mode, Mode::WriteConfig("f".into()));
}
