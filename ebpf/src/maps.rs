//! The maps. The agent writes the first ones; in the others the programs remember.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, Queue};
use aya_ebpf::macros::btf_map;
use proxyd_ebpf_common::{
    Address, AllowedKey, BackendKey, Choice, ClientKey, Counter, Destination, Device, Flow,
    FragmentKey, Frontend, FrontendKey, MAX_BACKENDS, MAX_CLOSED, MAX_DEVICES, MAX_FLOWS,
    MAX_FRAGMENTS, MAX_FRONTENDS, MAX_NETWORKS, MAX_NODE_ADDRESSES, MAX_PIECES, MAX_REMEMBERED,
    MAX_SPECIAL_BACKENDS, MemberKey, NetworkKey, PeerKey, Piece, PieceKey, Settings, SourceKey,
    TableKey, Tuple, Waiting, WhoMayCall,
};

use crate::work::Work;

/// They take memory as they fill up.
const GROWS: usize = BPF_F_NO_PREALLOC as usize;

/// What the agent tells the programs.
#[btf_map(name = "settings")]
pub static SETTINGS: Array<Settings, 1, 0> = Array::new();

/// How each front end balances.
#[btf_map(name = "frontends")]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, MAX_FRONTENDS, GROWS> = HashMap::new();

/// The back ends of front ends, by index.
#[btf_map(name = "backends")]
pub static BACKENDS: HashMap<BackendKey, Destination, MAX_BACKENDS, GROWS> = HashMap::new();

/// Which back ends a front end has whose clients keep theirs.
#[btf_map(name = "members")]
pub static MEMBERS: HashMap<MemberKey, u8, MAX_SPECIAL_BACKENDS, GROWS> = HashMap::new();

/// The tables of consistent hashing, in pieces.
#[btf_map(name = "tables")]
pub static TABLES: HashMap<PieceKey, Piece, MAX_PIECES, GROWS> = HashMap::new();

/// The back ends that tables lead to.
#[btf_map(name = "table_backends")]
pub static TABLE_BACKENDS: HashMap<TableKey, Destination, MAX_SPECIAL_BACKENDS, GROWS> =
    HashMap::new();

/// The addresses that have NodePorts.
#[btf_map(name = "node_addresses")]
pub static NODE_ADDRESSES: HashMap<Address, WhoMayCall, MAX_NODE_ADDRESSES, GROWS> = HashMap::new();

/// The networks of pods, for detectors that go by address.
#[btf_map(name = "pod_networks")]
pub static POD_NETWORKS: LpmTrie<NetworkKey, u8, MAX_NETWORKS> = LpmTrie::new();

/// Which sources may call front ends that are guarded.
#[btf_map(name = "allowed")]
pub static ALLOWED: LpmTrie<AllowedKey, u8, MAX_NETWORKS> = LpmTrie::new();

/// The devices where the programs are.
#[btf_map(name = "devices")]
pub static DEVICES: HashMap<u32, Device, MAX_DEVICES, GROWS> = HashMap::new();

/// Session affinity: the front end under which choices are remembered, which all of a Service port share. Where there is none, each
/// remembers its own.
#[btf_map(name = "affinity_keys")]
pub static AFFINITY_KEYS: HashMap<FrontendKey, FrontendKey, MAX_FRONTENDS, GROWS> = HashMap::new();

/// Session affinity: what was chosen for a network namespace.
#[btf_map(name = "affinity")]
pub static AFFINITY: LruHashMap<ClientKey, Choice, MAX_REMEMBERED> = LruHashMap::new();

/// What was chosen for a UDP socket.
#[btf_map(name = "udp_choices")]
pub static UDP_CHOICES: LruHashMap<ClientKey, Destination, MAX_REMEMBERED> = LruHashMap::new();

/// What TCP sockets called.
#[btf_map(name = "tcp_peers")]
pub static TCP_PEERS: LruHashMap<PeerKey, Destination, MAX_REMEMBERED> = LruHashMap::new();

/// What UDP sockets called.
#[btf_map(name = "udp_peers")]
pub static UDP_PEERS: LruHashMap<PeerKey, Destination, MAX_REMEMBERED> = LruHashMap::new();

/// Session affinity: what was chosen for an address, where devices saw the client.
#[btf_map(name = "source_affinity")]
pub static SOURCE_AFFINITY: LruHashMap<SourceKey, Choice, MAX_REMEMBERED> = LruHashMap::new();

/// Connections, by who talks to whom.
pub type Flows = LruHashMap<Tuple, Flow, MAX_FLOWS>;

/// Connections, as packets come in: where they are sent.
#[btf_map(name = "ingress_flows")]
pub static INGRESS_FLOWS: Flows = LruHashMap::new();

/// Connections, as packets go out: whom they are said to come from.
#[btf_map(name = "egress_flows")]
pub static EGRESS_FLOWS: Flows = LruHashMap::new();

/// Connections in the order in which they began.
#[btf_map(name = "begun")]
pub static BEGUN: Queue<Waiting, MAX_FLOWS> = Queue::new();

/// Connections that both sides have closed, in the order in which they did.
#[btf_map(name = "closed")]
pub static CLOSED: Queue<Waiting, MAX_CLOSED> = Queue::new();

/// The ports of datagrams that come in fragments.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, [u16; 2], MAX_FRAGMENTS> = LruHashMap::new();

/// How much traffic back ends had, since they have been back ends.
#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuHashMap<MemberKey, Counter, MAX_SPECIAL_BACKENDS, GROWS> =
    PerCpuHashMap::new();

/// Remembers something in a map that forgets what was not used for longest. It is looked up at once: where there is no room, what never
/// was goes first, and so the newest before the oldest.
#[inline(always)]
pub fn remember<K, V, const ENTRIES: usize>(
    map: &LruHashMap<K, V, ENTRIES>,
    key: &K,
    value: &V,
) -> Option<()> {
    map.insert(key, value, 0).ok()?;
    map.get_ptr(key).map(drop)
}

/// What the programs at devices have at hand: more than fits a stack. One for packets that come in, one for those that
/// go out.
#[btf_map(name = "work")]
pub static WORK: PerCpuArray<Work, 2> = PerCpuArray::new();
