//! The agent fed by files: while they are written, broken, moved away and mended.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;

use proxyd_tests::agent::{Agent, nft};
use proxyd_tests::cluster::Cluster;
use proxyd_tests::http::get;
use proxyd_tests::objects::list;
use proxyd_tests::traffic::{Protocol, ask};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, World, http, wait_for_answers};

#[test]
fn a_manifest_that_breaks_keeps_what_it_said_and_others_go_on() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let a = cluster.node1.pod("a").serving(8080);
    let objects = http("web", "10.96.0.1", &[(&a, "node-1")]);
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let file = |name: &str| world.manifests.path().join(name);
    fs::write(
        file("objects.json"),
        "{\"kind\": \"List\", \"apiVersion\": ",
    )
    .unwrap();
    let said = world.agent.wait_for_log("not valid JSON", PATIENCE);
    assert!(
        said.contains("objects.json, document 1") && said.contains("stay in force"),
        "{said}"
    );

    fs::write(
        file("more.json"),
        list(&http("api", "10.96.0.2", &[(&a, "node-1")])),
    )
    .unwrap();
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
    wait_for_answers(&asker.host, Protocol::Tcp, at("10.96.0.2"), &[&a]);
    wait_for_answers(&asker.host, Protocol::Tcp, at("10.96.0.1"), &[&a]);

    fs::remove_file(file("objects.json")).unwrap();
    eventually("the Services of a file go with it", PATIENCE, || {
        let services = nft(
            &world.node().netns,
            &["list", "map", "ip", "proxyd", "services"],
            "",
        );
        !services.contains("10.96.0.1 ") && services.contains("10.96.0.2 ")
    });
}

#[test]
fn a_directory_of_manifests_may_go_and_come_and_be_a_link() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    let fill = |directory: &str, ip: &str| {
        fs::create_dir(at(directory)).unwrap();
        fs::write(
            at(directory).join("web.json"),
            list(&http("web", ip, &[(&a, "node-1")])),
        )
        .unwrap();
    };
    fill("v1", "10.96.0.1");
    symlink("v1", at("current")).unwrap();
    let node = &cluster.node1.host.netns;
    let directory = at("current");
    let args = [
        "--hostname-override",
        "node-1",
        "--manifests",
        directory.to_str().unwrap(),
    ];
    let agent = Agent::start(node, &args);
    agent.wait_for_log("in sync", PATIENCE);
    let serves = |ip: &str| {
        let services = nft(node, &["list", "map", "ip", "proxyd", "services"], "");
        services.contains(&format!("{ip} . tcp . 80"))
    };
    assert!(serves("10.96.0.1"));

    fill("v2", "10.96.0.2");
    symlink("v2", at("next")).unwrap();
    fs::rename(at("next"), at("current")).unwrap();
    eventually("the link's new directory is read", PATIENCE, || {
        serves("10.96.0.2")
    });
    assert!(!serves("10.96.0.1"));

    fs::rename(at("v2"), at("away")).unwrap();
    fs::remove_file(at("current")).unwrap();
    agent.wait_for_log("current: cannot be read", PATIENCE);
    assert!(serves("10.96.0.2"), "what cannot be read stays in force");
    fill("current", "10.96.0.3");
    eventually("a directory made anew is read", PATIENCE, || {
        serves("10.96.0.3")
    });
    agent.terminate();
}

#[test]
fn a_restart_with_a_broken_manifest_takes_no_rule_away() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let a = cluster.node1.pod("a").serving(8080);
    let objects = http("web", "10.96.0.1", &[(&a, "node-1")]);
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let file = |world: &World, name: &str| world.manifests.path().join(name);
    let World {
        agent,
        cluster,
        manifests,
    } = world;
    agent.terminate();
    fs::write(manifests.path().join("objects.json"), "a: [").unwrap();
    fs::write(
        manifests.path().join("more.json"),
        list(&http("api", "10.96.0.2", &[(&a, "node-1")])),
    )
    .unwrap();
    let world = World::resume(cluster, manifests, &World::DETECT_PODS);
    world
        .agent
        .wait_for_log("rules are added, and none is changed or removed", PATIENCE);
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
    for ip in ["10.96.0.1", "10.96.0.2"] {
        assert_eq!(
            ask(&asker.host.netns, Protocol::Tcp, at(ip), PATIENCE)
                .unwrap()
                .server,
            "a"
        );
    }
    let is_bad = || {
        let address = SocketAddr::new([127, 0, 0, 1].into(), 10_249);
        let metrics = get(&world.node().netns, address, "/metrics").unwrap().body;
        metrics.contains("kubeproxy_refused_objects{kind=\"document\"} 1")
    };
    assert!(is_bad());
    fs::write(file(&world, "objects.json"), list(&[])).unwrap();
    let mended = "objects.json: nothing in it is refused any more";
    world.agent.wait_for_log(mended, PATIENCE);
    eventually("nothing is counted as refused", PATIENCE, || !is_bad());
    eventually("mended, it says that its Service is gone", PATIENCE, || {
        let services = nft(
            &world.node().netns,
            &["list", "map", "ip", "proxyd", "services"],
            "",
        );
        !services.contains("10.96.0.1 ") && services.contains("10.96.0.2 ")
    });
}

