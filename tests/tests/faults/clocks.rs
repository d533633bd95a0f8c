//! Time: the agent is suspended, the time of day jumps, the machine's clock has just begun or ran for years, a disk is
//! slow. Nothing that the kernel holds depends on it.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use proxyd_tests::agent::{Agent, binary};
use proxyd_tests::apiserver::Options;
use proxyd_tests::cluster::Cluster;
use proxyd_tests::http::get;
use proxyd_tests::inject::Injection;
use proxyd_tests::live::Live;
use proxyd_tests::model::Model;
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::list;
use proxyd_tests::random::Random;
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World, http, wait_for_answers};
use serde_json::Value;

use crate::http_at;

/// What `/healthz` or `/livez` says: the status code and the body.
fn health(node: &Netns, path: &str) -> Option<(u16, Value)> {
    let answer = get(node, "127.0.0.1:10256".parse().unwrap(), path).ok()?;
    Some((answer.code, answer.json()))
}

#[track_caller]
fn follows(live: &Live, model: &Model) {
    eventually("the kernel equals the model", 3 * PATIENCE, || {
        model.differences(live, &[]).is_empty()
    });
}

#[test]
fn a_suspended_agent_catches_up_at_once() {
    let live = Live::new(Cluster::new(), Options::default());
    let (mut model, mut random) = (Model::default(), Random::new(6));
    model.steps(&mut random, &live.server, 50);
    let agent = live.start_in_sync();
    for _ in 0..2 {
        agent.signal(Signal::SIGSTOP);
        model.steps(&mut random, &live.server, 200);
        // Takes as long as anyone would wait for an answer: five seconds.
        assert!(health(live.node(), "/healthz").is_none(), "it is suspended");
        assert!(!model.differences(&live, &[]).is_empty());
        agent.signal(Signal::SIGCONT);
        follows(&live, &model);
        for path in ["/healthz", "/livez"] {
            assert_eq!(health(live.node(), path).unwrap().0, 200, "{path}");
        }
    }
    live.expect_planned_tables();
    agent.terminate();
}

/// The library that tells a program another time, if it is installed.
fn libfaketime() -> Option<&'static str> {
    const PATHS: [&str; 3] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib64/faketime/libfaketimeMT.so.1",
    ];
    let found = PATHS.into_iter().find(|path| Path::new(path).is_file());
    if found.is_none() {
        println!("NOT RUN: the time of day jumps: libfaketime is not installed (Debian: faketime)");
    }
    found
}

#[test]
fn the_time_of_day_may_jump() {
    let Some(library) = libfaketime() else {
        return;
    };
    let live = Live::new(Cluster::new(), Options::default());
    let (mut model, mut random) = (Model::default(), Random::new(7));
    model.steps(&mut random, &live.server, 50);
    let directory = tempfile::tempdir().unwrap();
    let offset = directory.path().join("offset");
    let set = |text: &str| {
        let beside = directory.path().join("new");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, &offset).unwrap();
    };
    set("+0");
    let preload = format!("LD_PRELOAD={library}");
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", offset.to_str().unwrap());
    let program = binary();
    // The other clock is the kernel's own, which nobody can set.
    let fake = [
        &preload,
        &file,
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "DONT_FAKE_MONOTONIC=1",
        &program,
    ];
    let agent = Agent::start_binary("env", live.node(), &[&fake[..], &live.args()].concat());
    agent.wait_for_log("in sync", 3 * PATIENCE);
    let year = || -> i32 {
        let (code, body) = health(live.node(), "/healthz").expect("it answers");
        assert_eq!(code, 200, "{body}");
        body["currentTime"].as_str().unwrap()[..4].parse().unwrap()
    };
    let this_year = year();
    let days = 24 * 3600_i64;
    for years in [1_i64, -1, 30, -40, 10] {
        set(&format!("{:+}s", years * 366 * days));
        eventually("the agent's time of day has jumped", PATIENCE, || {
            (i64::from(year() - this_year) - years).abs() <= 1 && year() != this_year
        });
        model.steps(&mut random, &live.server, 30);
        follows(&live, &model);
        // A watch that ends is begun anew, as soon as ever.
        live.server.cut_watches(proxyd_tests::apiserver::Cut::Clean);
        model.steps(&mut random, &live.server, 30);
        follows(&live, &model);
        year();
    }
    live.expect_planned_tables();
    agent.terminate();
}

#[test]
fn the_machines_clock_may_have_just_begun_or_run_for_years() {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: u64 = uptime.split('.').next().unwrap().parse().unwrap();
    let just_begun = format!("-{uptime}");
    for offset in [just_begun.as_str(), "3000000000"] {
        let live = Live::new(Cluster::new(), Options::default());
        let (mut model, mut random) = (Model::default(), Random::new(8));
        model.steps(&mut random, &live.server, 50);
        let clock = ["--time", "--monotonic", offset, "--boottime", offset];
        let tried = live
            .node()
            .run("unshare", &[&clock[..], &["true"]].concat(), "");
        if !tried.unwrap().status.success() {
            println!("NOT RUN: another clock: this kernel has no time namespaces");
            return;
        }
        let program = binary();
        let args = [&clock[..], &[&program], &live.args()].concat();
        let agent = Agent::start_binary("unshare", live.node(), &args);
        agent.wait_for_log("in sync", 3 * PATIENCE);
        for _ in 0..3 {
            model.steps(&mut random, &live.server, 30);
            follows(&live, &model);
        }
        assert_eq!(health(live.node(), "/healthz").unwrap().0, 200, "{offset}");
        agent.terminate();
    }
}

/// Each system call on the manifests takes as long as on a disk that is about to break.
#[test]
fn a_slow_disk_delays_what_is_on_it_and_nothing_else() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let a = cluster.node1.pod("a").serving(8080);
    let b = cluster.node2.pod("b").serving(8080);
    let world = World::start(
        cluster,
        &http("web", "10.96.0.1", &[(&a, "node-1")]),
        &World::DETECT_PODS,
    );
    let node = &world.node().netns;
    let before = Table::of(node, "ip");
    let place = world.manifests.path().to_str().unwrap();
    let file = format!("{place}/objects.json");
    let what = "all:delay_enter=1500000";
    let Some(slow) = Injection::attach(node, world.agent.pid(), true, what, &[place, &file]) else {
        return;
    };
    let beside = world.manifests.path().join("objects.tmp");
    let objects = http("web", "10.96.0.1", &[(&b, "node-2")]);
    fs::write(&beside, list(&objects)).unwrap();
    fs::rename(&beside, &file).unwrap();
    world
        .agent
        .wait_for_log("files changed; reading all manifests again", PATIENCE);
    // It reads now, and has not read: it answers, and so do the pods that it knew of.
    for path in ["/healthz", "/livez"] {
        assert_eq!(health(node, path).unwrap().0, 200, "{path}");
    }
    let to = http_at("10.96.0.1");
    let answer = ask(&asker.host.netns, Protocol::Tcp, to, PATIENCE);
    assert_eq!(answer.unwrap().server, "a");
    assert_eq!(
        Table::of(node, "ip").elements["endpoints"],
        before.elements["endpoints"]
    );
    eventually("the change is there in the end", 6 * PATIENCE, || {
        Table::of(node, "ip").elements["endpoints"] != before.elements["endpoints"]
    });
    drop(slow);
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&b]);
    world.agent.terminate();
}
