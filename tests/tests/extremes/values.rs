//! Values that are out of range, out of place, or written in odd ways.

use std::fs;

use proxyd_tests::agent::{nft, run_once};
use proxyd_tests::cluster::Cluster;
use proxyd_tests::netns::{Netns, link};
use proxyd_tests::objects::list;
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::{Failure, Protocol, ask, ask_many};
use proxyd_tests::world::{
    PATIENCE, SILENCE, World, expect_answers, wait_for_answers, wait_for_failure,
};
use serde_json::{Value, json};

use super::{at, service, slice};

#[test]
fn endpoints_that_nobody_can_reach_are_skipped_with_a_reason_and_the_others_served() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let bad = [
        ("127.0.0.1", "127.0.0.1 is an unspecified, loopback"),
        (
            "169.254.1.1",
            "169.254.1.1 is an unspecified, loopback, link-local",
        ),
        (
            "224.0.0.1",
            "224.0.0.1 is an unspecified, loopback, link-local or multicast",
        ),
        ("255.255.255.255", "255.255.255.255 is an unspecified"),
        ("0.0.0.0", "0.0.0.0 is an unspecified"),
        (
            "fd00:10:244:1::64",
            "fd00:10:244:1::64 is not an IPv4 address as addressType says",
        ),
        ("::1", "::1 is an unspecified"),
        ("pod.example", "\"pod.example\" is not an IP address"),
        ("", "\"\" is not an IP address"),
    ];
    // A good one before them in each. IPv4 in IPv6's clothes is IPv4. Five faults of an object are named, so there are two slices.
    let [good, mapped] = [pod.host.v4.to_string(), format!("::ffff:{}", pod.host.v4)];
    let (first, second) = bad.split_at(5);
    let with = |good: &String, bad: &[(&str, &str)]| -> Vec<String> {
        let bad = bad.iter().map(|(address, _)| (*address).to_owned());
        [good.clone()].into_iter().chain(bad).collect()
    };
    let ports = json!([{ "port": 8080 }]);
    let objects = [
        service(
            "web",
            2026,
            json!({ "clusterIP": "::ffff:10.96.0.1", "ports": [{ "port": 80 }] }),
            &[],
        ),
        slice("web-1", "web", ports.clone(), &with(&good, first)),
        slice("web-2", "web", ports.clone(), &with(&mapped, second)),
        service(
            "far",
            2026,
            json!({ "clusterIP": "10.96.0.2", "ports": [{ "port": 80 }] }),
            &[],
        ),
        // No route leads there, but one may come: that is for the network to say.
        slice(
            "far-1",
            "far",
            ports,
            &["192.0.2.1".to_owned(), "240.0.0.1".to_owned()],
        ),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    expect_answers(
        &asker.host,
        Protocol::Tcp,
        at("10.96.0.1:80"),
        &[&pod],
        asker.host.v4,
    );
    for (slice, bad) in [("web-1", first), ("web-2", second)] {
        for (i, (_, reason)) in (1..).zip(bad) {
            let said =
                format!("EndpointSlice default/{slice}: endpoints[{i}].addresses[0]: {reason}");
            let said = world.agent.wait_for_log(&said, PATIENCE);
            assert!(said.ends_with("the endpoint is skipped"), "{said}");
        }
    }
    let table = Table::of(&world.node().netns, "ip");
    assert!(
        table
            .set("services")
            .contains("10.96.0.1 . tcp . 80 : goto cluster-1")
    );
    assert!(
        table
            .set("services")
            .contains("10.96.0.2 . tcp . 80 : goto cluster-2")
    );
}

