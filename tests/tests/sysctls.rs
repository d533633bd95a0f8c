//! What the agent sets in the kernel's connection tracking, in a network namespace of the test.

use std::fs;

use proxyd_tests::agent::Agent;
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::list;
use proxyd_tests::world::PATIENCE;

const NETFILTER: &str = "/proc/sys/net/netfilter";

fn read(name: &str) -> u64 {
    let text = fs::read_to_string(format!("{NETFILTER}/{name}")).expect("the kernel has it");
    text.trim().parse().expect("it is a number")
}

#[test]
fn connection_tracking_is_set_in_the_namespace_and_a_refusal_is_a_warning() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("list.json"), list(&[])).unwrap();
    let fields = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                  conntrack: {min: 100000000, tcpBeLiberal: true, tcpCloseWaitTimeout: 30m, udpTimeout: 45s}\n";
    fs::write(path("config.conf"), fields).unwrap();
    let limit = read("nf_conntrack_max");
    let before = |name: &str| netns.enter(|| read(name));
    let stream = before("nf_conntrack_udp_timeout_stream");
    assert_ne!(before("nf_conntrack_tcp_timeout_established"), 86_400);

    let args = [
        "--config",
        &path("config.conf"),
        "--manifests",
        &path("list.json"),
        "--hostname-override=n",
        "--conntrack-tcp-timeout-close-wait=40m",
        "--oom-score-adj=-998",
    ];
    let agent = Agent::start(&netns, &args);
    agent.wait_for_log("in sync", PATIENCE);
    let now = |name: &str| netns.enter(|| read(name));
    assert_eq!(now("nf_conntrack_tcp_timeout_established"), 86_400);
    assert_eq!(now("nf_conntrack_tcp_timeout_close_wait"), 2_400);
    assert_eq!(now("nf_conntrack_tcp_be_liberal"), 1);
    assert_eq!(now("nf_conntrack_udp_timeout"), 45);
    assert_eq!(now("nf_conntrack_udp_timeout_stream"), stream);

    let (_, log) = agent.terminate();
    let said = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    // The kernel's limit is the machine's: only the first namespace can change it.
    assert_eq!(read("nf_conntrack_max"), limit);
    let refused = format!(
        "WARN /proc/sys/net/netfilter/nf_conntrack_max is {limit} and cannot be set to 100000000 (Permission denied"
    );
    assert_eq!(said(&refused), 1, "{log:#?}");
    assert_eq!(said("hashsize"), 0, "{log:#?}");
    assert_eq!(said("--oom-score-adj has no effect"), 1, "{log:#?}");
}
