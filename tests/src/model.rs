//! Services that change at random, and what the kernel should hold of them: an account of its own, which shares nothing
//! with the agent's planner.
//!
//! A Service has one family, up to two ports, endpoints on node-2 that start, serve, drain and end, and may have
//! NodePorts and (IPv4 only, see README) remember clients. Numbers are used again, so Services come back at the addresses
//! of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use crate::apiserver::{ApiServer, Resource};
use crate::live::{FAMILIES, Live};
use crate::objects::{Port, service, slice};
use crate::random::Random;

/// How many Services there are at most; about half of them at a time.
const SERVICES: u8 = 40;

/// How many endpoints a Service has at most.
const ENDPOINTS: u8 = 6;

/// The ports: HTTP always, UDP at times.
const PORTS: [Port; 2] = [Port::HTTP, Port::UDP];

/// The Services by number.
#[derive(Debug, Clone, Default)]
pub struct Model(BTreeMap<u8, Web>);

/// One of them.
#[derive(Debug, Clone, Default)]
struct Web {
    has_udp: bool,
    has_node_ports: bool,
    is_sticky: bool,
    endpoints: BTreeMap<u8, State>,
}

/// An endpoint's way through life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Draining,
    Gone,
}

/// A write to the API server.
#[derive(Debug, Clone)]
enum Write {
    Create(Value),
    Update(Value),
    Delete(Resource, String),
}

/// The maps whose elements balance; where programs do that, rules have none. (No Service of these drops anybody.)
const BALANCING: [&str; 7] = [
    "services",
    "node-ports",
    "endpoints",
    "node-port-endpoints",
    "affinities",
    "node-port-affinities",
    "node-port-affinity-keys",
];

/// The elements of some maps and sets.
type Elements = BTreeMap<&'static str, BTreeSet<String>>;

impl Model {
    /// Changes something, here and at the server.
    pub fn step(&mut self, random: &mut Random, server: &ApiServer) {
        for write in self.change(random) {
            match write {
                Write::Create(object) => server.create(&object),
                Write::Update(object) => server.update(&object),
                Write::Delete(resource, name) => server.delete(resource, "default", &name),
            };
        }
    }

    /// As [`step`](Self::step), this often.
    pub fn steps(&mut self, random: &mut Random, server: &ApiServer, count: usize) {
        for _ in 0..count {
            self.step(random, server);
        }
    }

    /// What the kernel holds and should not, and the other way round: empty if all is right. Elements with one of
    /// `others` in them, addresses and NodePorts that the model does not know of, are left out.
    pub fn differences(&self, live: &Live, others: &[&str]) -> Vec<String> {
        let mut differences = Vec::new();
        for (family, table) in FAMILIES.into_iter().zip(live.tables()) {
            let there = table.without_places();
            for (name, mut wanted) in self.elements(family == "ip6") {
                if live.programs.is_some() && BALANCING.contains(&name) {
                    wanted.clear();
                }
                let mut is = there[name].clone();
                is.retain(|element| !others.iter().any(|other| element.contains(other)));
                let missing = wanted.difference(&is);
                differences.extend(missing.map(|it| format!("{family} {name} lacks {it}")));
                let too_much = is.difference(&wanted);
                differences.extend(too_much.map(|it| format!("{family} {name} has {it}")));
            }
        }
        differences
    }

    /// What the programs of an agent should balance: front ends, by address (or the family of a NodePort), port and protocol, with
    /// their back ends.
    pub fn balanced(&self) -> BTreeMap<String, BTreeSet<SocketAddr>> {
        let mut balanced = BTreeMap::new();
        for (number, web) in &self.0 {
            let usable = web.usable().into_iter();
            let usable =
                usable.map(|endpoint| SocketAddr::new(endpoint_ip(*number, endpoint), 8080));
            let backends: BTreeSet<SocketAddr> = usable.collect();
            if backends.is_empty() {
                continue;
            }
            for front_end in web.front_ends(*number) {
                let family = if is_v6(*number) { "IPv6" } else { "IPv4" };
                let FrontEnd { ip, protocol, port } = front_end;
                let at = ip.map_or_else(|| family.to_owned(), |ip| ip.to_string());
                balanced.insert(format!("{at} {port} {protocol}"), backends.clone());
            }
        }
        balanced
    }

