//! What `/configz` tells, read back as a file.

use super::*;

/// The configuration, and the one that its own answer makes.
fn check(args: &str) {
    let before = flags(args).unwrap();
    let text = before.effective().to_string();
    let after = with_file(&text, &[]).unwrap();
    assert_eq!(after.effective().to_string(), text, "{args}");
    assert_eq!(after.node_name, before.node_name);
    assert_eq!(after.plan, before.plan, "{args}");
    assert_eq!(after.streaming_lists, before.streaming_lists, "{args}");
    assert_eq!(after.logging, before.logging, "{args}");
    assert_eq!(after.skeleton, before.skeleton, "{args}");
    assert_eq!(after.health, before.health, "{args}");
    assert_eq!(after.conntrack, before.conntrack, "{args}");
    let unknown: Vec<_> = after
        .notes
        .iter()
        .filter(|note| note.to_string().contains("not a known field"))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn what_is_told_is_a_file_that_means_the_same() {
    check("--hostname-override=a");
    check("--hostname-override=a --cluster-cidr=10.244.0.0/16,fd00:244::/48 --masquerade-all");
    check("--detect-local-mode=NodeCIDR --nodeport-addresses=192.168.0.0/16,::/0");
    check("--nodeport-addresses=primary,localhost,10.0.0.0/8 --logging-format=json -v 4");
    check(
        "--proxy-mode=iptables --feature-gates=AllowServiceExternalIPs=false,WatchListClient=false",
    );
    check("--nodeport-addresses=all,127.0.0.1/32");
    check("--detect-local-mode=BridgeInterface --pod-bridge-interface=cni0");
    check(
        "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth --iptables-masquerade-bit=3 \
         --iptables-sync-period=1m0.5s --conntrack-udp-timeout=45s --conntrack-min=7 --bind-address-hard-fail",
    );
}

#[test]
fn fields_have_kube_proxys_names() {
    let config = flags("--hostname-override=a --kubeconfig=/etc/x --bind-address=::").unwrap();
    let told = &config.configz()["kubeproxy.config.k8s.io"];
    let check = |pointer: &str, expected: &str| {
        let found = told.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"));
        assert_eq!(found.as_str(), Some(expected), "{pointer}");
    };
    check("/kind", "KubeProxyConfiguration");
    check("/hostnameOverride", "a");
    check("/clientConnection/kubeconfig", "/etc/x");
    check("/healthzBindAddress", "[::]:10256");
    check("/nodePortAddresses/0", "primary");
    check("/conntrack/tcpEstablishedTimeout", "86400s");
    check("/conntrack/udpTimeout", "0s");
    check("/nftables/syncPeriod", "30s");
}

#[test]
fn a_server_that_is_off_has_no_address() {
    let config = flags("--hostname-override=a --healthz-bind-address= --metrics-port=0").unwrap();
    assert_eq!(config.effective()["healthzBindAddress"], "");
    assert_eq!(config.effective()["metricsBindAddress"], "");
}
