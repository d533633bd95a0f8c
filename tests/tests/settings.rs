//! Where settings come from, what a real agent makes of them, and what it does before it knows them all.

use std::fs;
use std::process::Output;

use proxyd_tests::agent::{Agent, run_once};
use proxyd_tests::netns::Netns;
use proxyd_tests::world::PATIENCE;
use serde_json::json;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whatever is wrong with its configuration, the agent leaves the kernel as it was.
#[test]
fn nothing_is_changed_before_the_configuration_is_whole() {
    let netns = Netns::new().unwrap();
    let timeout = || {
        let file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
        netns.enter(|| fs::read_to_string(file).unwrap())
    };
    let before = timeout();
    assert_ne!(before, "86400\n", "the agent would set this");
    let holder = netns.enter(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let taken = format!("--metrics-bind-address={}", holder.local_addr().unwrap());
    let check = |args: &[&str], status: i32, expected: &str| {
        let output = run_once(&netns, args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert_eq!(timeout(), before, "{args:?}");
        let tables = netns.run("nft", &["list", "tables"], "").unwrap();
        assert!(tables.stdout.is_empty(), "{args:?}: {tables:?}");
    };
    check(&[], 1, "no cluster to watch");
    check(&["--kubeconfig", "/nowhere/config"], 1, "/nowhere/config");
    check(&["--manifests", "/nowhere/manifests"], 1, "cannot be read");
    check(&["--conntrack-min=x"], 2, "--conntrack-min");
    let hard_fail = [&taken, "--bind-address-hard-fail", "--manifests", EXAMPLES];
    check(&hard_fail, 1, "another process has this port");
}

/// The setting that made it is named, and not a flag that nobody gave.
#[test]
fn a_failure_names_the_setting_that_made_it() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n";
    let check = |fields: &str, kubeconfig: &str, more: &[&str], expected: &str| {
        let file = path("kp.yaml");
        fs::write(&file, format!("{head}{fields}\n").replace("DIR", &path(""))).unwrap();
        fs::write(path("k"), kubeconfig).unwrap();
        let output = run_once(&netns, &[&["--config", &file], more].concat());
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = expected.replace("DIR", &path(""));
        assert!(said.contains(&expected), "{said} has no {expected}");
    };
    check(
        "clientConnection: {kubeconfig: /nowhere/k}",
        "",
        &[],
        "clientConnection.kubeconfig in DIRkp.yaml: /nowhere/k: cannot be read: No such file",
    );
    let by_file = "clientConnection: {kubeconfig: DIRk}";
    let broken = "clientConnection.kubeconfig in DIRkp.yaml: DIRk: not a kubeconfig: see line ";
    check(by_file, "a: [", &[], broken);
    check(by_file, "{}", &[], "DIRk: it has no current-context");
    let missing = "current-context: a\ncontexts: []\n";
    check(by_file, missing, &[], "DIRk: it has no context \"a\"");
    let holder = netns.enter(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let taken = holder.local_addr().unwrap();
    check(
        &format!("bindAddressHardFail: true\nmetricsBindAddress: {taken}"),
        "",
        &["--manifests", EXAMPLES],
        &format!("metricsBindAddress in DIRkp.yaml: listening on {taken}"),
    );
}

#[test]
fn a_configuration_is_written_to_a_file_and_nothing_else_is_done() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kp.yaml");
    let file = file.to_str().unwrap();
    let output = run_once(
        &netns,
        &["--cluster-cidr=10.9.0.0/16", "--write-config-to", file],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let written = fs::read_to_string(file).unwrap();
    assert!(
        written.contains("\nclusterCIDR: \"10.9.0.0/16\"\n"),
        "{written}"
    );
    let tables = netns.run("nft", &["list", "tables"], "").unwrap();
    assert!(tables.stdout.is_empty(), "{tables:?}");
    let output = run_once(&netns, &["--write-config-to", "/nowhere/kp.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.contains("--write-config-to /nowhere/kp.yaml: No such file"),
        "{said}"
    );
}

/// What `--init-only` sets is what an agent that may not set it finds.
#[test]
fn with_init_only_settings_are_made_and_nothing_else() {
    let netns = Netns::new().unwrap();
    let read = |name: &str| {
        let file = format!("/proc/sys/net/netfilter/{name}");
        netns.enter(|| fs::read_to_string(file).unwrap())
    };
    let limit = ["--conntrack-max-per-core=0", "--init-only"];
    let output = run_once(&netns, &limit);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(read("nf_conntrack_tcp_timeout_established"), "86400\n");
    let tables = netns.run("nft", &["list", "tables"], "").unwrap();
    assert!(tables.stdout.is_empty(), "{tables:?}");
    // The kernel's limit is the machine's, so it cannot be set here.
    let refused = ["--conntrack-min=100000000", "--init-only"];
    let output = run_once(&netns, &refused);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("nf_conntrack_max") && said.contains("not all settings could be made"),
        "{said}"
    );
}

/// As kube-proxy does, so that it is started anew with what the file says now.
#[test]
fn a_change_of_the_configuration_file_ends_the_agent() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let write =
        |file: &str, fields: &str| fs::write(path(file), format!("{head}{fields}\n")).unwrap();
    // As a ConfigMap is mounted: the file is behind two links, of which one is moved.
    for (version, mode) in [("v1", "mode: nftables"), ("v2", "mode: ''")] {
        fs::create_dir(path(version)).unwrap();
        write(&format!("{version}/kp.yaml"), mode);
    }
    let link = |to: &str| {
        let _ = fs::remove_file(path("..new"));
        std::os::unix::fs::symlink(to, path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
    };
    link("v1");
    std::os::unix::fs::symlink("..data/kp.yaml", path("kp.yaml")).unwrap();
    let file = path("kp.yaml");
    let args = [
        "--config",
        &file,
        "--hostname-override=n",
        "--manifests",
        EXAMPLES,
    ];
    let changed = format!("{file} changed; stopping, to be started anew; the rules stay in place");
    let start = || {
        let agent = Agent::start(&netns, &args);
        agent.wait_for_log("in sync", PATIENCE);
        agent
    };

    let mut agent = start();
    // What says the same changes nothing, and what cannot be used is told.
    write("v1/kp.yaml", "mode: nftables");
    write("v1/kp.yaml", "mode: nowhere");
    agent.wait_for_log(
        "changed and cannot be used: invalid value \"nowhere\" for mode",
        PATIENCE,
    );
    assert!(agent.exited().is_none());
    link("v2");
    let (status, log) = agent.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(log.iter().any(|line| line.contains(&changed)), "{log:#?}");
    let tables = netns.run("nft", &["list", "tables"], "").unwrap();
    assert!(String::from_utf8_lossy(&tables.stdout).contains("ip proxyd"));

    // A file of its own, written in place, and one that is moved over it.
    fs::remove_file(&file).unwrap();
    write("kp.yaml", "mode: nftables");
    let agent = start();
    write("kp.yaml", "mode: ipvs");
    assert_eq!(agent.wait(PATIENCE).0.code(), Some(1));
    let agent = start();
    write("other.yaml", "mode: iptables");
    fs::rename(path("other.yaml"), &file).unwrap();
    assert_eq!(agent.wait(PATIENCE).0.code(), Some(1));
}

#[test]
fn external_ips_are_served_unless_the_gate_is_off() {
    let netns = Netns::new().unwrap();
    let web = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.3", "externalIPs": ["192.0.2.7"], "ports": [{ "port": 80 }] },
    });
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("web.json"), web.to_string()).unwrap();
    let fields = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
                  featureGates: {AllowServiceExternalIPs: false}\n";
    fs::write(path("config.conf"), fields).unwrap();
    let refusal = "Service default/web: spec.externalIPs: 192.0.2.7 not served, since the feature gate \
                   AllowServiceExternalIPs is false";
    for backend in ["--backend=nftables", "--backend=ebpf"] {
        let dry_run = |more: &[&str]| {
            let manifests = path("web.json");
            let base = [
                "--dry-run",
                backend,
                "--hostname-override=n",
                "--manifests",
                &manifests,
            ];
            let output = run_once(&netns, &[&base[..], more].concat());
            let rules = String::from_utf8(output.stdout.clone()).unwrap();
            let has_external =
                rules.contains("192.0.2.7 . tcp . 80") || rules.contains("192.0.2.7:80");
            (output.status.code(), has_external, text(&output))
        };
        assert_eq!(dry_run(&[]), (Some(0), true, String::new()), "{backend}");
        for off in [
            "--feature-gates=AllowServiceExternalIPs=false".to_owned(),
            format!("--config={}", path("config.conf")),
        ] {
            let (status, has_external, said) = dry_run(&[&off]);
            assert_eq!((status, has_external), (Some(1), false), "{backend} {off}");
            assert!(said.contains(refusal), "{said}");
        }
    }
    let manifests = path("web.json");
    let args = [
        "--feature-gates=AllowServiceExternalIPs=false",
        "--hostname-override=n",
        "--manifests",
        &manifests,
    ];
    let agent = Agent::start(&netns, &args);
    agent.wait_for_log("in sync", PATIENCE);
    let listed = netns.run("nft", &["list", "ruleset"], "").unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("10.96.0.3") && !listed.contains("192.0.2.7"),
        "{listed}"
    );
    let (_, log) = agent.terminate();
    let said = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(said(refusal), 1, "{log:#?}");
    assert_eq!(
        said("--feature-gates: AllowServiceExternalIPs=false"),
        1,
        "{log:#?}"
    );
}
