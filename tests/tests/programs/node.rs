//! A node: the programs, loaded with maps of their own, which tests fill.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, OnceLock};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use proxyd_ebpf_common as bpf;
use proxyd_tests::netns::Netns;
use proxyd_tests::netns::link::Link as VethLink;

use super::packets::{Kind, Link, Part, Talk};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/objects/proxyd-ebpf.o"
));

/// The maps that take their memory at once, beside those of connections.
const MAPS: [&str; 10] = [
    "frontends",
    "backends",
    "members",
    "affinity_keys",
    "affinity",
    "udp_choices",
    "tcp_peers",
    "udp_peers",
    "source_affinity",
    "fragments",
];

/// What programs say: the packet goes on, is dropped, or goes to another device.
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// The devices, by their indexes: one to the world, and one to pods.
pub(crate) const UPLINK: u32 = 11;
pub(crate) const PODS: u32 = 12;

/// The node's addresses at them.
pub(crate) const NODE: u16 = 0x0901;
pub(crate) const NODE_AT_PODS: u16 = 0x0902;

/// Others. Clients are outside, and the last one is a pod.
pub(crate) const CLIENT: u16 = 0x0101;
pub(crate) const POD: u16 = 0x0201;
pub(crate) const SERVICE: u16 = 0x0a01;
pub(crate) const OTHER_SERVICE: u16 = 0x0a02;
pub(crate) const BACKEND: u16 = 0x0202;
pub(crate) const OTHER_BACKEND: u16 = 0x0303;

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on as it is.
    Left,
    /// It goes on as this one.
    Became(Vec<u8>),
    /// It goes to another device at once, as this one.
    Sent(Vec<u8>),
    Dropped,
}

/// The programs and their maps, and what kind of packets a test is about.
pub(crate) struct Node {
    pub(super) loaded: Ebpf,
    pub(crate) kind: Kind,
}

/// What is loaded and not in use, since loading takes much longer than most tests.
static IDLE: Mutex<Vec<Ebpf>> = Mutex::new(Vec::new());

/// Runs a test with every kind of packets, each on a node of its own.
pub(crate) fn check(test: impl Fn(&mut Node) + Send + Sync) {
    check_where(|_| true, test);
}

/// The same for some kinds only.
pub(crate) fn check_where(
    wanted: impl Fn(Kind) -> bool + Sync,
    test: impl Fn(&mut Node) + Send + Sync,
) {
    devices().enter(|| {
        let links = [Link::Ethernet, Link::Nothing].into_iter();
        let kinds = links.flat_map(Kind::all).filter(|kind| wanted(*kind));
        let idle = IDLE.lock().unwrap().pop();
        let mut loaded = idle.unwrap_or_else(load);
        for kind in kinds {
            // Shown if the test fails.
            println!("{kind:?}");
            let mut node = Node::new(loaded, kind);
            test(&mut node);
            loaded = node.loaded;
        }
        IDLE.lock().unwrap().push(loaded);
    });
}

/// The Ethernet address of a device, without which a packet is not for the node.
pub(crate) fn address_of(device: u32) -> [u8; 6] {
    let names = [(UPLINK, "uplink"), (PODS, "pods")];
    let (_, name) = names.iter().find(|(index, _)| *index == device).unwrap();
    let mut found = getifaddrs()
        .unwrap()
        .filter(|found| found.interface_name == *name);
    let address = found.find_map(|found| found.address?.as_link_addr()?.addr());
    address.unwrap()
}

/// A namespace with the devices, for all tests.
fn devices() -> &'static Netns {
    static DEVICES: OnceLock<(Netns, [Netns; 2])> = OnceLock::new();
    let (node, _) = DEVICES.get_or_init(|| {
        let node = Netns::new().unwrap();
        let others = [(UPLINK, "uplink"), (PODS, "pods")].map(|(index, name)| {
            let leaf = Netns::new().unwrap();
            let link = VethLink {
                router: &node,
                router_device: name,
                router_index: index,
                leaf: &leaf,
                addresses: &[],
            };
            link.attach().unwrap();
            leaf
        });
        (node, others)
    });
    node
}

impl Node {
    /// A node without Services that has both devices, and remembers nothing.
    fn new(loaded: Ebpf, kind: Kind) -> Self {
        let mut node = Self { loaded, kind };
        node.forget_everything();
        node.knows_pods(true);
        node.has_device(UPLINK, Some(NODE), false);
        node.has_device(PODS, Some(NODE_AT_PODS), true);
        // Nothing may go by what the node has where no device is known.
        node.has_device(bpf::THE_NODES_DEVICE, Some(0xffff), true);
        node
    }

