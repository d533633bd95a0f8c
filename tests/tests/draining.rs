//! Sockets whose endpoints are deleted (`--backend ebpf`): they are closed, and nothing else is.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Child;
use std::thread;

use nix::sys::signal::Signal;
use proxyd::dataplane::ebpf::maglev::TableSize;
use proxyd::dataplane::ebpf::peers::Peers;
use proxyd::dataplane::ebpf::{CONNECTIONS, Places};
use proxyd::model::{Frontend, Protocol as OfFrontend};
use proxyd::plan::{Backend, Flows};
use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::objects::{Port, service, slice};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Conversation, Failure, Protocol};
use proxyd_tests::wait::eventually;
use proxyd_tests::web::{NODE_PORT, PORTS};
use proxyd_tests::world::{PATIENCE, World, write};
use serde_json::{Value, json};

/// Of a second Service.
const OTHER_PORTS: [Port; 2] = [Port::HTTP, Port::UDP];

const CLOSES_TCP: &str = "--close-tcp-of-deleted-endpoints";
const ABORTED: Failure = Failure::Other(ErrorKind::ConnectionAborted);

/// What an EndpointSlice says of an endpoint.
#[derive(Clone, Copy)]
enum State {
    Ready,
    /// It terminates, and answers.
    Finishing,
    /// It terminates, and does not answer probes any more.
    Silent,
}

