//! The life of the agent: what it loads, what it leaves and what it finds again.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::net::{IpAddr, SocketAddr};

use nftables::schema::{NfListObject, NfObject, Nftables};
use proxyd_tests::agent::{Agent, nft, run_once};
use proxyd_tests::cluster::Cluster;
use proxyd_tests::generation::Generation;
use proxyd_tests::netns::{Netns, link};
use proxyd_tests::objects::{Port, list, service, slice};
use proxyd_tests::traffic::{Conversation, Failure, Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, SILENCE, World, http, wait_for_answers};
use serde_json::Value;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

/// The agent's tables in a namespace as `nft` prints them: the blocks, and the lines of each, in one order and
/// without what counts. (Elements come in the order of a hash table with a random seed.)
fn rules(netns: &Netns) -> String {
    let of_table = |family| {
        let text = nft(netns, &["list", "table", family, "proxyd"], "");
        let body = text
            .trim_end()
            .strip_suffix('}')
            .expect("a table ends with a brace")
            .to_owned();
        let mut blocks: Vec<String> = body.split("\n\n").map(block).collect();
        blocks.sort();
        format!("{family}\n{}", blocks.join("\n\n"))
    };
    ["ip", "ip6"].map(of_table).join("\n\n")
}

/// One chain, map or set, with its lines in order.
fn block(text: &str) -> String {
    let text = text.replace("elements = {", "\n");
    let counts = |word: &&str| ["packets", "bytes"].contains(word);
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.trim().trim_end_matches([',', '}', ' ']))
        .filter(|line| {
            !line.is_empty() && !line.starts_with("table ") && !line.starts_with("comment ")
        })
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let kept = (0..words.len())
                .filter(|&i| !counts(&words[i]) && (i == 0 || !counts(&words[i - 1])));
            kept.map(|i| words[i]).collect::<Vec<_>>().join(" ")
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn the_agent_and_the_dry_run_load_the_same_table() {
    let args = [
        "--manifests",
        EXAMPLES,
        "--hostname-override",
        "node-1",
        "--cluster-cidr",
        "10.244.0.0/16,fd00:10:244::/56",
    ];
    let by_agent = Netns::new().unwrap();
    let agent = Agent::start(&by_agent, &args);
    agent.wait_for_log("in sync", PATIENCE);

    let by_nft = Netns::new().unwrap();
    let dry_run = run_once(&by_nft, &[&args[..], &["--dry-run"]].concat());
    assert!(dry_run.status.success(), "{dry_run:?}");
    nft(
        &by_nft,
        &["-f", "-"],
        std::str::from_utf8(&dry_run.stdout).unwrap(),
    );

    let loaded = rules(&by_agent);
    assert_eq!(loaded, rules(&by_nft));
    assert!(
        loaded.contains("chain cluster-") && loaded.contains("chain node-port-"),
        "{loaded}"
    );
    for table in ["ip", "ip6"] {
        let bytecode = |netns| {
            nft(
                netns,
                &["--debug=netlink", "list", "table", table, "proxyd"],
                "",
            )
        };
        let expressions = |text: String| {
            let mut lines: Vec<String> = text
                .lines()
                .filter(|l| l.starts_with("  [") && !l.contains("[ byteorder "))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        assert_eq!(
            expressions(bytecode(&by_agent)),
            expressions(bytecode(&by_nft))
        );
    }
    agent.terminate();
}

/// The dry run's rules, loaded over those of the agent, are adopted: the two are one version.
#[test]
fn what_nft_loaded_from_a_dry_run_is_adopted() {
    let netns = Netns::new().unwrap();
    let args = [
        "-v4",
        "--manifests",
        EXAMPLES,
        "--hostname-override",
        "node-1",
    ];
    let dry_run = run_once(&netns, &[&args[..], &["--dry-run"]].concat());
    nft(
        &netns,
        &["-f", "-"],
        std::str::from_utf8(&dry_run.stdout).unwrap(),
    );
    let generation = Generation::of(&netns).unwrap();
    let before = generation.get().unwrap();
    let agent = Agent::start(&netns, &args);
    agent.wait_for_log("in sync", PATIENCE);
    assert_eq!(
        generation.get().unwrap(),
        before,
        "nothing was written that was right already"
    );
    agent.terminate();
}

#[test]
fn rules_outlive_the_agent_and_a_restart_writes_only_what_differs() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let a = cluster.node1.pod("a").serving(8080);
    let b = cluster.node2.pod("b").serving(8080);
    let world = World::start(
        cluster,
        &http("web", "10.96.0.1", &[(&a, "node-1")]),
        &World::DETECT_PODS,
    );
    let to = SocketAddr::new("10.96.0.1".parse().unwrap(), 80);
    let mut open = Conversation::open(&asker.host.netns, Protocol::Tcp, to, PATIENCE).unwrap();
    open.ask().unwrap();

    let World {
        agent,
        cluster,
        manifests,
    } = world;
    let (status, log) = agent.terminate();
    assert!(status.success(), "{log:?}");
    assert!(
        log.last().unwrap().contains("the rules stay in place"),
        "{log:?}"
    );
    assert_eq!(
        ask(&asker.host.netns, Protocol::Tcp, to, PATIENCE)
            .unwrap()
            .server,
        "a"
    );

    // While nobody watches, one endpoint comes.
    let objects = http("web", "10.96.0.1", &[(&a, "node-1"), (&b, "node-2")]);
    fs::write(manifests.path().join("objects.json"), list(&objects)).unwrap();
    let before = Generation::of(&cluster.node1.host.netns).unwrap();
    let generation = before.get().unwrap();
    let world = World::resume(cluster, manifests, &World::DETECT_PODS);
    world
        .agent
        .wait_for_log("IPv4: 2 changes after reading everything back", PATIENCE);
    world.agent.wait_for_log("IPv6: 0 changes", PATIENCE);
    assert_eq!(before.get().unwrap(), generation + 1, "one transaction");
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&a, &b]);
    assert_eq!(
        open.ask().unwrap().server,
        "a",
        "an open connection stays where it is"
    );
    world.agent.terminate();
}

