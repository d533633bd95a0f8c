//! Which addresses have NodePorts, by keywords, networks and modes; and the gates that matter there.

use super::*;

/// What kube-proxy's mode had is kept where a configuration was written for it.
#[test]
fn without_addresses_node_ports_are_where_the_mode_had_them() {
    const FILE: &str = "the file of --config names no mode, which to kube-proxy is iptables: ";
    let everywhere = |v4| NodePortAddresses {
        localhost: PerFamily { v4, v6: false },
        ..NodePortAddresses::within(nets(&["0.0.0.0/0", "::/0"]))
    };
    let check = |config: Result<Config, String>, expected: NodePortAddresses, note: &[&str]| {
        let config = config.unwrap();
        assert_eq!(config.plan.node_port_addresses, expected, "{note:?}");
        assert_eq!(config.notes.len(), note.len().min(1), "{:?}", config.notes);
        for text in note {
            let found = &config.notes[0];
            assert!(found.to_string().contains(text), "{found} has no {text}");
        }
    };
    let primary = NodePortAddresses::primary;
    let at_127 = "NodePorts are at all addresses of the node and, for TCP, at 127.0.0.1, as in that mode; for those of \
                  the Node object alone, set nodePortAddresses to primary";
    check(with_file(KUBEADM, &[]), everywhere(true), &[FILE, at_127]);
    check(
        with_fields("mode: ''", &[]),
        everywhere(true),
        &[FILE, at_127],
    );
    check(
        with_fields("mode: iptables", &[]),
        everywhere(true),
        &["mode in FILE: iptables is taken", at_127],
    );
    let ipvs = "NodePorts are at all addresses of the node, as in that mode; for";
    check(
        with_fields("mode: ipvs", &[]),
        everywhere(false),
        &["mode in FILE: ipvs is taken", ipvs],
    );
    let flag = "set --nodeport-addresses to primary";
    check(
        flags("--proxy-mode=iptables"),
        everywhere(true),
        &["--proxy-mode: iptables is taken", flag],
    );
    check(
        flags("--proxy-mode=ipvs"),
        everywhere(false),
        &["--proxy-mode: ipvs is taken", ipvs.split_at(40).0, flag],
    );
    check(flags(""), primary(), &[]);
    check(flags("--proxy-mode=nftables"), primary(), &[]);
    check(with_fields("mode: nftables", &[]), primary(), &[]);
    check(
        with_file(KUBEADM, &["--proxy-mode=nftables"]),
        primary(),
        &[],
    );
    check(
        with_file(KUBEADM, &["--nodeport-addresses=primary"]),
        primary(),
        &[],
    );
    // kube-proxy's switch for localhost.
    let off = "mode: iptables\niptables: {localhostNodePorts: false}";
    check(
        with_fields(off, &[]),
        everywhere(false),
        &["iptables is taken"],
    );
    let on = &["--iptables-localhost-nodeports"];
    check(
        with_fields(off, on),
        everywhere(true),
        &["iptables is taken"],
    );
    // A network of all addresses had localhost in that mode, and one of others had not.
    let given = "mode: iptables\nnodePortAddresses: [0.0.0.0/0]";
    let expected = NodePortAddresses {
        localhost: PerFamily {
            v4: true,
            v6: false,
        },
        ..NodePortAddresses::within(nets(&["0.0.0.0/0"]))
    };
    check(
        with_fields(given, &[]),
        expected,
        &["iptables is taken for nftables, which proxyd always uses"],
    );
    let given = "mode: iptables\nnodePortAddresses: [10.0.0.0/8]";
    let expected = NodePortAddresses::within(nets(&["10.0.0.0/8"]));
    check(
        with_fields(given, &[]),
        expected,
        &["iptables is taken for nftables, which proxyd always uses"],
    );
}

#[test]
fn feature_gates_that_mean_something_are_honoured() {
    let check = |config: Result<Config, String>, external_ips: bool, v4: bool| {
        let plan = config.unwrap().plan;
        assert_eq!(plan.external_ips, external_ips);
        assert_eq!(plan.node_port_addresses.localhost, PerFamily { v4, v6: v4 });
    };
    check(flags("--feature-gates="), true, false);
    check(
        flags("--feature-gates=AllowServiceExternalIPs=true"),
        true,
        false,
    );
    check(
        flags("--feature-gates=AllowServiceExternalIPs=false"),
        false,
        false,
    );
    check(
        flags("--feature-gates=AllowServiceExternalIPs=F --feature-gates A=true"),
        false,
        false,
    );
    let off = "mode: nftables\nfeatureGates: {AllowServiceExternalIPs: false}";
    check(with_fields(off, &[]), false, false);
    // Gate by gate, a flag goes before the file.
    check(
        with_fields(
            off,
            &["--feature-gates=A=true,AllowServiceExternalIPs=true"],
        ),
        true,
        false,
    );
    check(with_fields(off, &["--feature-gates=A=true"]), false, false);
    assert!(flags("").unwrap().streaming_lists);
    let off = flags("--feature-gates=WatchListClient=false").unwrap();
    assert!(!off.streaming_lists && off.notes.is_empty());
    let localhost = "--nodeport-addresses=primary,localhost";
    let gate = "KubeProxyNFTablesLocalhostNodePorts";
    check(flags(localhost), true, true);
    check(
        flags(&format!("{localhost} --feature-gates={gate}=true")),
        true,
        true,
    );
    check(
        flags(&format!("{localhost} --feature-gates={gate}=false")),
        true,
        false,
    );
}

#[test]
fn node_ports_are_where_keywords_and_networks_say() {
    let check = |text: &str, primary: bool, networks: &[&str], v4: bool, v6: bool| {
        let expected = NodePortAddresses {
            primary,
            networks: nets(networks),
            localhost: PerFamily { v4, v6 },
        };
        let by_flag = config(&[&format!("--nodeport-addresses={text}")]).unwrap();
        assert_eq!(by_flag.plan.node_port_addresses, expected, "{text}");
        let by_file = with_fields(
            &format!("mode: nftables\nnodePortAddresses: [{text:?}]").replace(',', "\",\""),
            &[],
        );
        let by_file = by_file.unwrap().plan.node_port_addresses;
        assert_eq!(by_file, expected, "{text}");
    };
    check("primary", true, &[], false, false);
    check("primary,localhost", true, &[], true, true);
    check("localhost", false, &[], true, true);
    check("10.0.0.0/8,primary", true, &["10.0.0.0/8"], false, false);
    check("all", false, &["0.0.0.0/0", "::/0"], false, false);
    check("all,localhost", false, &["0.0.0.0/0", "::/0"], true, true);
    check("0.0.0.0/0,127.0.0.1/32", false, &["0.0.0.0/0"], true, false);
    check("primary,127.0.0.0/8", true, &[], true, false);
    check("::1/128", false, &[], false, true);
}
