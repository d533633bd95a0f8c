//! What the maps of the BPF programs hold, for the programs and for the agent.
//!
//! All of it is plain bytes with explicit padding, since the kernel compares keys byte by byte. An IPv4 address is kept as
//! an IPv4-mapped IPv6 one (RFC 4291, 2.5.5.2): so both families share the maps, and sockets of either may call either.
//! Ports are in network order, as in sockets.

#![no_std]
#![deny(missing_docs)]

mod flow;
mod maglev;

pub use flow::{
    AGREED, AllowedKey, BY_ROUTES, CLOSING, Counter, Device, ESTABLISHED, Flow, FragmentKey,
    MASQUERADE_PORTS, NEW, NOT_KNOWN, NetworkKey, PENDING, SourceKey, THE_NODES_DEVICE, TIMEOUT,
    TO_NEIGHBOUR, TO_POD, Tuple, Waiting, ticks,
};
pub use maglev::{
    PIECE_SLOTS, Piece, PieceKey, Table, TableKey, hash_of_address, hash_of_client, hash_of_flow,
};

/// How many front ends there can be: ports of Services, at each of their addresses, and NodePorts.
pub const MAX_FRONTENDS: usize = 1 << 18;

/// How many back ends all front ends can have together.
pub const MAX_BACKENDS: usize = 1 << 20;

/// How many of them there can be for each of these: those of front ends whose clients keep theirs (session affinity, and UDP), those in
/// tables of consistent hashing, and those whose traffic is counted. A map takes 16 bytes for each from the start.
pub const MAX_SPECIAL_BACKENDS: usize = 1 << 18;

/// How many addresses can have NodePorts.
pub const MAX_NODE_ADDRESSES: usize = 1 << 10;

/// How many sockets and clients are remembered in each map of those; the longest unused are forgotten.
pub const MAX_REMEMBERED: usize = 1 << 16;

/// Of how many datagrams that come in fragments the ports are remembered.
pub const MAX_FRAGMENTS: usize = 1 << 13;

/// How many connections are remembered that devices carry, in each direction, unless the agent says otherwise; the longest
/// unused are forgotten.
pub const MAX_FLOWS: usize = 1 << 17;

/// How many connections can wait to be forgotten that both sides have closed; more of them wait as those do that end otherwise.
pub const MAX_CLOSED: usize = 1 << 15;

/// How many networks there can be whose sources may call a front end, and of pods.
pub const MAX_NETWORKS: usize = 1 << 16;

/// How many devices can carry traffic.
pub const MAX_DEVICES: usize = 1 << 12;

/// How many pieces all tables of consistent hashing can have together: 15,420 tables of the usual size.
pub const MAX_PIECES: usize = 1 << 18;

/// An IPv6 address, or an IPv4 one that is mapped. Aligned, or the programs would copy it byte by byte.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// Where there is none.
    pub const NONE: Self = Self([0; 16]);
}

/// An address and a port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// The address.
    pub address: Address,
    /// In network order.
    pub port: u16,
    /// Zero.
    pub padding: u16,
}

/// The key of a front end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    /// The address that clients call; zero for a NodePort.
    pub address: Address,
    /// In network order.
    pub port: u16,
    /// The number of the transport protocol.
    pub protocol: u8,
    /// One of [`AT_ADDRESS`], [`NODE_PORT_V4`], [`NODE_PORT_V6`].
    pub kind: u8,
}

/// A front end at an address.
pub const AT_ADDRESS: u8 = 0;

/// A NodePort at the node's IPv4 addresses.
pub const NODE_PORT_V4: u8 = 4;

/// A NodePort at the node's IPv6 addresses.
pub const NODE_PORT_V6: u8 = 6;

/// How a front end balances.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// How many back ends there are, under indexes from 0 up.
    pub count: u32,
    /// How many of them are on this node, under indexes from [`FIRST_LOCAL`] up.
    pub local: u32,
    /// How long a client keeps its back end, in seconds; 0: it does not.
    pub affinity_seconds: u32,
    /// A set of flags such as [`MASQUERADE_ALL`].
    pub flags: u32,
    /// Who chooses for clients outside, if there is such a table.
    pub table: Table,
}

/// The index of the first back end on this node.
pub const FIRST_LOCAL: u32 = 1 << 15;

/// Clients get the address of the node, whoever they are.
pub const MASQUERADE_ALL: u32 = 1;

/// Clients that are no pods get the address of the node, if it is known which are.
pub const MASQUERADE_OUTSIDE: u32 = 2;