    fn change(&mut self, random: &mut Random) -> Vec<Write> {
        let number = 1 + u8::try_from(random.below(SERVICES.into())).expect("a small number");
        let Some(web) = self.0.get_mut(&number) else {
            let web = Web::random(random);
            let writes = web.objects(number).map(Write::Create);
            self.0.insert(number, web);
            return shuffled(writes, random);
        };
        match random.below(12) {
            0 => {
                self.0.remove(&number);
                let slice = Write::Delete(Resource::EndpointSlices, slice_name(number));
                let service = Write::Delete(Resource::Services, name(number));
                shuffled([service, slice], random)
            }
            1 => {
                let endpoints = std::mem::take(&mut web.endpoints);
                *web = Web::random(random);
                web.endpoints = endpoints;
                shuffled(web.objects(number).map(Write::Update), random)
            }
            2 => {
                web.endpoints.clear();
                vec![Write::Update(web.slice(number))]
            }
            _ => {
                let endpoint = u8::try_from(random.below(ENDPOINTS.into())).expect("a small one");
                web.advance(endpoint);
                vec![Write::Update(web.slice(number))]
            }
        }
    }

    /// What the kernel should hold of a family.
    fn elements(&self, is_v6: bool) -> Elements {
        let names = [
            "services",
            "node-ports",
            "endpoints",
            "node-port-endpoints",
            "no-endpoints",
            "no-endpoint-node-ports",
            "affinities",
            "node-port-affinities",
            "node-port-affinity-keys",
            "cluster-ips",
        ];
        let mut elements: Elements = names.map(|name| (name, BTreeSet::new())).into();
        for (number, web) in &self.0 {
            if is_v6 == self::is_v6(*number) {
                web.put_elements(*number, &mut elements);
            }
        }
        elements
    }
}

impl Web {
    fn random(random: &mut Random) -> Self {
        let mut web = Self {
            has_udp: random.one_in(2),
            has_node_ports: random.one_in(4),
            is_sticky: random.one_in(4),
            endpoints: BTreeMap::new(),
        };
        for endpoint in 0..ENDPOINTS {
            if random.one_in(2) {
                web.endpoints.insert(endpoint, State::Ready);
            }
        }
        web
    }

    /// An endpoint's next state.
    fn advance(&mut self, endpoint: u8) {
        let next = match self.endpoints.get(&endpoint) {
            None => Some(State::Starting),
            Some(State::Starting) => Some(State::Ready),
            Some(State::Ready) => Some(State::Draining),
            Some(State::Draining) => Some(State::Gone),
            Some(State::Gone) => None,
        };
        match next {
            Some(state) => self.endpoints.insert(endpoint, state),
            None => self.endpoints.remove(&endpoint),
        };
    }

    /// The endpoints that get connections: those that are ready, or else those that still serve (KEP-1669).
    fn usable(&self) -> Vec<u8> {
        let of_state = |wanted| -> Vec<u8> {
            let endpoints = self.endpoints.iter();
            let found = endpoints.filter(|(_, state)| **state == wanted);
            found.map(|(endpoint, _)| *endpoint).collect()
        };
        match of_state(State::Ready) {
            ready if ready.is_empty() => of_state(State::Draining),
            ready => ready,
        }
    }

    fn is_sticky(&self, number: u8) -> bool {
        self.is_sticky && !is_v6(number)
    }

    fn ports(&self, number: u8) -> Vec<Port> {
        let mut ports = PORTS[..1 + usize::from(self.has_udp)].to_vec();
        if self.has_node_ports {
            ports = ports
                .into_iter()
                .map(|port| port.at_nodes(node_port(number)))
                .collect();
        }
        ports
    }

    fn objects(&self, number: u8) -> [Value; 2] {
        let ports = self.ports(number);
        let mut service = service(&name(number), &[cluster_ip(number)], &ports);
        if self.is_sticky(number) {
            service["spec"]["sessionAffinity"] = json!("ClientIP");
        }
        [service, self.slice(number)]
    }