#[test]
fn other_flags_replace_the_table_in_one_transaction() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let objects = http("web", "10.96.0.1", &[(&a, "node-1")]);
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let client = &world.cluster.client;
    let to = SocketAddr::new("10.96.0.1".parse().unwrap(), 80);
    let seen = ask(&client.netns, Protocol::Tcp, to, PATIENCE)
        .unwrap()
        .seen;
    assert_eq!(seen.ip(), world.node().v4);
    let generation = Generation::of(&world.node().netns).unwrap();
    let before = generation.get().unwrap();
    let world = world.restart(&[]);
    assert_eq!(
        generation.get().unwrap(),
        before + 2,
        "one transaction for each family"
    );
    let client = &world.cluster.client;
    let seen = ask(&client.netns, Protocol::Tcp, to, PATIENCE)
        .unwrap()
        .seen;
    assert_eq!(
        seen.ip(),
        client.v4,
        "without --cluster-cidr nothing to a ClusterIP is masqueraded"
    );
}

#[test]
fn tables_of_others_are_left_alone() {
    let netns = Netns::new().unwrap();
    let foreign = "table ip other {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n}\n\
                   table inet proxyd-too {\n\tchain c {\n\t\tcounter packets 0 bytes 0\n\t}\n}\n";
    nft(&netns, &["-f", "-"], foreign);
    let agent = Agent::start(
        &netns,
        &["--manifests", EXAMPLES, "--hostname-override", "node-1"],
    );
    agent.wait_for_log("in sync", PATIENCE);
    agent.terminate();
    assert!(nft(&netns, &["list", "tables"], "").contains("table ip6 proxyd"));
    let cleanup = run_once(&netns, &["--cleanup"]);
    assert!(cleanup.status.success(), "{cleanup:?}");
    assert_eq!(nft(&netns, &["list", "ruleset"], ""), foreign);
    let again = run_once(&netns, &["--cleanup"]);
    assert!(
        again.status.success(),
        "what is not there is no error: {again:?}"
    );
}

/// Changes the rules while no agent runs, and starts one again.
fn meddle_between(world: World, commands: &str) -> World {
    let World {
        agent,
        cluster,
        manifests,
    } = world;
    agent.terminate();
    nft(&cluster.node1.host.netns, &["-f", "-"], commands);
    World::resume(cluster, manifests, &World::DETECT_PODS)
}

#[test]
fn what_someone_did_while_no_agent_ran_is_put_right_by_the_next_one() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let objects = http("web", "10.96.0.1", &[(&a, "node-1")]);
    let mut world = World::start(cluster, &objects, &World::DETECT_PODS);
    let complete = rules(&world.node().netns);
    for commands in [
        "delete element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 0 }\n\
         delete element ip proxyd hairpin { 10.244.1.100 . 10.244.1.100 }",
        "add element ip proxyd services { 10.96.0.9 . tcp . 80 : drop }",
        "add element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 7 : 10.244.1.9 . 80 }",
        "flush chain ip proxyd nat-postrouting\ndelete set ip proxyd hairpin",
        "delete table ip proxyd",
    ] {
        world = meddle_between(world, commands);
        assert_eq!(rules(&world.node().netns), complete, "after {commands}");
    }
}

