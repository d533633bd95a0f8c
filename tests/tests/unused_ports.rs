//! Ports that no Service has, at load-balancer and external addresses that are somebody's own: these stay what they are, with rules and
//! with programs.

use std::net::SocketAddr;

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Stage;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::{Svc, addresses, objects, remove_sctp};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Failure, Protocol, ask};
use proxyd_tests::world::PATIENCE;
use serde_json::json;

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];
const FAMILIES: [usize; 2] = [0, 1];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A port that no Service has, and one at which nobody answers either.
const OPEN: u16 = 2222;
const CLOSED: u16 = 2223;

/// Checks what rules do, and then what programs do.
fn on_both(cast: Cast, service: Svc, check: impl Fn(&Stage, &str)) {
    let mut objects = objects(&[service], &cast);
    remove_sctp(&mut objects);
    let stage = Stage::new(cast, &objects, ARGS);
    check(&stage, "nftables");
    stage.cast.cluster.node1.host.netns.forget_connections();
    let sockets = Sockets::of(&stage.cast.namespaces_here());
    let stage = stage.restart(&[ARGS, &sockets.args()].concat());
    check(&stage, "ebpf");
    stage.agent.terminate();
}

#[test]
fn a_server_of_the_node_at_a_service_s_address_goes_on_being_reached() {
    let mut cast = Cast::new();
    for family in FAMILIES {
        let of = addresses(1, family);
        cast.add_node_address(of.load_balancer);
        cast.add_node_address(of.external);
    }
    cast.serve_also("node-1", OPEN);
    let service = Svc::new("web", json!({}), "here there");
    on_both(cast, service, |stage, by| {
        for family in FAMILIES {
            let of = addresses(1, family);
            for ip in [of.load_balancer, of.external] {
                for (from, protocol) in ["client", "pod", "node-1"]
                    .into_iter()
                    .flat_map(|from| PROTOCOLS.map(|protocol| (from, protocol)))
                {
                    let netns = &stage.cast.host(from).netns;
                    let ask = |port| ask(netns, protocol, SocketAddr::new(ip, port), PATIENCE);
                    // One that listens at every address answers a datagram from another one than was asked.
                    if protocol == Protocol::Tcp {
                        let server = ask(OPEN).map(|answer| answer.server);
                        let open = format!("node-1:{OPEN}");
                        assert_eq!(server, Ok(open), "{by}: {from} → {ip}");
                    }
                    // The kernel's own refusal.
                    let closed = ask(CLOSED).map(|answer| answer.server);
                    assert_eq!(
                        closed,
                        Err(Failure::Refused),
                        "{by}: {from} → {ip} {protocol}"
                    );
                }
            }
        }
    });
}

#[test]
fn a_server_of_another_machine_at_a_service_s_address_goes_on_being_reached() {
    let mut cast = Cast::new();
    cast.serve_also("node-2", OPEN);
    let external = FAMILIES.map(|family| cast.address("node-2", family));
    let service = Svc::new("web", json!({ "externalIPs": external }), "here there");
    on_both(cast, service, |stage, by| {
        for family in FAMILIES {
            let to = SocketAddr::new(stage.cast.address("node-2", family), OPEN);
            for (from, protocol) in ["pod", "node-1", "client"]
                .into_iter()
                .flat_map(|from| PROTOCOLS.map(|protocol| (from, protocol)))
            {
                let netns = &stage.cast.host(from).netns;
                let server = ask(netns, protocol, to, PATIENCE).map(|answer| answer.server);
                let open = format!("node-2:{OPEN}");
                assert_eq!(server, Ok(open), "{by}: {from} → {to} {protocol}");
            }
        }
    });
}
