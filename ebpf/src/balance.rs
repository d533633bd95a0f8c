//! Which back end a socket gets.

use core::mem::zeroed;

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
use crate::frontend::{List, find, has, is_allowed, note_affinity_key, pick, recall};
use crate::maps::{AFFINITY, DEVICES, SETTINGS, TCP_PEERS, UDP_CHOICES, UDP_PEERS, remember};
use crate::verified::{LEFT, TAKEN};

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

/// A socket that begins to talk to somebody, and what is found out about that.
#[repr(C)]
struct Call {
    /// The cookie of the socket.
    socket: u64,
    /// The cookie of its network namespace.
    namespace: u64,
    /// Whom it calls.
    called: Destination,
    /// By which protocol: its number.
    protocol: u8,
    /// Whether it talks to nobody else from now on, so that the choice is not looked up again.
    is_lasting: bool,
    padding: u16,
    /// The front end that is called.
    key: FrontendKey,
    frontend: Frontend,
    /// Whom it gets.
    backend: Destination,
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
    let (socket, namespace) = unsafe {
        let ctx = ctx.as_ptr();
        (bpf_get_socket_cookie(ctx), bpf_get_netns_cookie(ctx))
    };
    let mut call = Call {
        socket,
        namespace,
        called: *called,
        protocol: protocol.number(),
        is_lasting,
        // SAFETY: all of it may be zero.
        ..unsafe { zeroed() }
    };
    (proxyd_choose(&raw mut call) == TAKEN).then_some(call.backend)
}

/// Chooses and notes the back end of a call. [`LEFT`]: nobody that is balanced is called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn proxyd_choose(call: *mut Call) -> i32 {
    // SAFETY: who calls has it for himself.
    match unsafe { call.as_mut() }.and_then(balance) {
        Some(()) => TAKEN,
        None => LEFT,
    }
}

#[inline(always)]
fn balance(call: &mut Call) -> Option<()> {
    let namespace = call.namespace;
    (call.key, call.frontend) = find(call.protocol, &call.called, || is_node(namespace))?;
    if call.frontend.flags & (GUARDED | LOCAL_OUTSIDE) != 0 && !is_node_that_may(call) {
        return None;
    }
    let flow = client(call.socket, &call.key);
    let is_flow = call.protocol == Protocol::Udp.number() && !call.is_lasting;
    // SAFETY: the value is copied at once.
    if is_flow
        && let Some(backend) = unsafe { UDP_CHOICES.get(flow) }.copied()
        && has(&call.key, &backend, ANYWHERE)
    {
        call.backend = backend;
        return Some(());
    }
    if call.frontend.affinity_seconds == 0 {
        call.backend = pick(&call.key, all(&call.frontend), all)?;
    } else {
        choose_again(call)?;
    }
    if is_flow {
        let _ = remember(&UDP_CHOICES, &flow, &call.backend);
    }
    count::connection(&MemberKey {
        frontend: call.key,
        backend: call.backend,
    });
    let peer = PeerKey {
        socket: call.socket,
        backend: call.backend,
        padding: 0,
    };
    let _ = if call.protocol == Protocol::Tcp.number() {
        remember(&TCP_PEERS, &peer, &call.called)
    } else {
        remember(&UDP_PEERS, &peer, &call.called)
    };
    Some(())
}

/// The back end that the client had before, if it still may.
#[inline(always)]
fn choose_again(call: &mut Call) -> Option<()> {
    let mut client = client(call.namespace, &call.key);
    note_affinity_key(&call.key, &mut client.frontend);
    let now = now();
    // SAFETY: the value is copied at once.
    let choice = unsafe { AFFINITY.get(client) }.copied();
    let limits = (call.frontend.affinity_seconds, ANYWHERE);
    call.backend = match choice.and_then(|choice| recall(&choice, now, &call.key, limits)) {
        Some(backend) => backend,
        None => pick(&call.key, all(&call.frontend), all)?,
    };
    let choice = Choice {
        used_at: now,
        backend: call.backend,
        padding: 0,
    };
    // Nothing is lost but the client's affinity if that fails.
    let _ = remember(&AFFINITY, &client, &choice);
    Some(())
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
fn is_node_that_may(call: &Call) -> bool {
    if !is_node(call.namespace) {
        return false;
    }
    if call.frontend.flags & GUARDED == 0 {
        return true;
    }
    // SAFETY: the value is copied at once.
    let Some(node) = (unsafe { DEVICES.get(THE_NODES_DEVICE) }).copied() else {
        return false;
    };
    let is_v4 = is_v4(&call.key.address);
    is_allowed(&call.key, if is_v4 { &node.v4 } else { &node.v6 })
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
