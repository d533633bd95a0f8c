//! The kernel says no. At every moment the kernel holds what it held before or what it should, and the
//! agent tries again until it is the second.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proxyd_tests::agent::nft;
use proxyd_tests::cluster::Cluster;
use proxyd_tests::generation::Generation;
use proxyd_tests::inject::Injection;
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World, http};
use serde_json::{Value, json};

use crate::http_at;

/// Services by number, each with this many endpoints on another node.
fn objects(endpoints: &[(u8, u8)]) -> Vec<Value> {
    let one = |(number, count): &(u8, u8)| -> Vec<Value> {
        let name = format!("web-{number}");
        let ips: Vec<(IpAddr, &str)> = (0..*count)
            .map(|endpoint| (IpAddr::from([10, 1, *number, endpoint]), "node-2"))
            .collect();
        let service = service(&name, &[IpAddr::from([10, 96, 0, *number])], &[Port::HTTP]);
        if ips.is_empty() {
            return vec![service];
        }
        vec![service, slice(&name, &[Port::HTTP], &ips)]
    };
    endpoints.iter().flat_map(one).collect()
}

/// Two states that differ in every map: endpoints come and go, Services have them or none, and are there or not.
fn states() -> [Vec<Value>; 2] {
    [
        objects(&[(1, 3), (2, 1), (3, 0), (4, 2), (5, 1)]),
        objects(&[(1, 2), (2, 0), (3, 4), (4, 1), (6, 1)]),
    ]
}

/// All elements of the IPv4 table, which nft reads as of one moment: it begins anew when the rules change meanwhile.
type Elements = BTreeMap<String, BTreeSet<String>>;

fn elements(node: &Netns) -> Elements {
    Table::of(node, "ip").without_places()
}

/// Looks at the elements while `work` is done, and returns every state that it saw.
fn watched<T: Send>(node: &Netns, work: impl FnOnce() -> T) -> (T, Vec<Elements>) {
    let is_done = AtomicBool::new(false);
    let seen = Mutex::new(Vec::new());
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                let now = elements(node);
                let mut seen = seen.lock().unwrap();
                if !seen.contains(&now) {
                    seen.push(now);
                }
            }
        });
        // Also after a panic, or the other thread would never end.
        let _done = Done(&is_done);
        work()
    });
    (result, seen.into_inner().unwrap())
}

/// Says that it is done when it is dropped.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Brings a world to each state in turn, and returns what the kernel holds of each.
fn settle(world: &World) -> [Elements; 2] {
    let node = &world.node().netns;
    let [first, second] = states();
    let at_first = elements(node);
    world.write(&second);
    eventually("the second state is there", PATIENCE, || {
        elements(node)["services"]
            .iter()
            .any(|it| it.starts_with("10.96.0.6 "))
    });
    let at_second = elements(node);
    world.write(&first);
    eventually("the first state is back", PATIENCE, || {
        elements(node) == at_first
    });
    [at_first, at_second]
}

#[test]
fn system_calls_that_fail_leave_the_old_state_or_the_new_one() {
    let world = World::start(Cluster::new(), &states()[0], &World::DETECT_PODS);
    let node = &world.node().netns;
    let expected = settle(&world);
    let failures = || -> usize {
        let log = world.agent.log();
        log.iter()
            .filter(|line| line.contains("in sync again after"))
            .count()
    };
    // The thread that talks nftables is the main one; what others do is left alone. Nothing is sent when a call
    // fails, but what fails to be received has been committed.
    let cases = [
        ("sendto:error=ENOBUFS:when=1..3", true),
        ("sendto:error=ENOMEM:when=1", true),
        ("sendto:error=EBUSY:when=1..2", true),
        ("sendto:error=EINTR:when=1", true),
        // A transaction that is larger than net.core.wmem_max lets it be, where root is not the machine's own.
        ("sendto:error=EMSGSIZE:when=1", true),
        ("recvfrom:error=ENOBUFS:when=1", true),
        ("recvfrom:error=ENOMEM:when=1..2", true),
        ("recvfrom:error=EINTR:when=1..5", false),
    ];
    let ((), seen) = watched(node, || {
        for (i, (what, fails)) in cases.into_iter().enumerate() {
            let to = (i + 1) % 2;
            let before = failures();
            let Some(_injection) = Injection::attach(node, world.agent.pid(), false, what, &[])
            else {
                return;
            };
            world.write(&states()[to]);
            eventually(&format!("the new state is there: {what}"), PATIENCE, || {
                elements(node) == expected[to]
            });
            if fails {
                eventually(&format!("{what} was noticed"), PATIENCE, || {
                    failures() > before
                });
            }
        }
    });
    for state in &seen {
        assert!(
            expected.contains(state),
            "neither the old state nor the new one: {state:#?}"
        );
    }
    world.agent.terminate();
}

