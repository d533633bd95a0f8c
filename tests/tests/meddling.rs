//! Someone else changes the agent's rules while it runs: it notices at once, and puts them right.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proxyd_tests::agent::nft;
use proxyd_tests::cluster::{Cluster, Pod};
use proxyd_tests::generation::Generation;
use proxyd_tests::http::get;
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Conversation, Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World, wait_for_answers};
use serde_json::Value;

const V4: &str = "10.96.0.1";
const V6: &str = "fd00:96::1";

/// A Service of both families, with a NodePort and affinity.
fn objects(pod: &Pod) -> Vec<Value> {
    let ports = [Port::HTTP.at_nodes(30080)];
    let ips: Vec<IpAddr> = [V4, V6].map(|ip| ip.parse().unwrap()).into();
    let mut web = service("web", &ips, &ports);
    web["spec"]["sessionAffinity"] = "ClientIP".into();
    let endpoints = |ip| [(ip, "node-1")];
    let mut v6 = slice("web", &ports, &endpoints(pod.host.v6));
    v6["metadata"]["name"] = "web-ipv6".into();
    vec![web, slice("web", &ports, &endpoints(pod.host.v4)), v6]
}

/// The agent's tables, without the clients that the kernel remembers.
fn tables(node: &Netns) -> Option<[Table; 2]> {
    let without_clients = |family| {
        let mut table = Table::find(node, family)?;
        table.elements.remove("affinity");
        Some(table)
    };
    Some([without_clients("ip")?, without_clients("ip6")?])
}

struct Meddled {
    world: World,
    asker: Pod,
    pod: Pod,
    complete: [Table; 2],
}

impl Meddled {
    fn start() -> Self {
        let cluster = Cluster::new();
        let asker = cluster.node1.pod("asker");
        let pod = cluster.node1.pod("pod").serving(8080);
        let world = World::start(cluster, &objects(&pod), &World::DETECT_PODS);
        let complete = tables(&world.node().netns).unwrap();
        assert!(!complete[1].set("services").is_empty());
        Self {
            world,
            asker,
            pod,
            complete,
        }
    }

    fn node(&self) -> &Netns {
        &self.world.node().netns
    }

    /// Changes the rules as someone else, and waits until they are as before.
    #[track_caller]
    fn change_and_wait(&self, commands: &str) {
        nft(self.node(), &["-f", "-"], commands);
        let changed = Instant::now();
        let what = commands.trim_end().lines().last().unwrap();
        eventually(&format!("put right: {what}"), PATIENCE, || {
            tables(self.node()).as_ref() == Some(&self.complete)
        });
        // For people; how long nft takes to list is part of it.
        println!("{:?} after: {what}", changed.elapsed());
    }
}

#[test]
fn whatever_others_change_is_put_right_while_traffic_goes_on() {
    // Ten in a row are put right at once; who goes on has to wait.
    const AT_ONCE: usize = 7;
    let changes = [
        "flush ruleset",
        "delete table ip proxyd",
        "delete table ip6 proxyd",
        "delete table ip proxyd\ndelete table ip6 proxyd",
        "delete element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 0 }",
        "delete element ip6 proxyd services { fd00:96::1 . tcp . 80 }",
        "add element ip proxyd services { 10.96.0.9 . tcp . 80 : drop }",
        "add element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 7 : 10.244.1.9 . 80 }",
        "flush map ip proxyd node-ports",
        "delete element ip proxyd pod-networks { 10.244.0.0/16 }",
        "add element ip proxyd pod-networks { 10.9.0.0/16 }",
        "add element ip proxyd hairpin { 10.9.0.1 . 10.9.0.2 }",
        "add element ip proxyd services { 10.96.0.1 . udplite . 80 : drop }",
        "flush chain ip proxyd balance\ndelete element ip proxyd services { 10.96.0.1 . tcp . 80 }",
        "flush chain ip proxyd nat-postrouting",
        "flush chain ip6 proxyd do-masquerade",
        "insert rule ip proxyd nat-prerouting counter drop",
        "add chain ip6 proxyd theirs\nadd rule ip6 proxyd theirs counter",
        "add chain ip proxyd nat-prerouting { policy drop; }",
        "add set ip proxyd theirs { type ipv4_addr; }",
        "add table ip proxyd { flags dormant; }",
    ];
    changes.chunks(AT_ONCE).for_each(are_put_right);
}

/// Others make these changes while traffic goes on.
fn are_put_right(changes: &[&str]) {
    let meddled = Meddled::start();
    let to = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
    let asker = &meddled.asker.host;
    let mut open: Vec<Conversation> = [V4, V6]
        .iter()
        .map(|ip| Conversation::open(&asker.netns, Protocol::Tcp, to(ip), PATIENCE).unwrap())
        .collect();
    for commands in changes {
        meddled.change_and_wait(commands);
        for ip in [V4, V6] {
            wait_for_answers(asker, Protocol::Tcp, to(ip), &[&meddled.pod]);
        }
        for conversation in &mut open {
            conversation.ask().unwrap();
        }
    }
    let log = meddled.world.agent.log();
    let full = "after reading everything back";
    let full = log.iter().filter(|line| line.contains(full)).count();
    assert_eq!(full, 2, "at the start only: {log:#?}");
    let failed = log.iter().find(|line| line.contains("not in sync"));
    assert_eq!(failed, None, "{log:#?}");
}

