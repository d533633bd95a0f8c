//! What else may be at work on the node: another agent, a `--cleanup`, somebody who undoes the rules, a kube-proxy or what one left,
//! and a kernel that lacks a family.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxyd_tests::agent::{Agent, binary, nft, run_once};
use proxyd_tests::generation::Generation;
use proxyd_tests::http::get;
use proxyd_tests::netns::Netns;
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::world::PATIENCE;
use tempfile::TempDir;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

const ARGS: [&str; 4] = ["--manifests", EXAMPLES, "--hostname-override", "node-1"];

const HEALTH: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

fn start(netns: &Netns) -> Agent {
    let agent = Agent::start(netns, &ARGS);
    agent.wait_for_log("in sync", PATIENCE);
    agent
}

fn is_healthy(netns: &Netns) -> bool {
    get(netns, HEALTH.parse().unwrap(), "/healthz").is_ok_and(|answer| answer.code == 200)
}

/// The lines of the metrics that begin so.
fn metrics(netns: &Netns, prefix: &str) -> Vec<String> {
    let answer = get(netns, METRICS.parse().unwrap(), "/metrics").unwrap();
    let lines = answer.body.lines().filter(|line| line.starts_with(prefix));
    lines.map(str::to_owned).collect()
}

/// A program that is ended when this is dropped.
struct Running(Child);

