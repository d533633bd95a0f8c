//! Which back end a socket gets.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use proxyd_ebpf_common::{
    ANYWHERE, Choice, ClientKey, Destination, Frontend, FrontendKey, GUARDED, LOCAL_OUTSIDE,
    MemberKey, PeerKey, THE_NODES_DEVICE,
};

use crate::address::{is_v4, protocol};
use crate::count;
use crate::flow::now;
use crate::frontend::{List, find, has, is_allowed, pick, recall};
use crate::maps::{AFFINITY, DEVICES, SETTINGS, TCP_PEERS, UDP_CHOICES, UDP_PEERS, remember};

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
    let (key, frontend) = find(protocol.number(), called, || is_node(namespace))?;
    if frontend.flags & (GUARDED | LOCAL_OUTSIDE) != 0
        && !is_node_that_may(&key, &frontend, namespace)
    {
        return None;
    }
    // SAFETY: the context is valid.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let flow = client(socket, &key);
    let is_flow = protocol == Protocol::Udp && !is_lasting;
    // SAFETY: the value is copied at once.
    if is_flow
        && let Some(backend) = unsafe { UDP_CHOICES.get(flow) }.copied()
        && has(&key, &backend, ANYWHERE)
    {
        return Some(backend);
    }
    let backend = if frontend.affinity_seconds == 0 {
        pick(&key, all(&frontend), all)?
    } else {
        let client = client(namespace, &key);
        let now = now();
        // SAFETY: the value is copied at once.
        let choice = unsafe { AFFINITY.get(client) }.copied();
        let limits = (frontend.affinity_seconds, ANYWHERE);
        let backend = match choice.and_then(|choice| recall(&choice, now, &key, limits)) {
            Some(backend) => backend,
            None => pick(&key, all(&frontend), all)?,
        };
        let choice = Choice {
            used_at: now,
            backend,
            padding: 0,
        };
        // Nothing is lost but the client's affinity if that fails.
        let _ = remember(&AFFINITY, &client, &choice);
        backend
    };
    if is_flow {
        let _ = remember(&UDP_CHOICES, &flow, &backend);
    }
    count::connection(&MemberKey {
        frontend: key,
        backend,
    });
    let peer = PeerKey {
        socket,
        backend,
        padding: 0,
    };
    let _ = match protocol {
        Protocol::Tcp => remember(&TCP_PEERS, &peer, called),
        Protocol::Udp => remember(&UDP_PEERS, &peer, called),
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

/// Whether a socket is one of the node, and the node may call a front end. Of others the source is not known yet, nor whether
/// they are pods.
#[inline(always)]
fn is_node_that_may(key: &FrontendKey, frontend: &Frontend, namespace: u64) -> bool {
    if !is_node(namespace) {
        return false;
    }
    if frontend.flags & GUARDED == 0 {
        return true;
    }
    // SAFETY: the value is copied at once.
    let Some(node) = (unsafe { DEVICES.get(THE_NODES_DEVICE) }).copied() else {
        return false;
    };
    let is_v4 = is_v4(&key.address);
    is_allowed(key, if is_v4 { &node.v4 } else { &node.v6 })
}

/// All back ends: that is what clients here get.
#[inline(always)]
fn all(frontend: &Frontend) -> List {
    List {
        first: 0,
        count: frontend.count,
    }
}

#[inline(always)]
fn is_node(namespace: u64) -> bool {
    SETTINGS
        .get(0)
        .is_some_and(|settings| settings.node_namespace == namespace)
}

#[inline(always)]
fn client(cookie: u64, frontend: &FrontendKey) -> ClientKey {
    ClientKey {
        cookie,
        frontend: *frontend,
        padding: 0,
    }
}