#[test]
fn a_burst_is_logged_once_with_its_author_and_counted() {
    let meddled = Meddled::start();
    for _ in 0..3 {
        meddled.change_and_wait("delete element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 0 }");
    }
    let counter = "kubeproxy_sync_proxy_rules_foreign_changes_total";
    eventually("three changes of IPv4 are counted", PATIENCE, || {
        let metrics = get(
            meddled.node(),
            "127.0.0.1:10249".parse().unwrap(),
            "/metrics",
        );
        let metrics = metrics.unwrap().body;
        metrics.contains(&format!("{counter}{{ip_family=\"IPv4\"}} 3"))
            && metrics.contains(&format!("{counter}{{ip_family=\"IPv6\"}} 0"))
    });
    let log = meddled.world.agent.log();
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("changed the rules of proxyd"), 1, "{log:#?}");
    assert_eq!(count("IPv4: nft (process "), 1, "{log:#?}");
    assert_eq!(
        count("IPv4: put right what others changed: 1 change of 10.96.0.1:80 tcp (default/web)"),
        1,
        "{log:#?}"
    );
}

#[test]
fn what_others_do_in_their_own_tables_is_nobodys_business() {
    let meddled = Meddled::start();
    let generation = Generation::of(meddled.node()).unwrap();
    let before = generation.get().unwrap();
    let commands = [
        "table ip other { map services { type ipv4_addr : verdict; }; chain nat-prerouting { drop; }; }",
        "add table inet proxyd\nadd chain inet proxyd services",
        "delete table inet proxyd",
    ];
    for command in commands {
        nft(meddled.node(), &["-f", "-"], command);
    }
    // What comes after it was heard after it: a change of ours is put right, and theirs was let be.
    meddled.change_and_wait("delete element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 0 }");
    let commits = generation.get().unwrap() - before;
    assert_eq!(commits, 3 + 2, "theirs, one more of theirs, and its repair");
    let log = meddled.world.agent.log();
    let full = log
        .iter()
        .filter(|line| line.contains("after reading everything back"));
    assert_eq!(full.count(), 2, "at the start only: {log:#?}");
}

#[test]
fn a_load_of_theirs_that_is_too_much_to_hear_is_survived() {
    let meddled = Meddled::start();
    let mut commands = "table ip other { set s { type ipv4_addr; }; }\n".to_owned();
    for high in 0..=255 {
        let elements: Vec<String> = (0..=255).map(|low| format!("10.9.{high}.{low}")).collect();
        commands += &format!("add element ip other s {{ {} }}\n", elements.join(", "));
    }
    commands += "delete element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 0 }\n";
    meddled.change_and_wait(&commands);
    nft(meddled.node(), &["delete", "table", "ip", "other"], "");
    meddled.change_and_wait("flush ruleset");
    // In a table of ours, more than is worth asking for one by one.
    let mut commands = String::new();
    for high in 0..=31 {
        let elements: Vec<String> = (0..=255).map(|low| format!("10.9.{high}.{low}")).collect();
        commands += &format!(
            "add element ip proxyd cluster-ips {{ {} }}\n",
            elements.join(", ")
        );
    }
    meddled.change_and_wait(&commands);
}

/// The agent's own commits are no changes by others, however large.
#[test]
fn what_the_agent_commits_itself_is_not_put_right() {
    let meddled = Meddled::start();
    let many: Vec<Value> = (0..=255_u8)
        .flat_map(|n| {
            let ip = IpAddr::from([10, 97, 0, n]);
            let name = format!("many-{n}");
            let mut many = service(&name, &[ip], &[Port::HTTP]);
            many["spec"]["sessionAffinity"] = "ClientIP".into();
            [
                many,
                slice(&name, &[Port::HTTP], &[(meddled.pod.host.v4, "node-1")]),
            ]
        })
        .collect();
    let all = [objects(&meddled.pod), many].concat();
    meddled.world.write(&all);
    let last = SocketAddr::new("10.97.0.255".parse().unwrap(), 80);
    wait_for_answers(&meddled.asker.host, Protocol::Tcp, last, &[&meddled.pod]);
    // Clients are forgotten by a thread of its own.
    meddled.world.write(&all[..2 * 200 + 3]);
    eventually("a Service that went is not answered", PATIENCE, || {
        ask(
            &meddled.asker.host.netns,
            Protocol::Tcp,
            last,
            Duration::from_millis(300),
        )
        .is_err()
    });
    meddled.world.write(&objects(&meddled.pod));
    eventually("all of them went", PATIENCE, || {
        tables(meddled.node())
            .is_some_and(|tables| tables[0].set("services") == meddled.complete[0].set("services"))
    });
    let log = meddled.world.agent.log();
    assert!(
        !log.iter().any(|line| line.contains("changed the rules")),
        "{log:#?}"
    );
}