/// The endpoints of a Service: `here` and `there`, as far as they are in its slices.
type Endpoints<'a> = &'a [(&'a Pod, State)];

/// A cluster whose node-1 has an agent that balances sockets, those of a pod there and of the node itself.
struct Balanced {
    world: World,
    client: Pod,
    here: Pod,
    there: Pod,
    sockets: Sockets,
    /// A process in the client's namespace, as pods have them: by that the namespace is found.
    process: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Balanced {
    /// Starts it with a Service `web` that has both endpoints, and a Service `other`.
    fn start(args: &[&str]) -> Self {
        let cluster = Cluster::new();
        let client = cluster.node1.pod("client");
        let here = cluster.node1.pod("here").serving(8080);
        let there = cluster.node2.pod("there").serving(8080);
        let sockets = Sockets::of(&[&client.host.netns, &cluster.node1.host.netns]);
        let both = [(&here, State::Ready), (&there, State::Ready)];
        let objects = objects(&both, &both);
        let args = [&World::DETECT_PODS[..], &sockets.args(), args].concat();
        let world = World::start(cluster, &objects, &args);
        let process = client.host.netns.spawn("sleep", |command| {
            command.arg("infinity");
        });
        Self {
            world,
            client,
            here,
            there,
            sockets,
            process: Some(Process(process.unwrap())),
        }
    }

    fn node(&self) -> &Host {
        self.world.node()
    }

    /// Waits until the agent has looked after all that was written before: sockets of another Service are closed, whose
    /// endpoint goes after that, twice, since the first may be seen together with what was before.
    fn wait_for_the_closer(&self, web: Endpoints<'_>) {
        let (here, there) = (&self.here, &self.there);
        for (from, to) in [(here, there), (there, here)] {
            let socket = connect(&self.client.host, of_other(), &from.host.name);
            self.world.write(&objects(web, &[(to, State::Ready)]));
            assert_eq!(wait_for_the_end(&self.client.host, &socket), "aborted");
            let both = [(here, State::Ready), (there, State::Ready)];
            self.world.write(&objects(web, &both));
        }
    }

    /// How many sockets the programs remember that called the Service `web` and were sent `here`.
    fn remembered(&self) -> usize {
        let mut flows = Flows::default();
        let [ip, _] = cluster_ips(0);
        let frontend = Frontend::Address {
            ip,
            protocol: OfFrontend::Udp,
            port: 80.try_into().unwrap(),
        };
        let there = Backend {
            ip: self.there.host.v4,
            port: 8080.try_into().unwrap(),
        };
        flows.frontends.insert(frontend, [there].into());
        let places = Places {
            cgroup: None,
            pins: self.sockets.pins().to_owned(),
            devices: Vec::new(),
            tcx: true,
            fast_path: false,
            table_size: TableSize::DEFAULT,
            connections: CONNECTIONS,
        };
        let peers = Peers::open(&places, &flows).unwrap();
        let called = peers.called().unwrap();
        let stale = called
            .iter()
            .filter(|(peer, called)| peer.is_stale(**called, &flows));
        stale.count()
    }
}

fn cluster_ips(number: usize) -> [IpAddr; 2] {
    let last = ["80", "81"][number];
    [format!("10.96.0.{last}"), format!("fd00:10:96::{last}")].map(|ip| ip.parse().unwrap())
}

fn of_other() -> SocketAddr {
    SocketAddr::new(cluster_ips(1)[0], 80)
}

/// The Services `web` and `other`, in both families, TCP and UDP, with these endpoints.
fn objects(web: Endpoints<'_>, other: Endpoints<'_>) -> Vec<Value> {
    let services = [("web", PORTS, web), ("other", OTHER_PORTS, other)];
    let mut objects = Vec::new();
    for (number, (name, ports, endpoints)) in services.into_iter().enumerate() {
        let ips = cluster_ips(number);
        objects.push(service(name, &ips, &ports));
        objects.extend(ips.map(|ip| slice_of(name, &ports, ip, endpoints)));
    }
    objects
}

fn slice_of(name: &str, ports: &[Port], family: IpAddr, endpoints: Endpoints<'_>) -> Value {
    let own = |(pod, _): &(&Pod, State)| (pod.host.own(family), "node-1");
    let addresses: Vec<_> = endpoints.iter().map(own).collect();
    let nobody = [(family, "node-1")];
    let is_empty = addresses.is_empty();
    let addresses = if is_empty { &nobody } else { &addresses[..] };
    let mut slice = slice(name, ports, addresses);
    if is_empty {
        slice["endpoints"] = json!([]);
    }
    for (index, (_, state)) in endpoints.iter().enumerate() {
        let serving = matches!(state, State::Ready | State::Finishing);
        let ready = matches!(state, State::Ready);
        slice["endpoints"][index]["conditions"] =
            json!({ "ready": ready, "serving": serving, "terminating": !ready });
    }
    slice
}

/// A UDP socket that is connected to this address, and has an answer of this server.
fn connect(from: &Host, to: SocketAddr, server: &str) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    from.enter(|| {
        let mut sockets = (0..100).map(|_| {
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        let of_server = |socket: &UdpSocket| who(socket).unwrap() == server;
        sockets.find(of_server).unwrap()
    })
}

fn who(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"who?\n")?;
    let mut datagram = [0; 256];
    let length = socket.recv(&mut datagram)?;
    let line = String::from_utf8_lossy(&datagram[..length]);
    Ok(line.split(' ').next().unwrap().to_owned())
}

/// Waits at a socket that nothing is sent to.
fn wait_for_the_end(host: &Host, socket: &UdpSocket) -> &'static str {
    let result = host.enter(|| socket.recv(&mut [0; 256]));
    match result.map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionAborted) => "aborted",
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connected_udp_socket_of_a_deleted_endpoint_is_closed_and_reaches_another_when_it_connects_again()
 {
    let balanced = Balanced::start(&[]);
    let (here, there) = (&balanced.here, &balanced.there);
    let node = balanced.node();
    let [v4, v6] = cluster_ips(0);
    let IpAddr::V4(ip) = v4 else {
        panic!("the first is of IPv4");
    };
    let mapped = ip.to_ipv6_mapped().into();
    let at_service = [v4, v6, mapped].map(|ip| SocketAddr::new(ip, 80));
    let at_node = [node.v4, node.v6].map(|ip| SocketAddr::new(ip, NODE_PORT));
    let called: Vec<_> = at_service.into_iter().chain(at_node).collect();
    let mut stay = Vec::new();
    let mut go = Vec::new();
    for host in [&balanced.client.host, node] {
        for to in &called {
            stay.push((host, connect(host, *to, "there")));
            go.push((host, *to, connect(host, *to, "here")));
        }
    }
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NODE_PORT);
    go.push((node, loopback, connect(node, loopback, "here")));
    let other = [(here, State::Ready), (there, State::Ready)];
    thread::scope(|scope| {
        // Woken up while they wait.
        let waiting: Vec<_> = go
            .iter()
            .map(|(host, _, socket)| scope.spawn(|| wait_for_the_end(host, socket)))
            .collect();
        let without = objects(&[(there, State::Ready)], &other);
        balanced.world.write(&without);
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), "aborted");
        }
    });
    for (host, to, socket) in &go {
        let server = host.enter(|| {
            socket.connect(to).unwrap();
            who(socket).unwrap()
        });
        assert_eq!(server, "there", "{to}");
    }
    balanced.wait_for_the_closer(&[(there, State::Ready)]);
    for (host, socket) in &stay {
        assert_eq!(host.enter(|| who(socket)).unwrap(), "there");
    }
}

