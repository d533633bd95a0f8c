//! UDP clients that keep their source port: the kernel remembers where their flow goes, and it has to forget that when
//! the Service changes. Who is not concerned keeps his flow.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::objects::{Port, empty_slice, service, slice};
use proxyd_tests::traffic::{Conversation, Failure, Protocol};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, SILENCE, World, wait_for_answers};
use serde_json::{Value, json};

const NODE_PORT: u16 = 30080;
const LOAD_BALANCER_IPS: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];
const PORTS: [Port; 1] = [Port::UDP.at_nodes(NODE_PORT)];

/// The next client's source port, below those that the kernel gives. Each client keeps its own. A flow lives for 30 s after its last datagram, longer
/// than any test waits.
static SOURCE_PORT: AtomicU16 = AtomicU16::new(20_000);

/// Enough flows that they do not all come to the same of two endpoints again by chance.
const MANY: usize = 12;

fn cluster_ips(last: u8) -> [IpAddr; 2] {
    [
        format!("10.96.0.{last}").parse().unwrap(),
        format!("fd00:10:96::{last}").parse().unwrap(),
    ]
}

/// A Service in both families with these endpoints.
fn objects(name: &str, last: u8, ports: &[Port], pods: &[(&Pod, &str)]) -> Vec<Value> {
    let of = |address: fn(&Pod) -> IpAddr| {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|(pod, node)| (address(pod), *node))
            .collect();
        slice(name, ports, &endpoints)
    };
    vec![
        service(name, &cluster_ips(last), ports),
        of(|pod| pod.host.v4),
        of(|pod| pod.host.v6),
    ]
}

/// The Service `web`, at UDP port 80, at a NodePort and at a load balancer's addresses.
fn web(pods: &[(&Pod, &str)]) -> Vec<Value> {
    web_with(&PORTS, pods)
}

/// As [`web`], with these ports.
fn web_with(ports: &[Port], pods: &[(&Pod, &str)]) -> Vec<Value> {
    let mut objects = objects("web", 80, ports, pods);
    let ingress = LOAD_BALANCER_IPS.map(|ip| json!({ "ip": ip }));
    objects[0]["spec"]["type"] = json!("LoadBalancer");
    objects[0]["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    objects
}

/// A cluster with a pod that asks, a pod here and a pod on the other node that answer.
struct Setup {
    world: World,
    asker: Pod,
    here: Pod,
    there: Pod,
}

fn setup(objects: impl FnOnce(&Pod, &Pod) -> Vec<Value>) -> Setup {
    let cluster = Cluster::new();
    let asker = cluster.node1.pod("asker");
    let here = cluster.node1.pod("here").serving(8080);
    let there = cluster.node2.pod("there").serving(8080);
    let objects = objects(&here, &there);
    Setup {
        world: World::start(cluster, &objects, &World::DETECT_PODS),
        asker,
        here,
        there,
    }
}

/// A client with a UDP socket of its own.
struct Client {
    what: String,
    conversation: Conversation,
}

impl Client {
    fn open(from: &Host, to: SocketAddr) -> Self {
        let source_port = SOURCE_PORT.fetch_add(1, Ordering::Relaxed);
        let opened =
            Conversation::open_udp_from_port(&from.netns, source_port, to, SILENCE).unwrap();
        Self {
            what: format!("{} → {to}", from.name),
            conversation: opened,
        }
    }

    /// Asks on until this server answers.
    #[track_caller]
    fn wait_for(&mut self, server: &str) {
        eventually(&format!("{}: {server}", self.what), PATIENCE, || {
            self.conversation
                .ask()
                .is_ok_and(|answer| answer.server == server)
        });
    }

    /// Asks on until nobody answers.
    #[track_caller]
    fn wait_for_nobody(&mut self) {
        eventually(&format!("{}: nobody", self.what), PATIENCE, || {
            self.conversation.ask().is_err()
        });
    }

    /// The server that answers.
    #[track_caller]
    fn server(&mut self) -> String {
        let answer = self.conversation.ask();
        answer
            .unwrap_or_else(|failure| panic!("{}: {failure}", self.what))
            .server
    }
}

/// Clients of `web` in every way to reach it, in both families.
fn clients(world: &World, asker: &Pod) -> Vec<Client> {
    let node = world.node();
    let client = &world.cluster.client;
    let mut clients = Vec::new();
    let ips = cluster_ips(80).into_iter().zip(LOAD_BALANCER_IPS);
    for ((ip, load_balancer_ip), node_ip) in ips.zip([node.v4, node.v6]) {
        let cluster_ip = SocketAddr::new(ip, 80);
        let load_balancer = SocketAddr::new(load_balancer_ip.parse().unwrap(), 80);
        let node_port = SocketAddr::new(node_ip, NODE_PORT);
        for (from, to) in [
            (&asker.host, cluster_ip),
            (node, cluster_ip),
            (client, cluster_ip),
            (client, node_port),
            (&asker.host, node_port),
            (client, load_balancer),
            (&asker.host, load_balancer),
        ] {
            clients.push(Client::open(from, to));
        }
    }
    clients
}

#[test]
fn clients_follow_when_the_back_end_is_replaced() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, _| web(&[(here, "node-1")]));
    let mut clients = clients(&world, &asker);
    for client in &mut clients {
        assert_eq!(client.server(), "here", "{}", client.what);
    }
    world.write(&web(&[(&there, "node-2")]));
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    world.write(&web(&[(&here, "node-1")]));
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("here"));
}