    fn program_in(link: Link) -> &'static str {
        match link {
            Link::Ethernet => "proxyd_in",
            Link::Nothing => "proxyd_in_l3",
        }
    }

    fn program_out(link: Link) -> &'static str {
        match link {
            Link::Ethernet => "proxyd_out",
            Link::Nothing => "proxyd_out_l3",
        }
    }

    /// What becomes of a packet that comes in at a device.
    pub(crate) fn packet_in(&self, device: u32, packet: &[u8]) -> Fate {
        self.run(Self::program_in(self.kind.link), device, packet)
    }

    /// What becomes of a packet that goes out at a device.
    pub(crate) fn packet_out(&self, device: u32, packet: &[u8]) -> Fate {
        self.run(Self::program_out(self.kind.link), device, packet)
    }

    fn run(&self, name: &str, device: u32, packet: &[u8]) -> Fate {
        let program: &SchedClassifier = self.loaded.program(name).unwrap().try_into().unwrap();
        // A `struct __sk_buff`, as far as it is needed.
        let mut context = [0; 44];
        context[40..].copy_from_slice(&device.to_ne_bytes());
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out.try_into().unwrap());
        assert_eq!(out.len(), packet.len(), "the length stays");
        match result.return_value.cast_signed() {
            SHOT => Fate::Dropped,
            UNSPEC if out == packet => Fate::Left,
            UNSPEC => Fate::Became(out),
            REDIRECT => Fate::Sent(out),
            other => panic!("{name} says {other}"),
        }
    }

    /// A part of a talk comes in. Tells as part of which one it goes on, and makes sure that it is one without a fault.
    /// `None`: it is dropped.
    pub(crate) fn comes_in(&self, device: u32, talk: Talk, part: Part) -> Option<Talk> {
        let packet = self.kind.packet(talk, part);
        self.goes_on(self.packet_in(device, &packet), talk, part)
    }

    /// The same for one that goes out.
    pub(crate) fn goes_out(&self, device: u32, talk: Talk, part: Part) -> Option<Talk> {
        let packet = self.kind.packet(talk, part);
        self.goes_on(self.packet_out(device, &packet), talk, part)
    }

    fn goes_on(&self, fate: Fate, talk: Talk, part: Part) -> Option<Talk> {
        match fate {
            Fate::Dropped => None,
            Fate::Left => Some(talk),
            Fate::Sent(_) => panic!("{part:?} of {talk:?} goes to another device at once"),
            Fate::Became(packet) => {
                let became = self.kind.read(&packet);
                assert_eq!(packet, self.kind.packet(became, part), "{became:?}");
                Some(became)
            }
        }
    }

    /// A talk of a client with a Service.
    pub(crate) fn call(&self) -> Talk {
        Talk {
            from: self.kind.at(CLIENT, 40_001),
            to: self.kind.at(SERVICE, 80),
        }
    }

    /// The usual back ends.
    pub(crate) fn backend(&self) -> SocketAddr {
        self.kind.at(BACKEND, 8_080)
    }

    pub(crate) fn other_backend(&self) -> SocketAddr {
        self.kind.at(OTHER_BACKEND, 8_080)
    }

    /// Has a front end that clients call at an address, with one back end.
    pub(crate) fn serves(&mut self, at: SocketAddr, flags: u32, backends: &[SocketAddr]) {
        self.set_frontend(&Frontend {
            flags,
            backends: backends.to_vec(),
            ..Frontend::new(self.key(at))
        });
    }

    /// The key of a front end at an address.
    pub(crate) fn key(&self, at: SocketAddr) -> bpf::FrontendKey {
        bpf::FrontendKey {
            address: at.ip().into(),
            port: at.port().to_be(),
            protocol: self.kind.number(),
            kind: bpf::AT_ADDRESS,
        }
    }

    /// Has a front end remember clients under the key of another one.
    pub(crate) fn share_affinity(&mut self, frontend: bpf::FrontendKey, key: bpf::FrontendKey) {
        let mut keys = self.map("affinity_keys");
        keys.insert(frontend, key, 0).unwrap();
    }

    /// The key of a NodePort.
    pub(crate) fn node_port(&self, port: u16) -> bpf::FrontendKey {
        bpf::FrontendKey {
            address: bpf::Address::NONE,
            port: port.to_be(),
            protocol: self.kind.number(),
            kind: if self.kind.is_v4 {
                bpf::NODE_PORT_V4
            } else {
                bpf::NODE_PORT_V6
            },
        }
    }

    /// Has a front end, in place of what is there.
    pub(crate) fn set_frontend(&mut self, frontend: &Frontend) {
        let key = frontend.key;
        let count = |list: &[SocketAddr]| list.len().try_into().unwrap();
        let value = bpf::Frontend {
            count: count(&frontend.backends),
            local: count(&frontend.local),
            affinity_seconds: frontend.affinity_seconds,
            flags: frontend.flags,
            table: bpf::Table::NONE,
        };
        self.map("frontends").insert(key, value, 0).unwrap();
        let mut members = self.map::<bpf::MemberKey, u8>("members");
        let old: Vec<_> = members.keys().map(Result::unwrap).collect();
        for member in old.iter().filter(|member| member.frontend == key) {
            members.remove(member).unwrap();
        }
        for (first, list, place) in [
            (0, &frontend.backends, bpf::ANYWHERE),
            (bpf::FIRST_LOCAL, &frontend.local, bpf::HERE),
        ] {
            for (index, backend) in (first..).zip(list) {
                let backend = bpf::Destination::from(*backend);
                let frontend = key;
                let at = bpf::BackendKey { frontend, index };
                self.map("backends").insert(at, backend, 0).unwrap();
                let member = bpf::MemberKey { frontend, backend };
                let mut members = self.map::<bpf::MemberKey, u8>("members");
                let places = members.get(&member, 0).unwrap_or(0);
                members.insert(member, places | place, 0).unwrap();
            }
        }
    }

    /// Lets a network call a front end that is guarded.
    pub(crate) fn allows(&mut self, frontend: bpf::FrontendKey, network: IpNet) {
        let key = bpf::AllowedKey {
            frontend,
            source: network.network().into(),
        };
        let bits = 8 * 20 + 128 - u32::from(network.max_prefix_len() - network.prefix_len());
        self.networks("allowed")
            .insert(&Key::new(bits, key), 1, 0)
            .unwrap();
    }

    /// Has pods in a network.
    pub(crate) fn has_pods_in(&mut self, network: IpNet) {
        let key = bpf::NetworkKey {
            address: network.network().into(),
        };
        let bits = 128 - u32::from(network.max_prefix_len() - network.prefix_len());
        self.networks("pod_networks")
            .insert(&Key::new(bits, key), 1, 0)
            .unwrap();
    }

    /// Has NodePorts at an address.
    pub(crate) fn has_node_ports_at(&mut self, ip: IpAddr, who: bpf::WhoMayCall) {
        let mut map = self.map::<bpf::Address, bpf::WhoMayCall>("node_addresses");
        map.insert(bpf::Address::from(ip), who, 0).unwrap();
    }

    /// Whether it is known who is a pod.
    pub(crate) fn knows_pods(&mut self, knows: bool) {
        self.set(knows, false);
    }

    /// Has packets of known connections go past the node's routing, and a pod at the device of pods.
    pub(crate) fn has_fast_path(&mut self) {
        self.set(true, true);
        let mut devices = self.map::<u32, bpf::Device>("devices");
        let mut device = devices.get(&PODS, 0).unwrap();
        device.is_of_pod = 1;
        devices.insert(PODS, device, 0).unwrap();
    }

    /// A device goes.
    pub(crate) fn loses_device(&mut self, index: u32) {
        let mut devices = self.map::<u32, bpf::Device>("devices");
        devices.remove(&index).unwrap();
    }

    fn set(&mut self, knows_pods: bool, has_fast_path: bool) {
        let settings = bpf::Settings {
            node_namespace: 1,
            knows_pods: [knows_pods.into(); 2],
            has_fast_path: has_fast_path.into(),
            padding: 0,
        };
        let map = self.loaded.map_mut("settings").unwrap();
        let mut map: Array<_, bpf::Settings> = map.try_into().unwrap();
        map.set(0, settings, 0).unwrap();
    }

    /// Has a device, with an address or without one.
    pub(crate) fn has_device(&mut self, index: u32, host: Option<u16>, has_pods: bool) {
        let own = |is_v4| {
            let of = Kind { is_v4, ..self.kind };
            host.map_or(bpf::Address::NONE, |host| of.ip(host).into())
        };
        let device = bpf::Device {
            v4: own(true),
            v6: own(false),
            has_pods: has_pods.into(),
            is_of_pod: 0,
            mtu: 1_500,
        };
        self.map("devices").insert(index, device, 0).unwrap();
    }

    pub(super) fn networks<K: aya::Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, u8> {
        self.loaded.map_mut(name).unwrap().try_into().unwrap()
    }

    pub(super) fn map<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> HashMap<&mut MapData, K, V> {
        self.loaded.map_mut(name).unwrap().try_into().unwrap()
    }
}

/// A front end and its back ends.
pub(crate) struct Frontend {
    pub(crate) key: bpf::FrontendKey,
    pub(crate) flags: u32,
    pub(crate) affinity_seconds: u32,
    pub(crate) backends: Vec<SocketAddr>,
    pub(crate) local: Vec<SocketAddr>,
}

impl Frontend {
    /// One without back ends.
    pub(crate) fn new(key: bpf::FrontendKey) -> Self {
        Self {
            key,
            flags: 0,
            affinity_seconds: 0,
            backends: Vec::new(),
            local: Vec::new(),
        }
    }
}

/// Loads the programs.
fn load() -> Ebpf {
    let mut loader = EbpfLoader::new();
    // Smaller than they are, and so made sooner.
    for map in MAPS {
        loader.map_max_entries(map, 1 << 12);
    }
    // Room for a connection with each of the ports that there are.
    for map in ["ingress_flows", "egress_flows", "begun"] {
        loader.map_max_entries(map, 1 << 15);
    }
    let mut loaded = loader.load(OBJECT).unwrap();
    for name in ["proxyd_in", "proxyd_in_l3", "proxyd_out", "proxyd_out_l3"] {
        let program: &mut SchedClassifier = loaded.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
    }
    loaded
}