/// What an API server takes reaches the kernel in its usual form, and what it would refuse is told as it is written.
#[test]
fn odd_names_and_addresses_are_served_as_an_api_server_means_them() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let padded = pod.host.v4.to_string();
    let padded = padded.split('.').map(|number| format!("{number:0>3}"));
    let padded: Vec<_> = padded.collect();
    let ports = json!([{ "port": 8080 }]);
    let objects = [
        service(
            "2048-game",
            2026,
            json!({ "clusterIP": "010.096.000.001", "ports": [{ "port": 80 }] }),
            &[],
        ),
        slice(
            "2048-game-1",
            "2048-game",
            ports.clone(),
            &[padded.join(".")],
        ),
        service(
            "six",
            2026,
            json!({ "clusterIP": "fd00:10:96::6", "ports": [{ "port": 80 }] }),
            &[],
        ),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6", "ports": ports,
            "metadata": {
                "name": "six-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "six" },
            },
            "endpoints": [{ "addresses": [format!("::ffff:{}", pod.host.v4)] }, { "addresses": [pod.host.v6] }],
        }),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    for (address, source) in [
        ("10.96.0.1:80", asker.host.v4),
        ("[fd00:10:96::6]:80", asker.host.v6),
    ] {
        expect_answers(&asker.host, Protocol::Tcp, at(address), &[&pod], source);
    }
    let said = format!(
        "EndpointSlice default/six-1: endpoints[0].addresses[0]: ::ffff:{} is an IPv4 address mapped to IPv6",
        pod.host.v4
    );
    world.agent.wait_for_log(&said, PATIENCE);
}

#[test]
fn source_ranges_may_overlap_and_have_spaces_and_leading_zeros() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let address = pod.host.v4.to_string();
    let limited = |ranges: Value| {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }],
            "loadBalancerSourceRanges": ranges,
        });
        let ports = json!([{ "port": 8080 }]);
        [
            service("web", 2026, spec, &["203.0.113.80"]),
            slice("web-1", "web", ports, std::slice::from_ref(&address)),
        ]
    };
    let ranges = json!([
        " 203.000.113.002/32 ",
        "203.0.113.0/30",
        "203.0.113.1/31",
        "10.0.0.0/8\t",
        "10.244.1.0/24",
        "nowhere",
        "::ffff:198.51.100.0/120",
    ]);
    let world = World::start(cluster, &limited(ranges), &World::DETECT_PODS);
    let to = at("203.0.113.80:80");
    let client = &world.cluster.client;
    expect_answers(client, Protocol::Tcp, to, &[&pod], world.node().v4);
    expect_answers(&asker.host, Protocol::Tcp, to, &[&pod], world.node().v4);
    let said =
        "Service default/web: spec.loadBalancerSourceRanges[5]: \"nowhere\" is not a network";
    world.agent.wait_for_log(said, PATIENCE);
    let table = Table::of(&world.node().netns, "ip");
    let sources: Vec<_> = table.set("allowed-sources").iter().collect();
    let key = "203.0.113.80 . tcp . 80";
    assert_eq!(
        sources,
        ["10.0.0.0/8", "198.51.100.0/24", "203.0.113.0/30"]
            .map(|range| format!("{key} . {range}"))
            .each_ref()
    );

    world.write(&limited(json!(["010.244.0.0/016"])));
    wait_for_failure(client, Protocol::Tcp, to, Failure::TimedOut);
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&pod]);
    // More than one message holds.
    let many: Vec<String> = (0..1_500)
        .map(|n| format!("203.0.{}.{}/32", n / 250, n % 250))
        .collect();
    let many = many
        .into_iter()
        .filter(|range| range != "203.0.0.113/32")
        .chain(["203.0.113.2/32".to_owned()]);
    world.write(&limited(json!(many.collect::<Vec<_>>())));
    wait_for_answers(client, Protocol::Tcp, to, &[&pod]);
    world.write(&limited(json!(["0.0.0.0/1", "128.0.0.0/1"])));
    wait_for_answers(&asker.host, Protocol::Tcp, to, &[&pod]);
    wait_for_answers(client, Protocol::Tcp, to, &[&pod]);
}