/// Clients that are no pods get back ends on this node.
pub const LOCAL_OUTSIDE: u32 = 4;

/// Only some sources may call it.
pub const GUARDED: u32 = 8;

/// Front ends of the Service port whose clients keep their back ends choose among different ones.
pub const AFFINITY_MIXED: u32 = 16;

/// The key of one back end of a front end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendKey {
    /// The front end.
    pub frontend: FrontendKey,
    /// The index.
    pub index: u32,
}

/// A back end of a front end: the key of the counters, and of the map that says which ones a front end has, where clients keep theirs
/// (with session affinity, and for UDP). That one's values are sets of [`ANYWHERE`] and [`HERE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberKey {
    /// The front end.
    pub frontend: FrontendKey,
    /// The back end.
    pub backend: Destination,
}

/// A back end is one of all.
pub const ANYWHERE: u8 = 1;

/// A back end is one of those on this node.
pub const HERE: u8 = 2;

/// Whether all may call an address for its NodePorts.
pub type WhoMayCall = u8;

/// Everybody may.
pub const ANYBODY: WhoMayCall = 0;

/// Only the node itself may: the address is one of its loopback device.
pub const THE_NODE: WhoMayCall = 1;

/// The key of what is remembered: who called which front end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientKey {
    /// The cookie of the network namespace, for session affinity; that of the socket, for UDP.
    pub cookie: u64,
    /// The front end; for session affinity the one that all of a Service port share.
    pub frontend: FrontendKey,
    /// Zero.
    pub padding: u32,
}

/// The back end that was chosen for a client.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// When it was last used, in nanoseconds since the machine started.
    pub used_at: u64,
    /// The back end.
    pub backend: Destination,
    /// Zero.
    pub padding: u32,
}

/// The key of what a socket called: whom its packets really go to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerKey {
    /// The cookie of the socket.
    pub socket: u64,
    /// The back end.
    pub backend: Destination,
    /// Zero.
    pub padding: u32,
}

/// What the programs are told by the agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settings {
    /// The cookie of the node's own network namespace.
    pub node_namespace: u64,
    /// Whether it is known which clients are pods, for IPv4 and IPv6: 1 or 0.
    pub knows_pods: [u32; 2],
    /// 1 if packets of open connections go past the node's routing.
    pub has_fast_path: u32,
    /// Zero.
    pub padding: u32,
}

#[cfg(feature = "user")]
mod user {
    use core::net::{IpAddr, Ipv6Addr, SocketAddr};

    use super::{Address, Destination};

    impl From<IpAddr> for Address {
        fn from(ip: IpAddr) -> Self {
            Self(match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            })
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> Self {
            Ipv6Addr::from(address.0).to_canonical()
        }
    }

    impl From<SocketAddr> for Destination {
        fn from(to: SocketAddr) -> Self {
            Self {
                address: to.ip().into(),
                port: to.port().to_be(),
                padding: 0,
            }
        }
    }

    impl From<Destination> for SocketAddr {
        fn from(to: Destination) -> Self {
            Self::new(to.address.into(), u16::from_be(to.port))
        }
    }

    macro_rules! plain_bytes {
        ($($name:ident),*) => {
            $(
                // SAFETY: `repr(C)`, made of integers, and without implicit padding: any bytes are a value.
                unsafe impl aya::Pod for super::$name {}
            )*
        };
    }
    plain_bytes!(
        Address,
        Destination,
        FrontendKey,
        Frontend,
        BackendKey,
        MemberKey,
        ClientKey,
        Choice,
        PeerKey,
        Settings,
        Tuple,
        Flow,
        Waiting,
        FragmentKey,
        SourceKey,
        NetworkKey,
        AllowedKey,
        Device,
        Counter,
        Table,
        PieceKey,
        Piece,
        TableKey
    );
}

// The sums of the fields' sizes: there is no implicit padding.
const _: () = {
    assert!(size_of::<Destination>() == 16 + 2 + 2);
    assert!(size_of::<FrontendKey>() == 16 + 2 + 1 + 1);
    assert!(size_of::<Frontend>() == 4 * 4 + 16);
    assert!(size_of::<BackendKey>() == 20 + 4);
    assert!(size_of::<MemberKey>() == 20 + 20);
    assert!(size_of::<ClientKey>() == 8 + 20 + 4);
    assert!(size_of::<Choice>() == 8 + 20 + 4);
    assert!(size_of::<PeerKey>() == 8 + 20 + 4);
    assert!(size_of::<Settings>() == 8 + 2 * 4 + 4 + 4);
};
