//! Random API objects in the kernel: what is accepted always loads, both by `nft` and by the agent, and comes to the
//! same tables.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proxyd_tests::agent::{Agent, nft, run_once};
use proxyd_tests::generation::Generation;
use proxyd_tests::netns::{Netns, link};
use proxyd_tests::objects::list;
use proxyd_tests::tables::Table;
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::wild::{Choices, NODE, laws, objects, seeded};
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

/// Which worlds are tried: numbers from 0 up, or from here.
const FIRST_VARIABLE: &str = "PROXYD_WILD_FIRST";

/// How many worlds are tried, if not this many.
const COUNT_VARIABLE: &str = "PROXYD_WILD_COUNT";

const COUNT: u64 = 40;

/// After so many worlds the agent is restarted, and reads everything back.
const RESTART_EVERY: u64 = 5;

const FAMILIES: [&str; 2] = ["ip", "ip6"];

fn from_environment(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// The objects of a world that a file of manifests can hold, each name once, and a Service that tells the world from
/// others.
fn world(number: u64) -> Vec<Value> {
    let mut names = BTreeSet::new();
    let mut all = objects(&mut Choices::new(&seeded(number, 2_500)));
    all.retain(|object| {
        let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let typed = laws::typed(std::slice::from_ref(object));
        let counts = [
            typed.services.len(),
            typed.slices.len(),
            typed.endpoints.len(),
            typed.nodes.len(),
            typed.service_cidrs.len(),
        ];
        let key = format!("{} {}/{}", object["kind"], name("namespace"), name("name"));
        counts != [0; 5] && !name("name").is_empty() && names.insert(key)
    });
    let [high, low] = u16::try_from(number % 65_536).unwrap().to_be_bytes();
    all.push(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "marker", "namespace": "marker" },
        "spec": {
            "clusterIPs": [format!("10.97.{high}.{low}"), format!("fd00:10:97::{number:x}")],
            "ports": [{ "port": 7 }],
        },
    }));
    all
}

fn write(directory: &Path, objects: &[Value]) {
    let beside = directory.join("objects.tmp");
    fs::write(&beside, list(objects)).unwrap();
    fs::rename(&beside, directory.join("objects.json")).unwrap();
}

/// The elements of each family, as they are to be compared.
type Elements = BTreeMap<String, BTreeSet<String>>;

/// What the dry run's text comes to: loaded by nft, but for what it has as comments.
fn loaded(text: &str) -> [(Table, Elements); 2] {
    let netns = Netns::new().unwrap();
    nft(&netns, &["-f", "-"], text);
    assert!(
        !nft(&netns, &["list", "tables"], "").contains("evil"),
        "a text became a command"
    );
    FAMILIES.map(|family| {
        let table = Table::of(&netns, family);
        let mut elements = table.without_places();
        if family == "ip6" {
            let beyond = text
                .lines()
                .filter_map(|line| line.split_once("nft 1.0.6 cannot: ").map(|(_, what)| what));
            for line in beyond {
                let (set, list) = line.split_once(" { ").unwrap();
                let list = list.strip_suffix(" }").unwrap().split(", ");
                elements
                    .get_mut(set)
                    .unwrap()
                    .extend(list.map(str::to_owned));
            }
        }
        (table, elements)
    })
}

#[test]
fn what_is_accepted_loads_by_nft_and_by_the_agent_and_is_the_same() {
    let netns = Netns::new().unwrap();
    for address in ["192.168.0.2/32", "10.96.0.3/32", "fd00::2/128"] {
        link::add_address(&netns, "lo", address.parse().unwrap()).unwrap();
    }
    let manifests = tempfile::tempdir().unwrap();
    let directory = manifests.path().to_str().unwrap();
    let args = [
        "-v4",
        "--manifests",
        directory,
        "--hostname-override",
        NODE,
        "--detect-local-mode",
        "NodeCIDR",
    ];
    let first = from_environment(FIRST_VARIABLE, 0);
    let last = first + from_environment(COUNT_VARIABLE, COUNT);
    let generation = Generation::of(&netns).unwrap();
    write(manifests.path(), &world(first));
    let mut agent = Agent::start(&netns, &args);
    agent.wait_for_log("in sync", PATIENCE);
    for number in first..last {
        let objects = world(number);
        let before = generation.get().unwrap();
        write(manifests.path(), &objects);
        let dry_run = run_once(&netns, &[&args[..], &["--dry-run"]].concat());
        // Where something is not served it ends with 1.
        assert!(
            dry_run.status.code().is_some_and(|code| code < 2),
            "{dry_run:?}"
        );
        let expected = loaded(std::str::from_utf8(&dry_run.stdout).unwrap());
        if number > first {
            eventually("both families have the new world", PATIENCE, || {
                generation.get().unwrap() >= before + 2
            });
        }
        let held = || FAMILIES.map(|family| Table::of(&netns, family));
        let wanted = expected.each_ref().map(|(_, elements)| elements.clone());
        let same = poll(PATIENCE, || {
            (held().each_ref().map(Table::without_places) == wanted).then_some(())
        });
        let found = held();
        if same.is_none() {
            assert_eq!(
                found.each_ref().map(Table::without_places),
                wanted,
                "world {number}: {objects:#?}"
            );
        }
        for (found, (by_nft, _)) in found.iter().zip(&expected) {
            for (chain, rules) in &by_nft.chains {
                assert_eq!(
                    found.chains.get(chain),
                    Some(rules),
                    "world {number}: chain {chain}"
                );
            }
        }
        let log = agent.log();
        let failure = log
            .iter()
            .find(|line| line.contains("not in sync") || line.contains("panicked"));
        assert_eq!(failure, None, "world {number}");
        if number % RESTART_EVERY == RESTART_EVERY - 1 {
            let before = generation.get().unwrap();
            agent.terminate();
            agent = Agent::start(&netns, &args);
            agent.wait_for_log("in sync", PATIENCE);
            assert_eq!(
                generation.get().unwrap(),
                before,
                "world {number}: all that was read back is as it must be"
            );
        }
    }
    agent.terminate();
}