#[test]
fn affinity_timeouts_out_of_range_become_the_nearest_ones() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let [a, b] = ["a", "b"].map(|name| cluster.node1.pod(name).serving(8080));
    let addresses = [&a, &b].map(|pod| pod.host.v4.to_string());
    let cases = [
        (0, 1),
        (-5, 1),
        (86_401, 86_400),
        (i64::from(i32::MAX), 86_400),
    ];
    let objects: Vec<Value> = (1..)
        .zip(cases)
        .flat_map(|(i, (seconds, _))| {
            let name = format!("s-{i}");
            let spec = json!({
                "clusterIP": format!("10.96.0.{i}"), "ports": [{ "port": 80 }], "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
            });
            let slice = slice(&name, &name, json!([{ "port": 8080 }]), &addresses);
            [service(&name, 2026, spec, &[]), slice]
        })
        .collect();
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let table = Table::of(&world.node().netns, "ip");
    for (i, (seconds, nearest)) in (1..).zip(cases) {
        let said = format!(
            "Service default/s-{i}: spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not a number of \
             seconds from 1 to 86400; {nearest} is used"
        );
        world.agent.wait_for_log(&said, PATIENCE);
        let element = format!("10.96.0.{i} . tcp . 80 : goto remember-{nearest}");
        assert!(table.set("affinities").contains(&element), "{element}");
    }
    let tally = ask_many(
        &asker.host.netns,
        Protocol::Tcp,
        at("10.96.0.3:80"),
        PATIENCE,
        30,
    );
    assert!(
        tally.servers.len() == 1 && tally.failures.is_empty(),
        "{tally:?}"
    );
}

#[test]
fn service_cidrs_may_overlap_and_an_address_that_no_service_has_is_dropped() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let cidr = |name: &str, cidrs: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": name },
            "spec": { "cidrs": cidrs },
        })
    };
    let mut objects = vec![
        service(
            "web",
            2026,
            json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] }),
            &[],
        ),
        slice(
            "web-1",
            "web",
            json!([{ "port": 8080 }]),
            &[pod.host.v4.to_string()],
        ),
        cidr("kubernetes", json!(["10.96.0.0/16", "fd00:10:96::/112"])),
        cidr(
            "inner",
            json!(["10.96.8.0/21", "::ffff:10.96.0.0/120", "x"]),
        ),
        cidr(
            "next",
            json!(["10.97.0.0/16", "10.98.0.0/24", "10.98.1.0/24"]),
        ),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let said = "ServiceCIDR inner: spec.cidrs[2]: \"x\" is not a network";
    world.agent.wait_for_log(said, PATIENCE);
    let networks = || {
        Table::of(&world.node().netns, "ip")
            .set("service-networks")
            .clone()
    };
    assert_eq!(
        networks(),
        ["10.96.0.0/15", "10.98.0.0/23"].map(str::to_owned).into()
    );
    expect_answers(
        &asker.host,
        Protocol::Tcp,
        at("10.96.0.1:80"),
        &[&pod],
        asker.host.v4,
    );
    let dropped = ask(
        &asker.host.netns,
        Protocol::Tcp,
        at("10.96.9.9:80"),
        SILENCE,
    );
    assert_eq!(dropped, Err(Failure::TimedOut));

    // The outer one goes; what it covered stays covered.
    objects.remove(2);
    world.write(&objects);
    wait_for_failure(
        &asker.host,
        Protocol::Tcp,
        at("10.96.9.9:80"),
        Failure::TimedOut,
    );
    proxyd_tests::wait::eventually("the outer network is gone", PATIENCE, || {
        let wanted = [
            "10.96.0.0/24",
            "10.96.8.0/21",
            "10.97.0.0/16",
            "10.98.0.0/23",
        ];
        networks() == wanted.map(str::to_owned).into()
    });
}

/// Whether the node may call a guarded address depends on the machine's addresses, though a Node object is there.
#[test]
fn the_dry_run_knows_that_this_node_may_call_what_is_guarded() {
    let netns = Netns::new().unwrap();
    link::add_address(&netns, "lo", "192.168.0.2/32".parse().unwrap()).unwrap();
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }],
        "loadBalancerSourceRanges": ["192.168.0.0/24"],
    });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.2" }] },
    });
    let objects = [service("web", 2026, spec, &["203.0.113.80"]), node];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("objects.json");
    fs::write(&file, list(&objects)).unwrap();
    let args = [
        "--dry-run",
        "--hostname-override",
        "node-1",
        "--manifests",
        file.to_str().unwrap(),
    ];
    let output = run_once(&netns, &args);
    nft(
        &netns,
        &["-f", "-"],
        std::str::from_utf8(&output.stdout).unwrap(),
    );
    let sources = Table::of(&netns, "ip").set("allowed-sources").clone();
    let own = "203.0.113.80 . tcp . 80 . 203.0.113.80";
    assert!(sources.contains(own), "{sources:?}");
}