#[test]
fn a_new_address_of_the_node_has_node_ports_at_once() {
    let cluster = Cluster::new();
    let pod = cluster.node1.pod("pod").serving(8080);
    let ports = [Port::HTTP.at_nodes(30080)];
    let cluster_ips = ["10.96.0.1", "fd00:10:96::1"].map(|ip| ip.parse().unwrap());
    let objects = [
        service("web", &cluster_ips, &ports),
        slice("web", &ports, &[(pod.host.v4, "node-1")]),
    ];
    let mut v6 = slice("web", &ports, &[(pod.host.v6, "node-1")]);
    v6["metadata"]["name"] = "web-6".into();
    let objects = [&objects[..], &[v6]].concat();
    let networks = "192.168.0.0/24,172.16.0.0/12,fd00:168::/64,fd00:172::/32";
    let world = World::start(cluster, &objects, &["--nodeport-addresses", networks]);
    let node = world.node();
    let client = &world.cluster.client;
    // In the networks, and outside of them.
    let added = ["172.16.9.9", "fd00:172::9"].map(|ip| ip.parse().unwrap());
    let others = ["10.9.9.9", "fd00:9::9"].map(|ip| ip.parse().unwrap());
    let add = |address: IpAddr| {
        link::add_address(&node.netns, "lo", address.into()).unwrap();
        let by = if address.is_ipv4() { node.v4 } else { node.v6 };
        link::add_route(&world.cluster.fabric, address.into(), by).unwrap();
    };
    let at = |address| {
        let to = SocketAddr::new(address, 30080);
        ask(&client.netns, Protocol::Tcp, to, SILENCE)
    };
    for own in [node.v4, node.v6] {
        assert_eq!(at(own).unwrap().server, "pod");
    }
    others.into_iter().for_each(add);
    for address in added {
        add(address);
        eventually(&format!("{address} has NodePorts"), PATIENCE, || {
            at(address).is_ok()
        });
    }
    for address in others {
        // The node itself answers: nobody listens there.
        assert_eq!(at(address), Err(Failure::Refused), "{address}");
    }
    for address in added {
        link::remove_address(&node.netns, "lo", address.into()).unwrap();
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        let set = ["list", "set", family, "proxyd", "node-port-addresses"];
        eventually(&format!("{address} has none any more"), PATIENCE, || {
            !nft(&node.netns, &set, "").contains(&address.to_string())
        });
    }
}

/// The names of the chains of table `ip proxyd`, from nft's JSON.
fn chains(netns: &Netns) -> Vec<String> {
    let listed = nft(netns, &["--json", "list", "chains", "ip"], "");
    let listed: Nftables<'_> = serde_json::from_str(&listed).unwrap();
    listed
        .objects
        .iter()
        .filter_map(|object| match object {
            NfObject::ListObject(NfListObject::Chain(chain)) if chain.table == "proxyd" => {
                Some(chain.name.to_string())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_chain_is_made_for_a_number_of_endpoints_and_not_for_a_service() {
    let cluster = Cluster::new();
    let pods = ["a", "b", "c"].map(|name| cluster.node1.pod(name));
    let objects: Vec<Value> = (1..=60_u8)
        .flat_map(|n| {
            let some: Vec<_> = pods
                .iter()
                .take(1 + usize::from(n % 3))
                .map(|pod| (pod, "node-1"))
                .collect();
            http(&format!("web-{n}"), &format!("10.96.0.{n}"), &some)
        })
        .collect();
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let balancing = |netns| -> Vec<String> {
        let mut names = chains(netns);
        names.retain(|name| name.starts_with("cluster-") || name.starts_with("node-port-"));
        names.sort();
        names
    };
    let node = &world.node().netns;
    assert_eq!(balancing(node), ["cluster-1", "cluster-2", "cluster-3"]);
    let before = chains(node).len();
    world.write(&objects[..6]);
    eventually("fewer Services have fewer elements", PATIENCE, || {
        !nft(node, &["list", "map", "ip", "proxyd", "services"], "").contains("10.96.0.60 ")
    });
    assert_eq!(
        chains(node).len(),
        before,
        "chains stay for the next Service of their shape"
    );
}