impl Running {
    fn start(netns: &Netns, program: &str, args: &[&str]) -> Self {
        let child = netns.spawn(program, |command| {
            command.args(args).stdout(Stdio::null());
        });
        Self(child.unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_second_agent_waits_until_the_first_ends_however_it_ends() {
    let netns = Netns::new().unwrap();
    let first = start(&netns);
    let second = Agent::start(&netns, &ARGS);
    let waits = format!(
        "another proxyd (process {}, proxyd) keeps these rules; waiting for it to end",
        first.pid()
    );
    second.wait_for_log(&waits, PATIENCE);
    // One of many may be given up: it ends as an agent does, and changes nothing.
    let third = Agent::start(&netns, &ARGS);
    third.wait_for_log(&waits, PATIENCE);
    let (status, _) = third.terminate();
    assert!(status.success(), "{status}");
    assert!(is_healthy(&netns), "the first goes on");
    assert!(!second.log().iter().any(|line| line.contains("in sync")));

    first.signal(Signal::SIGKILL);
    let ended = Instant::now();
    second.wait_for_log("the other proxyd has ended; taking over", PATIENCE);
    let taken = ended.elapsed();
    second.wait_for_log("in sync", PATIENCE);
    println!(
        "taken over after {taken:?}, in sync after {:?}",
        ended.elapsed()
    );
    eventually("the second tells of its health", PATIENCE, || {
        is_healthy(&netns)
    });
    drop(first);

    let next = Agent::start(&netns, &ARGS);
    next.wait_for_log("waiting for it to end", PATIENCE);
    let (status, _) = second.terminate();
    assert!(status.success(), "{status}");
    next.wait_for_log("in sync", PATIENCE);
}

#[test]
fn agents_in_two_network_namespaces_do_not_wait_for_each_other() {
    let (here, there) = (Netns::new().unwrap(), Netns::new().unwrap());
    let agents = [start(&here), start(&there)];
    for agent in agents {
        let (status, log) = agent.terminate();
        assert!(status.success() && !log.iter().any(|line| line.contains("another proxyd")));
    }
}

#[test]
fn cleanup_beside_an_agent_says_so_and_removes_nothing() {
    let netns = Netns::new().unwrap();
    let agent = start(&netns);
    let generation = Generation::of(&netns).unwrap();
    let before = generation.get().unwrap();
    let refused = run_once(&netns, &["--cleanup"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let runs = format!("a proxyd runs here (process {}, proxyd)", agent.pid());
    assert!(
        said.contains(&runs) && said.contains("nothing was removed"),
        "{said}"
    );
    assert_eq!(generation.get().unwrap(), before, "nothing was changed");
    agent.terminate();
    let done = run_once(&netns, &["--cleanup"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(nft(&netns, &["list", "tables"], ""), "");
}

/// Whoever may not change rules is no agent, whatever name it takes.
#[test]
fn a_user_without_privileges_keeps_no_agent_out() {
    let netns = Netns::new().unwrap();
    let takes = r#"use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or die; bind(S, pack_sockaddr_un("\0proxyd")) or die "$!";
        listen(S, 5) or die; sleep 600"#;
    for privileges in [
        &["--reuid", "65534", "--regid", "65534", "--clear-groups"][..],
        &["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"],
    ] {
        let args = [privileges, &["perl", "-e", takes]].concat();
        let user = Running::start(&netns, "setpriv", &args);
        let is_taken = || {
            let sockets = netns.run("cat", &["/proc/self/net/unix"], "").unwrap();
            String::from_utf8_lossy(&sockets.stdout).contains("@proxyd")
        };
        eventually("the name is taken", PATIENCE, is_taken);
        let agent = start(&netns);
        let who = format!("is taken by process {}, perl", user.0.id());
        agent.wait_for_log(&who, PATIENCE);
        agent.terminate();
        let cleanup = run_once(&netns, &["--cleanup"]);
        assert!(cleanup.status.success(), "{cleanup:?}");
        drop(user);
    }
}

#[test]
fn who_keeps_undoing_the_rules_is_fought_once_a_second_at_most() {
    const TIME: Duration = Duration::from_secs(8);
    // Ten at once, then after 1, 2 and 4 seconds.
    const MOST: usize = 10 + 4;
    let netns = Netns::new().unwrap();
    let agent = start(&netns);
    let begun = Instant::now();
    let mut undone = 0;
    while begun.elapsed() < TIME {
        let deleted = netns.run("nft", &["delete", "table", "ip", "proxyd"], "");
        undone += usize::from(deleted.unwrap().status.success());
    }
    println!("undone {undone} times in {TIME:?}");
    assert!((5..=MOST).contains(&undone), "{undone}");
    agent.wait_for_log("putting them right once a second at most", PATIENCE);
    let has_table = || nft(&netns, &["list", "tables"], "").contains("table ip proxyd");
    eventually("it is put right in the end", 2 * PATIENCE, has_table);
}

#[test]
fn what_a_kube_proxy_left_is_told_once_and_counted() {
    let check = |commands: &str, mode: &str| {
        let netns = Netns::new().unwrap();
        nft(&netns, &["-f", "-"], commands);
        let agent = start(&netns);
        let told = format!("there are rules of kube-proxy on this node (mode {mode})");
        let line = agent.wait_for_log(&told, PATIENCE);
        assert!(
            line.contains("remove them with kube-proxy --cleanup"),
            "{line}"
        );
        let gauge = format!("kubeproxy_other_proxy_rules{{mode=\"{mode}\"}} 1");
        eventually(&gauge, PATIENCE, || {
            metrics(&netns, "kubeproxy_other_proxy_rules").contains(&gauge)
        });
        assert_eq!(
            metrics(&netns, "kubeproxy_other_proxy_running"),
            ["kubeproxy_other_proxy_running 0"]
        );
        let (_, log) = agent.terminate();
        assert_eq!(
            log.iter()
                .filter(|line| line.contains("kube-proxy --cleanup"))
                .count(),
            1
        );
    };
    check("table ip nat { chain KUBE-SERVICES { }; }", "iptables");
    check("table ip6 nat { chain KUBE-SERVICES { }; }", "iptables");
    check("table ip6 kube-proxy { }", "nftables");
    // Chains of others, and those that a kubelet makes.
    let netns = Netns::new().unwrap();
    let others = "table ip nat { chain KUBE-MARK-MASQ { }; }\ntable ip mangle { chain KUBE-KUBELET-CANARY { }; }";
    nft(&netns, &["-f", "-"], others);
    let agent = start(&netns);
    eventually("it has looked", PATIENCE, || {
        metrics(&netns, "kubeproxy_other_proxy_rules").len() == 3
    });
    let (_, log) = agent.terminate();
    assert!(
        !log.iter().any(|line| line.contains("kube-proxy --cleanup")),
        "{log:?}"
    );
}

#[test]
fn a_kube_proxy_that_runs_here_is_named() {
    let netns = Netns::new().unwrap();
    let directory = TempDir::new().unwrap();
    // A program of that name.
    let program = directory.path().join("kube-proxy");
    let sleep = netns
        .run("sh", &["-c", "command -v sleep"], "")
        .unwrap()
        .stdout;
    fs::copy(String::from_utf8(sleep).unwrap().trim(), &program).unwrap();
    let other = Running::start(&netns, program.to_str().unwrap(), &["600"]);
    let elsewhere = Netns::new().unwrap();
    let agent = start(&netns);
    let told = format!(
        "kube-proxy runs on this node too (process {})",
        other.0.id()
    );
    agent.wait_for_log(&told, PATIENCE);
    eventually("it is counted", PATIENCE, || {
        metrics(&netns, "kubeproxy_other_proxy_running") == ["kubeproxy_other_proxy_running 1"]
    });
    let agent = start(&elsewhere);
    let (_, log) = agent.terminate();
    assert!(
        !log.iter().any(|line| line.contains("kube-proxy runs")),
        "{log:?}"
    );
}

/// A kernel that was started with `ipv6.disable=1`, as far as its files show it.
#[test]
fn a_node_without_ipv6_is_healthy() {
    let netns = Netns::new().unwrap();
    let hides = format!(
        "mount -t tmpfs none /proc/$$/net && touch /proc/$$/net/dev && exec {} \"$@\"",
        binary()
    );
    let args = [&["--mount", "sh", "-c", &hides, "proxyd"][..], &ARGS].concat();
    let agent = Agent::start_binary("unshare", &netns, &args);
    agent.wait_for_log("the kernel has no IPv6", PATIENCE);
    agent.wait_for_log("in sync", PATIENCE);
    let healthy = poll(PATIENCE, || is_healthy(&netns).then_some(()));
    assert!(healthy.is_some(), "/healthz says 200");
    assert_eq!(nft(&netns, &["list", "tables"], ""), "table ip proxyd\n");
    let queued = metrics(
        &netns,
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    );
    assert!(
        !queued.iter().any(|line| line.contains("IPv6")),
        "{queued:?}"
    );
    let (status, _) = agent.terminate();
    assert!(status.success(), "{status}");
}