    fn slice(&self, number: u8) -> Value {
        let some = [(endpoint_ip(number, 0), "node-2")];
        let mut slice = slice(&name(number), &self.ports(number), &some);
        let endpoints = self.endpoints.iter().map(|(endpoint, state)| {
            json!({
                "addresses": [endpoint_ip(number, *endpoint)],
                "nodeName": "node-2",
                "conditions": {
                    "ready": *state == State::Ready,
                    "serving": matches!(state, State::Ready | State::Draining),
                    "terminating": matches!(state, State::Draining | State::Gone),
                },
            })
        });
        slice["endpoints"] = endpoints.collect();
        slice
    }

    fn put_elements(&self, number: u8, elements: &mut Elements) {
        let ip = cluster_ip(number);
        let mut put = |name, element| {
            elements.entry(name).or_default().insert(element);
        };
        put("cluster-ips", ip.to_string());
        let usable = self.usable();
        let count = usable.len();
        let cluster_ip = ip;
        for FrontEnd { ip, protocol, port } in self.front_ends(number) {
            let (sticky, remember) = match (self.is_sticky(number), ip) {
                (false, _) => ("", ""),
                (true, Some(_)) => ("-sticky", "remember-10800"),
                (true, None) => ("-shared", "remember-node-port-10800"),
            };
            let (key, [services, endpoints, no_endpoints, affinities], chain) = match ip {
                Some(ip) => (
                    format!("{ip} . {protocol} . {port}"),
                    ["services", "endpoints", "no-endpoints", "affinities"],
                    "cluster",
                ),
                None => (
                    format!("{protocol} . {port}"),
                    [
                        "node-ports",
                        "node-port-endpoints",
                        "no-endpoint-node-ports",
                        "node-port-affinities",
                    ],
                    "node-port-external",
                ),
            };
            if usable.is_empty() {
                put(no_endpoints, format!("{key} : goto send-reject"));
                continue;
            }
            put(services, format!("{key} : goto {chain}-{count}{sticky}"));
            if self.is_sticky(number) {
                put(affinities, format!("{key} : goto {remember}"));
                if ip.is_none() {
                    let shared = format!("{protocol} . {cluster_ip} . {protocol} . 80");
                    put("node-port-affinity-keys", format!("{key} : {shared}"));
                }
            }
            for endpoint in &usable {
                let to = endpoint_ip(number, *endpoint);
                put(endpoints, format!("{key}, local false : {to} . 8080"));
            }
        }
    }

    fn front_ends(&self, number: u8) -> Vec<FrontEnd> {
        let protocols = ["tcp", "udp"];
        let protocols = protocols.into_iter().take(1 + usize::from(self.has_udp));
        let of = |protocol| {
            let ip = Some(cluster_ip(number));
            let at_address = (ip, 80);
            let at_nodes = self.has_node_ports.then_some((None, node_port(number)));
            let all = [Some(at_address), at_nodes].into_iter().flatten();
            all.map(move |(ip, port)| FrontEnd { ip, protocol, port })
        };
        protocols.flat_map(of).collect()
    }
}

/// What clients call.
struct FrontEnd {
    /// None: a NodePort.
    ip: Option<IpAddr>,
    protocol: &'static str,
    port: u16,
}

/// Two writes in either order.
fn shuffled(mut writes: [Write; 2], random: &mut Random) -> Vec<Write> {
    if random.one_in(2) {
        writes.reverse();
    }
    writes.into()
}

fn name(number: u8) -> String {
    format!("model-{number}")
}

fn slice_name(number: u8) -> String {
    let family = if is_v6(number) { "ipv6" } else { "ipv4" };
    format!("{}-{family}", name(number))
}

fn is_v6(number: u8) -> bool {
    number.is_multiple_of(3)
}

fn cluster_ip(number: u8) -> IpAddr {
    if is_v6(number) {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 1, number.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 1, number).into()
    }
}

fn endpoint_ip(number: u8, endpoint: u8) -> IpAddr {
    if is_v6(number) {
        let [number, endpoint] = [number, endpoint].map(u16::from);
        Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, number, 0x100 + endpoint).into()
    } else {
        Ipv4Addr::new(10, 1, number, endpoint).into()
    }
}

fn node_port(number: u8) -> u16 {
    31_000 + u16::from(number)
}