#[test]
fn clients_come_back_when_a_service_is_scaled_to_zero_and_up_again() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, _| web(&[(here, "node-1")]));
    let mut clients = clients(&world, &asker);
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("here"));
    world.write(&[service("web", &cluster_ips(80), &PORTS), empty_slice("web")]);
    clients.iter_mut().for_each(Client::wait_for_nobody);
    world.write(&web(&[(&there, "node-2")]));
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    drop(here);
}

#[test]
fn clients_come_back_when_a_service_is_deleted_and_created_anew() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, _| web(&[(here, "node-1")]));
    let mut clients = clients(&world, &asker);
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("here"));
    world.write(&[]);
    clients.iter_mut().for_each(Client::wait_for_nobody);
    world.write(&web(&[(&there, "node-2")]));
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    drop(here);
}

#[test]
fn a_flow_that_began_before_its_service_becomes_the_services() {
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|_, _| Vec::new());
    let node = world.node();
    let mut clients = Vec::new();
    for from in [&asker.host, &world.cluster.client] {
        for ip in [node.v4, node.v6] {
            let mut client = Client::open(from, SocketAddr::new(ip, NODE_PORT));
            // Nobody listens: the node itself refuses, and tracks the flow.
            assert_eq!(client.conversation.ask(), Err(Failure::Refused));
            clients.push(client);
        }
    }
    world.write(&web(&[(&there, "node-2")]));
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    drop(here);
}

#[test]
fn flows_of_others_are_left_alone() {
    let other_ports = [Port::HTTP, Port::UDP];
    let with_other = |web: Vec<Value>, here: &Pod, there: &Pod| {
        let pods = [(here, "node-1"), (there, "node-2")];
        [web, objects("other", 81, &other_ports, &pods)].concat()
    };
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, there| with_other(web(&[(here, "node-1")]), here, there));
    let mut changed = clients(&world, &asker);
    changed
        .iter_mut()
        .for_each(|client| client.wait_for("here"));
    let mut others = Vec::new();
    for ip in cluster_ips(81) {
        let to = SocketAddr::new(ip, 80);
        for _ in 0..MANY {
            others.push(Client::open(&asker.host, to));
            let tcp = Conversation::open(&asker.host.netns, Protocol::Tcp, to, PATIENCE);
            others.push(Client {
                what: format!("a connection to {to}"),
                conversation: tcp.unwrap(),
            });
        }
    }
    let before: Vec<_> = others.iter_mut().map(Client::server).collect();
    assert!(before.contains(&"here".to_owned()) && before.contains(&"there".to_owned()));
    world.write(&with_other(web(&[(&there, "node-2")]), &here, &there));
    changed
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    let after: Vec<_> = others.iter_mut().map(Client::server).collect();
    assert_eq!(before, after);
}

