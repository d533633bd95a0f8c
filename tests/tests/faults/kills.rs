//! The agent is killed, again and again, while Services change.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use proxyd_tests::agent::Agent;
use proxyd_tests::apiserver::Options;
use proxyd_tests::cluster::Cluster;
use proxyd_tests::generation::Generation;
use proxyd_tests::live::Live;
use proxyd_tests::load::{Load, syns_sent_again};
use proxyd_tests::model::Model;
use proxyd_tests::random::{Random, from_environment};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Conversation, Protocol};
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::world::{PATIENCE, http};
use proxyd_tests::written::{Count, Written};

use crate::http_at;
use crate::maps::{self, expect_planned_maps};

/// How often the agent is killed, if the environment says nothing else.
const KILLS: u64 = 100;

/// How long a change may take to be in the kernel before the next is made all the same. Many changes have nothing to
/// write.
const PACE: Duration = Duration::from_millis(5);

/// Changes one thing after the other until the agent has committed `commits` transactions, and is killed; goes on
/// a little after that.
fn kill_in_the_middle(
    agent: Agent,
    live: &Live,
    model: &mut Model,
    random: &mut Random,
    commits: u32,
) {
    let generation = Generation::of(live.node()).unwrap();
    let target = generation.get().unwrap() + commits;
    let is_killed = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let generation = Generation::of(live.node()).unwrap();
            while !is_killed.load(Ordering::SeqCst) {
                let before = generation.get().unwrap();
                model.step(random, &live.server);
                poll(PACE, || (generation.get().unwrap() != before).then_some(()));
            }
        });
        eventually("changes are committed", PATIENCE, || {
            generation.get().unwrap() >= target
        });
        agent.kill();
        is_killed.store(true, Ordering::SeqCst);
    });
}

/// What has to be written to come from one state to the other, and no more. An element with another value is removed
/// and added.
fn difference(before: &[Table; 2], after: &[Table; 2]) -> Count {
    let mut count = Count::default();
    for (before, after) in before.iter().zip(after) {
        let all = |table: &Table| -> BTreeSet<(String, String)> {
            let sets = table.elements.iter();
            sets.flat_map(|(name, set)| set.iter().map(|it| (name.clone(), it.clone())))
                .collect()
        };
        let (before_all, after_all) = (all(before), all(after));
        count.added += after_all.difference(&before_all).count();
        count.removed += before_all.difference(&after_all).count();
        count.chains += after.shapes().difference(&before.shapes()).count();
        count.transactions += usize::from(before_all != after_all);
    }
    count
}

/// The Service that is not the model's.
const OTHERS: [&str; 1] = ["10.96.200."];

#[test]
fn a_hundred_kills_in_the_middle_of_churn_cost_no_connection_and_no_needless_write() {
    kill_again_and_again(KILLS, false);
}

#[test]
fn fifty_kills_of_an_agent_with_programs_cost_no_connection_and_no_needless_write() {
    kill_again_and_again(KILLS / 2, true);
}

fn kill_again_and_again(kills: u64, has_programs: bool) {
    let seed = from_environment("PROXYD_KILLS_SEED", 4);
    let kills = from_environment("PROXYD_KILLS", kills);
    println!("PROXYD_KILLS_SEED={seed} PROXYD_KILLS={kills}");
    let mut random = Random::new(seed);
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let here = cluster.node1.pod("here").serving(8080);
    let there = cluster.node2.pod("there").serving(8080);
    let mut live = Live::new(cluster, Options::default());
    live.programs = has_programs.then(|| Sockets::of(&[&asker.host.netns]));
    for object in http(
        "steady",
        "10.96.200.1",
        &[(&here, "node-1"), (&there, "node-2")],
    ) {
        live.server.create(&object);
    }
    let mut model = Model::default();
    model.steps(&mut random, &live.server, 100);
    let mut agent = live.start_in_sync();

    let steady = http_at("10.96.200.1");
    let clients = [&asker.host, &live.cluster.client];
    let mut open = clients
        .map(|from| Conversation::open(&from.netns, Protocol::Tcp, steady, PATIENCE).unwrap());
    let served_by = open.each_mut().map(|open| open.ask().unwrap().server);
    let pace = Duration::from_millis(20);
    let loads = clients.map(|from| Load::start(from, &[steady], 4, pace));

    let written = Written::listen(live.node()).unwrap();
    let mut all = Count::default();
    for kill in 0..kills {
        let commits = 1 + u32::try_from(random.below(6)).unwrap();
        kill_in_the_middle(agent, &live, &mut model, &mut random, commits);
        // Nobody is there to see these.
        let unseen = random.below(5);
        model.steps(&mut random, &live.server, unseen);
        let before = live.tables();
        written.take().unwrap();
        agent = live.start_in_sync();
        let mut differences = model.differences(&live, &OTHERS);
        if let Some(programs) = &live.programs {
            differences.extend(maps::differences(&model, &OTHERS, programs));
            expect_planned_maps(&live, programs);
        }
        assert!(differences.is_empty(), "kill {kill}: {differences:#?}");
        let count = written.take().unwrap();
        let mut needed = difference(&before, &live.tables());
        // Maps are written before rules: what an agent that was killed in between left to do is a transaction of its own.
        let late = count.transactions.saturating_sub(needed.transactions);
        if has_programs && late <= before.len() {
            needed.transactions += late;
        }
        assert_eq!(count, needed, "kill {kill}: written, and needed");
        all.added += count.added;
        all.removed += count.removed;
        all.transactions += count.transactions;
    }
    live.expect_planned_tables();
    assert!(all.added > 0 && all.removed > 0, "{all:?}");

    for (open, server) in open.iter_mut().zip(&served_by) {
        assert_eq!(
            &open.ask().unwrap().server,
            server,
            "a connection that was there all the time"
        );
    }
    for (from, load) in clients.into_iter().zip(loads) {
        let seen = load.finish();
        assert!(
            seen.failures.is_empty(),
            "{}: {:?}",
            from.name,
            seen.failures
        );
        assert_eq!(syns_sent_again(from), 0, "{}", from.name);
        assert_eq!(seen.servers(steady), ["here", "there"], "{}", from.name);
        println!("{}: {} connections, none failed", from.name, seen.total());
    }
    println!("{kills} starts after kills wrote {all:?}, which is what differed");
    agent.terminate();
}