#[test]
fn other_files_beside_a_manifest_do_not_matter() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let objects = |ip| http("web", ip, &[(&a, "node-1")]);
    let world = World::start(cluster, &objects("10.96.0.1"), &World::DETECT_PODS);
    let other = world.manifests.path().join("agent.log");
    let reads = |world: &World| {
        let log = world.agent.log();
        let is_reading = |line: &&String| {
            line.contains("manifests changed") || line.contains("manifests were read again")
        };
        log.iter().filter(is_reading).count()
    };
    // A new name counts, since it may be a link to what is read; then what is written there does not.
    fs::write(&other, "begin").unwrap();
    eventually("a new name is looked at", PATIENCE, || reads(&world) == 1);
    for _ in 0..50 {
        fs::write(&other, "more").unwrap();
    }
    // A manifest does, and is read after what was written before.
    world.write(&objects("10.96.0.2"));
    eventually("the manifest is read", PATIENCE, || {
        let list = ["list", "map", "ip", "proxyd", "services"];
        nft(&world.node().netns, &list, "").contains("10.96.0.2 ")
    });
    assert_eq!(reads(&world), 2, "{:?}", world.agent.log());
}

#[test]
fn what_changed_is_named_by_file_and_object() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let objects = http("web", "10.96.0.1", &[(&a, "node-1")]);
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    world.write(&http("web", "10.96.0.2", &[(&a, "node-1")]));
    let said = world.agent.wait_for_log("manifests changed", PATIENCE);
    assert!(
        said.ends_with("objects.json: Service default/web changed"),
        "{said}"
    );
    world.write(&[]);
    let said = world.agent.wait_for_log("is gone", PATIENCE);
    assert!(
        said.contains("EndpointSlice default/web-")
            && said.ends_with("Service default/web is gone"),
        "{said}"
    );
}

#[test]
fn a_slice_that_no_service_has_is_named_with_the_service_that_was_meant() {
    let cluster = Cluster::new();
    let a = cluster.node1.pod("a").serving(8080);
    let mut objects = http("web", "10.96.0.1", &[(&a, "node-1")]);
    let slice = objects
        .iter_mut()
        .find(|object| object["kind"] == "EndpointSlice");
    slice.unwrap()["metadata"]["labels"]["kubernetes.io/service-name"] = "wbe".into();
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let log = world.agent.log();
    let meant = "there is no Service default/wbe; the nearest is default/web";
    assert!(log.iter().any(|line| line.contains(meant)), "{log:#?}");
    let refused = "Service default/web port 80 tcp: refused, no endpoint can serve it (it has no EndpointSlice)";
    world.agent.wait_for_log(refused, PATIENCE);
}

/// Files seldom say when a Service was made: who has an address keeps it, whatever the names.
#[test]
fn a_newcomer_without_an_age_takes_no_address() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let a = cluster.node1.pod("a").serving(8080);
    let b = cluster.node1.pod("b").serving(8080);
    let old = http("m", "10.96.0.1", &[(&a, "node-1")]);
    let new = http("a", "10.96.0.1", &[(&b, "node-1")]);
    let world = World::start(cluster, &old, &World::DETECT_PODS);
    let to = SocketAddr::new([10, 96, 0, 1].into(), 80);
    world.write(&[&new[..], &old].concat());
    world.agent.wait_for_log(
        "10.96.0.1:80 tcp is claimed by several Services; default/m has it, since it was there first; \
         not served there: default/a",
        PATIENCE,
    );
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&a]);
    // Reading them again changes nothing.
    let third = http("z", "10.96.0.3", &[(&b, "node-1")]);
    world.write(&[&third[..], &new, &old].concat());
    let to_third = SocketAddr::new([10, 96, 0, 3].into(), 80);
    wait_for_answers(&asker.host, Protocol::Tcp, to_third, &[&b]);
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&a]);
    world.write(&[&third[..], &new].concat());
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&b]);
}