#[test]
fn tcp_connections_of_a_changed_service_are_left_alone() {
    let both = [Port::HTTP, PORTS[0]];
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, _| web_with(&both, &[(here, "node-1")]));
    let mut connections = Vec::new();
    for ip in cluster_ips(80) {
        let to = SocketAddr::new(ip, 80);
        let mut tcp = Conversation::open(&asker.host.netns, Protocol::Tcp, to, PATIENCE).unwrap();
        assert_eq!(tcp.ask().unwrap().server, "here");
        connections.push(tcp);
    }
    let mut clients = clients(&world, &asker);
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("here"));
    world.write(&web_with(&both, &[(&there, "node-2")]));
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    for tcp in &mut connections {
        assert_eq!(tcp.ask().unwrap().server, "here");
    }
    drop(here);
}

#[test]
fn a_terminating_endpoint_keeps_its_flows_while_it_serves() {
    // `pilot` shows that the flows were looked at: it changes together with `web`.
    let pilot = |pod: &Pod, node| objects("pilot", 81, &[Port::UDP], &[(pod, node)]);
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, _| [web(&[(here, "node-1")]), pilot(here, "node-1")].concat());
    let mut clients = clients(&world, &asker);
    let pilot_at = |ip| Client::open(&asker.host, SocketAddr::new(ip, 80));
    let mut pilots = cluster_ips(81).map(pilot_at);
    for client in clients.iter_mut().chain(&mut pilots) {
        assert_eq!(client.server(), "here", "{}", client.what);
    }

    let mut leaving = web(&[(&here, "node-1"), (&there, "node-2")]);
    for slice in &mut leaving[1..] {
        slice["endpoints"][0]["conditions"] =
            json!({ "ready": false, "serving": true, "terminating": true });
    }
    world.write(&[leaving, pilot(&there, "node-2")].concat());
    pilots
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    for ip in cluster_ips(80) {
        let to = SocketAddr::new(ip, 80);
        wait_for_answers(&asker.host, Protocol::Udp, to, &[&there]);
    }
    for client in &mut clients {
        assert_eq!(client.server(), "here", "{}", client.what);
    }

    world.write(&[web(&[(&there, "node-2")]), pilot(&there, "node-2")].concat());
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
}

#[test]
fn flows_that_became_stale_while_no_agent_ran_are_found_at_the_start() {
    let gone = |pod: &Pod| objects("gone", 81, &[Port::UDP], &[(pod, "node-1")]);
    let Setup {
        world,
        asker,
        here,
        there,
    } = setup(|here, _| [web(&[(here, "node-1")]), gone(here)].concat());
    let mut clients = clients(&world, &asker);
    let to = |ip| Client::open(&asker.host, SocketAddr::new(ip, 80));
    let mut of_gone = cluster_ips(81).map(to);
    for client in clients.iter_mut().chain(&mut of_gone) {
        assert_eq!(client.server(), "here", "{}", client.what);
    }
    let World {
        agent,
        cluster,
        manifests,
    } = world;
    agent.terminate();
    for client in clients.iter_mut().chain(&mut of_gone) {
        assert_eq!(client.server(), "here", "{}", client.what);
    }
    proxyd_tests::world::write(&manifests, &web(&[(&there, "node-2")]));
    let world = World::resume(cluster, manifests, &World::DETECT_PODS);
    clients
        .iter_mut()
        .for_each(|client| client.wait_for("there"));
    of_gone.iter_mut().for_each(Client::wait_for_nobody);
    drop((world, here));
}
