//! Two Services, or two parts of one, that want the same.

use proxyd_tests::cluster::{Cluster, Pod};
use proxyd_tests::tables::Table;
use proxyd_tests::traffic::Protocol;
use proxyd_tests::world::{PATIENCE, World, expect_answers, wait_for_answers};
use serde_json::{Value, json};

use super::{at, service, slice};

fn slice_of(name: &str, pod: &Pod) -> Value {
    let ports = json!([{ "port": 8080 }]);
    slice(name, name, ports, &[pod.host.v4.to_string()])
}

#[test]
fn of_two_services_with_one_node_port_or_address_the_older_has_it_until_it_goes() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let [a, b] = ["a", "b"].map(|name| cluster.node1.pod(name).serving(8080));
    let spec = |ip: &str| {
        json!({
            "type": "LoadBalancer", "clusterIP": ip, "externalIPs": ["198.51.100.80"],
            "ports": [{ "port": 80, "nodePort": 30_080 }],
        })
    };
    // By name the younger one comes first.
    let objects = [
        service("old", 2020, spec("10.96.0.1"), &["203.0.113.80"]),
        slice_of("old", &a),
        service("new", 2026, spec("10.96.0.2"), &["203.0.113.80"]),
        slice_of("new", &b),
        service(
            "twin",
            2027,
            json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] }),
            &[],
        ),
        slice_of("twin", &b),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    let client = &world.cluster.client;
    let contested = ["192.168.0.2:30080", "203.0.113.80:80", "198.51.100.80:80"];
    for to in contested {
        expect_answers(client, Protocol::Tcp, at(to), &[&a], world.node().v4);
    }
    expect_answers(
        &asker.host,
        Protocol::Tcp,
        at("10.96.0.1:80"),
        &[&a],
        asker.host.v4,
    );
    expect_answers(
        &asker.host,
        Protocol::Tcp,
        at("10.96.0.2:80"),
        &[&b],
        asker.host.v4,
    );
    for (frontend, loser) in [
        ("IPv4 node port 30080 tcp", "new"),
        ("203.0.113.80:80 tcp", "new"),
        ("198.51.100.80:80 tcp", "new"),
        ("10.96.0.1:80 tcp", "twin"),
    ] {
        let said = format!(
            "{frontend} is claimed by several Services; default/old has it, since it was there first; not served there: default/{loser}"
        );
        world.agent.wait_for_log(&said, PATIENCE);
    }

    world.write(&objects[2..]);
    for to in contested {
        wait_for_answers(client, Protocol::Tcp, at(to), &[&b]);
    }
    wait_for_answers(&asker.host, Protocol::Tcp, at("10.96.0.1:80"), &[&b]);

    world.write(&objects);
    for to in contested {
        wait_for_answers(client, Protocol::Tcp, at(to), &[&a]);
    }
}

#[test]
fn no_outer_address_takes_over_a_cluster_ip_however_old_its_service_is() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let [a, b] = ["a", "b"].map(|name| cluster.node1.pod(name).serving(8080));
    let ports = json!([{ "port": 80 }]);
    let taker = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": ports, "externalIPs": ["10.96.0.1"],
    });
    let objects = [
        service("taker", 2001, taker, &["10.96.0.2"]),
        slice_of("taker", &b),
        service(
            "one",
            2026,
            json!({ "clusterIP": "10.96.0.1", "ports": ports }),
            &[],
        ),
        slice_of("one", &a),
        service(
            "two",
            2026,
            json!({ "clusterIP": "10.96.0.2", "ports": ports }),
            &[],
        ),
        slice_of("two", &a),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    for ip in ["10.96.0.1", "10.96.0.2"] {
        let to = at(&format!("{ip}:80"));
        expect_answers(&asker.host, Protocol::Tcp, to, &[&a], asker.host.v4);
        let said = format!("{to} tcp is claimed by several Services");
        let said = world.agent.wait_for_log(&said, PATIENCE);
        assert!(said.ends_with("not served there: default/taker"), "{said}");
    }
    // Nor when the ClusterIP comes later than the claim to it.
    world.write(&objects[..2]);
    wait_for_answers(&asker.host, Protocol::Tcp, at("10.96.0.1:80"), &[&b]);
    world.write(&objects);
    wait_for_answers(&asker.host, Protocol::Tcp, at("10.96.0.1:80"), &[&a]);
}

#[test]
fn what_one_service_has_twice_counts_once() {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let pod = cluster.node1.pod("pod").serving(8080);
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "10.96.0.5"],
        "externalIPs": ["198.51.100.1", "198.51.100.1", "10.96.0.1"],
        "ports": [
            { "name": "a", "port": 80, "nodePort": 30_080 }, { "name": "b", "port": 80 },
            { "name": "c", "port": 81, "nodePort": 30_080 },
        ],
    });
    let ports = json!([{ "name": "a", "port": 8080 }, { "name": "c", "port": 8080 }]);
    let address = pod.host.v4.to_string();
    let twice = [address.clone(), address];
    let objects = [
        service("web", 2026, spec, &[]),
        slice("web-1", "web", ports.clone(), &twice),
        slice("web-2", "web", ports, &twice[..1]),
    ];
    let world = World::start(cluster, &objects, &World::DETECT_PODS);
    for said in [
        "Service default/web: spec.clusterIPs[1]: 10.96.0.5 is a second address of one family; it is skipped",
        "Service default/web: spec.ports: \"b\" is a second port 80 tcp; it is skipped",
        "Service default/web: spec.ports: \"c\" has node port 30080 tcp, which another port of this Service has",
    ] {
        world.agent.wait_for_log(said, PATIENCE);
    }
    let table = Table::of(&world.node().netns, "ip");
    let chains = |set: &str| table.set(set).iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        chains("services"),
        [
            "10.96.0.1 . tcp . 80 : goto cluster-1",
            "10.96.0.1 . tcp . 81 : goto cluster-1",
            "198.51.100.1 . tcp . 80 : goto external-1",
            "198.51.100.1 . tcp . 81 : goto external-1",
        ]
    );
    assert_eq!(
        chains("node-ports"),
        ["tcp . 30080 : goto node-port-external-1"]
    );
    for port in [80, 81] {
        let to = at(&format!("10.96.0.1:{port}"));
        expect_answers(&asker.host, Protocol::Tcp, to, &[&pod], asker.host.v4);
    }
}
