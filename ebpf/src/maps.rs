//! The maps. The agent writes the first five; in the others the programs remember.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap};
use aya_ebpf::macros::btf_map;
use proxyd_ebpf_common::{
    BackendKey, Choice, ClientKey, Destination, Frontend, FrontendKey, MAX_BACKENDS, MAX_FRONTENDS,
    MAX_NODE_ADDRESSES, MAX_REMEMBERED, MemberKey, PeerKey, Settings, WhoMayCall,
};

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
pub static MEMBERS: HashMap<MemberKey, u8, MAX_BACKENDS, GROWS> = HashMap::new();

/// The addresses that have NodePorts.
#[btf_map(name = "node_addresses")]
pub static NODE_ADDRESSES: HashMap<[u8; 16], WhoMayCall, MAX_NODE_ADDRESSES, GROWS> =
    HashMap::new();

/// Session affinity: what was chosen for a network namespace.
#[btf_map(name = "affinity")]
pub static AFFINITY: LruHashMap<ClientKey, Choice, MAX_REMEMBERED> = LruHashMap::new();

/// What was chosen for a UDP socket.
#[btf_map(name = "flows")]
pub static FLOWS: LruHashMap<ClientKey, Choice, MAX_REMEMBERED> = LruHashMap::new();

/// What TCP sockets called.
#[btf_map(name = "tcp_peers")]
pub static TCP_PEERS: LruHashMap<PeerKey, Destination, MAX_REMEMBERED> = LruHashMap::new();

/// What UDP sockets called.
#[btf_map(name = "udp_peers")]
pub static UDP_PEERS: LruHashMap<PeerKey, Destination, MAX_REMEMBERED> = LruHashMap::new();