/// Commits to a table of its own as fast as `nft` can, until it is dropped.
struct Restless(Option<Child>, Option<thread::JoinHandle<()>>);

impl Restless {
    fn start(netns: &Netns) -> Self {
        nft(
            netns,
            &["add table ip restless; add set ip restless s { type ipv4_addr; }"],
            "",
        );
        let child = netns.spawn("nft", |command| {
            command
                .arg("--interactive")
                .stdin(Stdio::piped())
                .stdout(Stdio::null());
        });
        let mut child = child.unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let line =
            "add element ip restless s { 192.0.2.1 }\ndelete element ip restless s { 192.0.2.1 }\n";
        // Ends with the broken pipe when the child is killed.
        let feed = thread::spawn(move || while stdin.write_all(line.as_bytes()).is_ok() {});
        Self(Some(child), Some(feed))
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().ok();
            child.wait().ok();
        }
        drop(self.1.take().map(thread::JoinHandle::join));
    }
}

#[test]
fn commits_of_others_do_not_keep_the_agent_from_its_own() {
    let mut world = World::start(Cluster::new(), &states()[0], &World::DETECT_PODS);
    let expected = settle(&world);
    let generation = Generation::of(&world.node().netns).unwrap();
    let before = generation.get().unwrap();
    let restless = Restless::start(&world.node().netns);
    for round in 1..=6 {
        let to = round % 2;
        world.write(&states()[to]);
        eventually("the new state is there", PATIENCE, || {
            elements(&world.node().netns) == expected[to]
        });
        // Reads everything back, while it changes all the time.
        world = world.restart(&World::DETECT_PODS);
        assert_eq!(elements(&world.node().netns), expected[to]);
    }
    // The table is replaced as a whole.
    world = world.restart(&[]);
    world = world.restart(&World::DETECT_PODS);
    drop(restless);
    assert_eq!(elements(&world.node().netns), expected[0]);
    let commits = generation.get().unwrap() - before;
    assert!(commits > 200, "the other did not commit much: {commits}");
    println!("{commits} commits, most of them by another program");
    world.agent.terminate();
}

/// The one map that has a size is that of remembered clients.
#[test]
fn a_full_map_of_clients_costs_their_affinity_and_nothing_else() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let a = cluster.node1.pod("a").serving(8080);
    let b = cluster.node2.pod("b").serving(8080);
    let mut objects = http("web", "10.96.0.1", &[(&a, "node-1"), (&b, "node-2")]);
    objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let node = &world.node().netns;
    let clients: Vec<String> = (0..131_072_u32)
        .map(|number| {
            let client = std::net::Ipv4Addr::from_bits(0x6440_0000 + number);
            format!("{client} . 10.96.0.1 . tcp . 80 : {} . 8080", a.host.v4)
        })
        .collect();
    let fill = format!(
        "add element ip proxyd affinity {{ {} }}",
        clients.join(", ")
    );
    nft(node, &["-f", "-"], &fill);
    let to = http_at("10.96.0.1");
    let mut servers = BTreeSet::new();
    eventually(
        "one client comes to both, since nobody remembers it",
        PATIENCE,
        || {
            servers.insert(
                ask(&asker.host.netns, Protocol::Tcp, to, PATIENCE)
                    .unwrap()
                    .server,
            );
            servers.len() == 2
        },
    );
    // Changes are made all the same, and those who were remembered for what is gone make room.
    let mut rest = http("web", "10.96.0.1", &[(&b, "node-2")]);
    rest[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    world.write(&rest);
    let text = format!("{} . 10.96.0.1 . tcp . 80", asker.host.v4);
    eventually("the client is remembered", 6 * PATIENCE, || {
        let answer = ask(&asker.host.netns, Protocol::Tcp, to, PATIENCE).unwrap();
        let get = [
            "get",
            "element",
            "ip",
            "proxyd",
            "affinity",
            &format!("{{ {text} }}"),
        ];
        answer.server == "b" && node.run("nft", &get, "").unwrap().status.success()
    });
    world.agent.terminate();
}