#[test]
fn a_service_without_endpoints_and_one_that_is_gone_keep_no_socket() {
    let mut balanced = Balanced::start(&[]);
    // The client's namespace is that of the waiting thread alone.
    balanced.process = None;
    let (here, there) = (&balanced.here, &balanced.there);
    let client = &balanced.client.host;
    let to = SocketAddr::new(cluster_ips(0)[0], 80);
    let both = [(here, State::Ready), (there, State::Ready)];
    let all = objects(&both, &both);
    let mut without = all.clone();
    without.retain(|object| !is_of("web", object));
    for left in [objects(&[], &both), without] {
        let socket = connect(client, to, "here");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_for_the_end(client, &socket));
            balanced.world.write(&left);
            assert_eq!(waiting.join().unwrap(), "aborted");
        });
        balanced.world.write(&all);
        let again = || client.enter(|| socket.connect(to).and_then(|()| who(&socket)));
        eventually("it has endpoints again", PATIENCE, || again().is_ok());
    }
}

/// Whether an object belongs to a Service.
fn is_of(service: &str, object: &Value) -> bool {
    let name = object["metadata"]["name"].as_str().unwrap();
    name.starts_with(service)
}

#[test]
fn sockets_are_left_whose_endpoint_finishes_or_that_called_something_else() {
    let balanced = Balanced::start(&[]);
    let (here, there) = (&balanced.here, &balanced.there);
    let (client, node) = (&balanced.client.host, balanced.node());
    let to = SocketAddr::new(cluster_ips(0)[0], 80);
    let to_pod = SocketAddr::new(here.host.v4, 8080);
    let mut of_here = Vec::new();
    for host in [client, node] {
        of_here.push((host, connect(host, to, "here")));
    }
    let all_answer = |what: &str, sockets: &[(&Host, UdpSocket)]| {
        for (host, socket) in sockets {
            let server = host.enter(|| who(socket));
            assert_eq!(server.unwrap(), "here", "{what}");
        }
    };
    let finishing = [(here, State::Finishing), (there, State::Ready)];
    let both = [(here, State::Ready), (there, State::Ready)];
    balanced.world.write(&objects(&finishing, &both));
    balanced.wait_for_the_closer(&finishing);
    all_answer("its endpoint finishes", &of_here);
    let mut others = Vec::new();
    for host in [client, node] {
        others.push((host, connect(host, to_pod, "here")));
        others.push((host, connect(host, of_other(), "here")));
    }
    let open = |to| Conversation::open(&client.netns, Protocol::Tcp, to, PATIENCE).unwrap();
    let mut tcp: Vec<_> = [to; 20].into_iter().map(open).collect();
    let rest = [(there, State::Ready)];
    balanced.world.write(&objects(&rest, &both));
    for (host, socket) in &of_here {
        assert_eq!(wait_for_the_end(host, socket), "aborted");
    }
    all_answer("what was not called by this Service", &others);
    for conversation in &mut tcp {
        assert!(conversation.ask().is_ok(), "TCP ends by itself");
    }
    eventually("what was closed is forgotten", PATIENCE, || {
        balanced.remembered() == 0
    });
}

