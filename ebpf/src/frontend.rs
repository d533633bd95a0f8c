//! Front ends and their back ends, as sockets and devices look them up.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use proxyd_ebpf_common::{
    AT_ADDRESS, Address, AllowedKey, BackendKey, Choice, Destination, Frontend, FrontendKey,
    MemberKey, NODE_PORT_V4, NODE_PORT_V6, THE_NODE,
};

use crate::address::is_v4;
use crate::maps::{AFFINITY_KEYS, ALLOWED, BACKENDS, FRONTENDS, MEMBERS, NODE_ADDRESSES};

const NANOSECONDS: u64 = 1_000_000_000;

/// The front end that is called: one at this address, or a NodePort.
#[inline(always)]
pub fn find(
    protocol: u8,
    called: &Destination,
    is_node: impl FnOnce() -> bool,
) -> Option<(FrontendKey, Frontend)> {
    let mut key = FrontendKey {
        address: called.address,
        port: called.port,
        protocol,
        kind: AT_ADDRESS,
    };
    // SAFETY: the value is copied at once.
    if let Some(frontend) = unsafe { FRONTENDS.get(key) } {
        return Some((key, *frontend));
    }
    // SAFETY: the value is copied at once.
    let who = unsafe { *NODE_ADDRESSES.get(called.address)? };
    if who == THE_NODE && !is_node() {
        return None;
    }
    key.address = Address::NONE;
    key.kind = if is_v4(&called.address) {
        NODE_PORT_V4
    } else {
        NODE_PORT_V6
    };
    // SAFETY: the value is copied at once.
    let frontend = unsafe { *FRONTENDS.get(key)? };
    Some((key, frontend))
}

/// A list of back ends of a front end.
#[derive(Clone, Copy)]
pub struct List {
    /// The index of the first.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// Any of the back ends, each as likely as the others.
#[inline(always)]
pub fn pick(
    key: &FrontendKey,
    list: List,
    of: impl FnOnce(&Frontend) -> List,
) -> Option<Destination> {
    one_of(key, list).or_else(|| {
        // There are fewer now.
        // SAFETY: the value is copied at once.
        let frontend = unsafe { *FRONTENDS.get(key)? };
        one_of(key, of(&frontend))
    })
}

#[inline(always)]
fn one_of(key: &FrontendKey, list: List) -> Option<Destination> {
    if list.count == 0 {
        return None;
    }
    let key = BackendKey {
        frontend: *key,
        // SAFETY: a helper without arguments.
        index: list.first + unsafe { bpf_get_prandom_u32() } % list.count,
    };
    // SAFETY: the value is copied at once.
    unsafe { BACKENDS.get(key).copied() }
}

/// What was chosen not too long ago, if it is still one of those that are `wanted`.
#[inline(always)]
pub fn recall(
    choice: &Choice,
    now: u64,
    frontend: &FrontendKey,
    (seconds, wanted): (u32, u8),
) -> Option<Destination> {
    let is_over = now.saturating_sub(choice.used_at) >= u64::from(seconds) * NANOSECONDS;
    (!is_over && has(frontend, &choice.backend, wanted)).then_some(choice.backend)
}

/// Notes the front end under which the choices of clients of this one are remembered.
#[inline(always)]
pub fn note_affinity_key(frontend: &FrontendKey, key: &mut FrontendKey) {
    // SAFETY: the value is copied at once.
    *key = match unsafe { AFFINITY_KEYS.get(frontend) } {
        Some(shared) => *shared,
        None => *frontend,
    };
}

/// Whether a source may call a front end that only some may.
#[inline(always)]
pub fn is_allowed(frontend: &FrontendKey, source: &Address) -> bool {
    let key = AllowedKey {
        frontend: *frontend,
        source: *source,
    };
    let bits = 8 * size_of::<AllowedKey>() as u32;
    ALLOWED.get(&Key::new(bits, key)).is_some()
}

/// Whether a front end has a back end in one of the lists that are `wanted`.
#[inline(always)]
pub fn has(frontend: &FrontendKey, backend: &Destination, wanted: u8) -> bool {
    let member = MemberKey {
        frontend: *frontend,
        backend: *backend,
    };
    // SAFETY: the value is copied at once.
    unsafe { MEMBERS.get(member) }.is_some_and(|lists| *lists & wanted != 0)
}
