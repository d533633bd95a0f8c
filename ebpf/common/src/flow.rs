//! What is remembered of connections that devices carry, and what the programs there look up.

use crate::{Address, FrontendKey};

/// Who talks to whom: what tells connections apart.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// The address of the sender.
    pub source: Address,
    /// The address of the receiver.
    pub destination: Address,
    /// In network order.
    pub source_port: u16,
    /// In network order.
    pub destination_port: u16,
    /// The number of the transport protocol.
    pub protocol: u8,
    /// Zero.
    pub padding: [u8; 3],
}

impl Tuple {
    /// All of it, as numbers.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        // SAFETY: both have the same size, and any bytes are a value.
        unsafe { core::mem::transmute(*self) }
    }

    /// The tuple of answers.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            padding: [0; 3],
        }
    }
}

/// What becomes of the packets of a connection in one direction at one hook.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// What they are made to be.
    pub to: Tuple,
    /// When the last one came, in nanoseconds since the machine started.
    pub used_at: u64,
    /// The front end that was called, for packets that go there and for answers as the client gets them.
    pub frontend: FrontendKey,
    /// One of [`NEW`], [`AGREED`], [`ESTABLISHED`], [`CLOSING`], [`PENDING`].
    pub state: u8,
    /// One of [`BY_ROUTES`], [`NOT_KNOWN`], [`TO_POD`], [`TO_NEIGHBOUR`].
    pub way: u8,
    /// 1 if these are answers and the packets that they answer were told where the back end is.
    pub has_told: u8,
    /// Zero.
    pub padding: u8,
    /// The device that leads to the receiver, if there is a way.
    pub device: u32,
    /// For a pod: whom Ethernet frames go to there, and who they are from.
    pub frame: [u16; 6],
    /// For a neighbour: when the kernel last sent a packet there, in [`ticks`].
    pub seen_at: u32,
    /// Zero.
    pub more_padding: u32,
}

/// A connection that is not used for so many nanoseconds is forgotten: as kube-proxy sets it for established ones of TCP, and else as
/// Linux' connection tracking has it.
const ESTABLISHED_TIMEOUT: u64 = 86_400 * 1_000_000_000;

/// For how many nanoseconds others than established connections of TCP are remembered that are not used.
pub const TIMEOUT: u64 = 120 * 1_000_000_000;

const TCP: u8 = 6;

impl Flow {
    /// Whether what is remembered still counts, so many nanoseconds after the machine started.
    #[must_use]
    #[inline(always)]
    pub const fn is_alive(&self, now: u64) -> bool {
        let is_long = self.to.protocol == TCP && self.state == ESTABLISHED;
        let timeout = if is_long {
            ESTABLISHED_TIMEOUT
        } else {
            TIMEOUT
        };
        self.is_silent_for(now) < timeout
    }

    /// For how many nanoseconds nothing was sent.
    #[must_use]
    #[inline(always)]
    pub const fn is_silent_for(&self, now: u64) -> u64 {
        now.saturating_sub(self.used_at)
    }

    /// Leaves it to the kernel where packets go.
    #[inline(always)]
    pub const fn go_by_routes(&mut self) {
        self.way = BY_ROUTES;
        self.has_told = 0;
        self.padding = 0;
        self.device = 0;
        self.frame = [0; 6];
        self.seen_at = 0;
        self.more_padding = 0;
    }
}

/// A connection that is to be looked at again.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// How the client calls.
    pub called: Tuple,
    /// Since when it waits, in nanoseconds since the machine started.
    pub since: u64,
}

/// Only first packets were seen.
pub const NEW: u8 = 0;

/// Others followed.
pub const ESTABLISHED: u8 = 1;

/// One side has closed the connection.
pub const CLOSING: u8 = 2;

/// To be masqueraded; the port is not chosen yet.
pub const PENDING: u8 = 3;

/// The server has agreed to a connection; the client has not been heard of since.
pub const AGREED: u8 = 4;

/// The kernel routes the packets.
pub const BY_ROUTES: u8 = 0;

/// The kernel routes the packets until it is known where it sends them.
pub const NOT_KNOWN: u8 = 1;

/// The packets go to the pod at the other end of the device.
pub const TO_POD: u8 = 2;

/// The packets go out at the device, to whom the kernel knows there.
pub const TO_NEIGHBOUR: u8 = 3;

/// Some seconds, in nanoseconds, and so much of a time that a change of routes may take to be followed.
#[must_use]
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// The ports that masqueraded connections get: the first, and how many. They lie outside Linux' range for sockets that
/// do not choose their port.
pub const MASQUERADE_PORTS: (u16, u16) = (61_000, 4_536);

/// How much traffic a back end had for a front end, on one processor.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// New connections; for UDP sockets that do not connect, and clients outside: new flows.
    pub connections: u64,
    /// Packets to the back end that devices translated.
    pub packets: u64,
    /// Their bytes, with all headers.
    pub bytes: u64,
}

/// The key of what is remembered of a datagram that comes in fragments, of which the first one has the ports.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FragmentKey {
    /// The address of the sender.
    pub source: Address,
    /// The address of the receiver.
    pub destination: Address,
    /// What fragments of one datagram have in common.
    pub identification: u32,
    /// The number of the transport protocol.
    pub protocol: u32,
}

/// The key of session affinity for clients outside: who called which front end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// The client's address.
    pub source: Address,
    /// The front end that all of a Service port share.
    pub frontend: FrontendKey,
    /// Zero.
    pub padding: u32,
}

/// The data of a key of a map of networks: an address, of which a prefix counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkKey {
    /// The address.
    pub address: Address,
}

/// The data of a key of the map that says which sources may call a guarded front end. Of the source a prefix counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowedKey {
    /// The front end.
    pub frontend: FrontendKey,
    /// The source.
    pub source: Address,
}

/// The key, among devices, of what the node has where no device is known.
pub const THE_NODES_DEVICE: u32 = 0;

/// What is known of a device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// The node's address there, mapped, for masquerade; zero if it has none.
    pub v4: Address,
    /// The same for IPv6.
    pub v6: Address,
    /// 1 if what comes from there comes from pods.
    pub has_pods: u32,
    /// 1 if a pod is at its other end, and nobody else.
    pub is_of_pod: u32,
    /// How long packets may be there, in bytes.
    pub mtu: u32,
}

// The sums of the fields' sizes: there is no implicit padding.
const _: () = {
    assert!(size_of::<Tuple>() == 16 + 16 + 2 + 2 + 1 + 3);
    assert!(size_of::<Flow>() == 40 + 8 + 20 + 4 + 4 + 12 + 4 + 4);
    assert!(size_of::<Waiting>() == 40 + 8);
    assert!(size_of::<Counter>() == 3 * 8);
    assert!(size_of::<FragmentKey>() == 16 + 16 + 4 + 4);
    assert!(size_of::<SourceKey>() == 16 + 20 + 4);
    assert!(size_of::<AllowedKey>() == 20 + 16);
    assert!(size_of::<Device>() == 16 + 16 + 3 * 4);
};