#[test]
fn tcp_connections_to_deleted_endpoints_are_closed_if_asked_for() {
    let balanced = Balanced::start(&[CLOSES_TCP]);
    let (here, there) = (&balanced.here, &balanced.there);
    let both = [(here, State::Ready), (there, State::Ready)];
    let client = &balanced.client.host;
    let [v4, v6] = cluster_ips(0).map(|ip| SocketAddr::new(ip, 80));
    let mapped = match v4.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), 80),
        IpAddr::V6(_) => panic!("the first is of IPv4"),
    };
    let mut conversations = Vec::new();
    for host in [client, balanced.node()] {
        for to in [v4, v6, mapped] {
            for server in ["here", "there"] {
                let conversation = open_tcp(host, to, server);
                conversations.push((conversation, server));
            }
        }
    }
    let direct = SocketAddr::new(here.host.v4, 8080);
    let mut direct = open_tcp(client, direct, "here");
    for state in [State::Finishing, State::Silent] {
        let endpoints = [(here, state), (there, State::Ready)];
        balanced.world.write(&objects(&endpoints, &both));
        balanced.wait_for_the_closer(&endpoints);
        for (conversation, server) in &mut conversations {
            assert_eq!(conversation.ask().unwrap().server, *server);
        }
    }
    balanced
        .world
        .write(&objects(&[(there, State::Ready)], &both));
    for (conversation, _) in conversations.iter_mut().filter(|(_, of)| *of == "here") {
        eventually("it is closed", PATIENCE, || {
            conversation.ask().is_err_and(|failure| failure == ABORTED)
        });
    }
    balanced.wait_for_the_closer(&[(there, State::Ready)]);
    for (conversation, _) in conversations.iter_mut().filter(|(_, of)| *of == "there") {
        assert!(conversation.ask().is_ok());
    }
    assert!(direct.ask().is_ok(), "it called the endpoint itself");
}

/// A TCP connection to this address that this server answers.
fn open_tcp(from: &Host, to: SocketAddr, server: &str) -> Conversation {
    let open = |_| Conversation::open(&from.netns, Protocol::Tcp, to, PATIENCE).unwrap();
    let mut all = (0..100).map(open);
    all.find_map(|mut c| (c.ask().unwrap().server == server).then_some(c))
        .unwrap()
}

#[test]
fn what_was_deleted_while_no_agent_ran_is_closed_by_the_next() {
    let mut balanced = Balanced::start(&[]);
    let to = SocketAddr::new(cluster_ips(0)[0], 80);
    let at_other = of_other();
    let client = &balanced.client.host;
    let sockets = [
        connect(client, to, "here"),
        connect(client, at_other, "here"),
    ];
    let agent = &mut balanced.world.agent;
    agent.signal(Signal::SIGKILL);
    eventually("it has ended", PATIENCE, || agent.exited().is_some());
    // The endpoint of one Service, and the other one as a whole.
    let mut left = objects(&[(&balanced.there, State::Ready)], &[]);
    left.retain(|object| is_of("web", object));
    write(&balanced.world.manifests, &left);
    let args = [&World::DETECT_PODS[..], &balanced.sockets.args()].concat();
    let World {
        cluster, manifests, ..
    } = balanced.world;
    let world = World::resume(cluster, manifests, &args);
    for socket in &sockets {
        assert_eq!(wait_for_the_end(client, socket), "aborted");
    }
    drop(world);
}
