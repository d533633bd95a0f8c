//! Which back end a client gets.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
};
use aya_ebpf::programs::SockAddrContext;
use proxyd_ebpf_common::{
    AT_ADDRESS, BackendKey, Choice, ClientKey, Destination, FOR_NODE_ONLY, Frontend, FrontendKey,
    MemberKey, NODE_PORT_V4, NODE_PORT_V6, PeerKey, THE_NODE,
};

use crate::address::{is_v4, protocol};
use crate::maps::{
    AFFINITY, BACKENDS, FLOWS, FRONTENDS, MEMBERS, NODE_ADDRESSES, SETTINGS, TCP_PEERS, UDP_PEERS,
};

/// A transport protocol that is balanced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The protocol of a socket. An MPTCP socket begins as a TCP one.
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext) -> Option<Self> {
        match protocol(ctx) {
            6 | 262 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

/// The back end for a socket that begins to talk to somebody. `is_lasting`: it talks to nobody else from now on, so the
/// choice is not looked up again. `None`: nobody that is balanced is called.
#[inline(always)]
pub fn choose(
    ctx: &SockAddrContext,
    protocol: Protocol,
    called: &Destination,
    is_lasting: bool,
) -> Option<Destination> {
    // SAFETY: the context is valid.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let (key, frontend) = find(protocol, called, namespace)?;
    if frontend.flags & FOR_NODE_ONLY != 0 && !is_node(namespace) {
        return None;
    }
    // SAFETY: the context is valid.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let flow = client(socket, &key);
    let is_flow = protocol == Protocol::Udp && !is_lasting;
    if is_flow && let Some(backend) = recall_flow(&flow) {
        return Some(backend);
    }
    let backend = if frontend.affinity_seconds == 0 {
        pick(&key, &frontend)?
    } else {
        let client = client(namespace, &key);
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        let backend = match recall(&client, now, frontend.affinity_seconds) {
            Some(backend) => backend,
            None => pick(&key, &frontend)?,
        };
        let choice = Choice {
            used_at: now,
            backend,
            padding: 0,
        };
        // Nothing is lost but the client's affinity if that fails.
        let _ = AFFINITY.insert(client, choice, 0);
        backend
    };
    if is_flow {
        let choice = Choice {
            used_at: 0,
            backend,
            padding: 0,
        };
        let _ = FLOWS.insert(flow, choice, 0);
    }
    let peer = PeerKey {
        socket,
        backend,
        padding: 0,
    };
    let _ = match protocol {
        Protocol::Tcp => TCP_PEERS.insert(peer, called, 0),
        Protocol::Udp => UDP_PEERS.insert(peer, called, 0),
    };
    Some(backend)
}

/// What a socket called that talks to this back end; `None` if it called that itself.
#[inline(always)]
pub fn called(
    ctx: &SockAddrContext,
    protocol: Protocol,
    backend: Destination,
) -> Option<Destination> {
    let peer = PeerKey {
        // SAFETY: the context is valid.
        socket: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        backend,
        padding: 0,
    };
    // SAFETY: the value is copied at once.
    unsafe {
        match protocol {
            Protocol::Tcp => TCP_PEERS.get(peer).copied(),
            Protocol::Udp => UDP_PEERS.get(peer).copied(),
        }
    }
}

/// The front end that is called: one at this address, or a NodePort.
#[inline(always)]
fn find(
    protocol: Protocol,
    called: &Destination,
    namespace: u64,
) -> Option<(FrontendKey, Frontend)> {
    let mut key = FrontendKey {
        address: called.address,
        port: called.port,
        protocol: protocol.number(),
        kind: AT_ADDRESS,
    };
    // SAFETY: the value is copied at once.
    if let Some(frontend) = unsafe { FRONTENDS.get(key) } {
        return Some((key, *frontend));
    }
    // SAFETY: the value is copied at once.
    let who = unsafe { *NODE_ADDRESSES.get(called.address)? };
    if who == THE_NODE && !is_node(namespace) {
        return None;
    }
    key.address = [0; 16];
    key.kind = if is_v4(&called.address) {
        NODE_PORT_V4
    } else {
        NODE_PORT_V6
    };
    // SAFETY: the value is copied at once.
    let frontend = unsafe { *FRONTENDS.get(key)? };
    Some((key, frontend))
}

#[inline(always)]
fn is_node(namespace: u64) -> bool {
    SETTINGS
        .get(0)
        .is_some_and(|settings| settings.node_namespace == namespace)
}

/// Any of the back ends, each as likely as the others.
#[inline(always)]
fn pick(key: &FrontendKey, frontend: &Frontend) -> Option<Destination> {
    one_of(key, frontend.count).or_else(|| {
        // There are fewer now.
        // SAFETY: the value is copied at once.
        let frontend = unsafe { *FRONTENDS.get(key)? };
        one_of(key, frontend.count)
    })
}

#[inline(always)]
fn one_of(key: &FrontendKey, count: u32) -> Option<Destination> {
    if count == 0 {
        return None;
    }
    let key = BackendKey {
        frontend: *key,
        // SAFETY: a helper without arguments.
        index: unsafe { bpf_get_prandom_u32() } % count,
    };
    // SAFETY: the value is copied at once.
    unsafe { BACKENDS.get(key).copied() }
}

#[inline(always)]
fn client(cookie: u64, frontend: &FrontendKey) -> ClientKey {
    ClientKey {
        cookie,
        frontend: *frontend,
        padding: 0,
    }
}

/// What was chosen for a client not too long ago, if it is still there.
#[inline(always)]
fn recall(client: &ClientKey, now: u64, seconds: u32) -> Option<Destination> {
    // SAFETY: the value is copied at once.
    let choice = unsafe { *AFFINITY.get(client)? };
    let is_over = now.saturating_sub(choice.used_at) >= u64::from(seconds) * NANOSECONDS;
    if is_over {
        return None;
    }
    still_there(client, choice.backend)
}

/// What was chosen for a UDP socket, if it is still there.
#[inline(always)]
fn recall_flow(client: &ClientKey) -> Option<Destination> {
    // SAFETY: the value is copied at once.
    let choice = unsafe { *FLOWS.get(client)? };
    still_there(client, choice.backend)
}

#[inline(always)]
fn still_there(client: &ClientKey, backend: Destination) -> Option<Destination> {
    let member = MemberKey {
        frontend: client.frontend,
        backend,
    };
    // SAFETY: only whether it is there is asked.
    unsafe { MEMBERS.get(member) }.map(|_| backend)
}
