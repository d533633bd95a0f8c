//! A packet comes in at a device: to a Service's back end instead of the Service, or to a client instead of the node.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxyd_ebpf_common::{
    ANYWHERE, Address, Choice, Destination, FIRST_LOCAL, Frontend, GUARDED, HERE, LOCAL_OUTSIDE,
    MASQUERADE_ALL, MASQUERADE_OUTSIDE, NetworkKey, SourceKey, hash_of_client, hash_of_flow,
};

use crate::address::same;
use crate::flow::{NO_FRONTEND, answers_are_taken, begin, goes_on, now, receiver, touch};
use crate::forget::{note_begun, proxyd_forget};
use crate::frontend::{List, find, is_allowed, note_affinity_key, pick, recall};
use crate::maglev::look_up;
use crate::maps::{DEVICES, INGRESS_FLOWS, POD_NETWORKS, SETTINGS, SOURCE_AFFINITY};
use crate::packet::{Packet, device, parse};
use crate::redirect::{answer, can_take, note_client, send};
use crate::translate::{is_translated, translate};
use crate::verified::{LEFT, TAKEN};
use crate::work::{Direction, Work, work};
use crate::{ETHERNET, NO_LINK_LAYER, SHOT, UNSPEC};
use crate::{count, maps, redirect};

#[classifier]
pub fn proxyd_in(ctx: TcContext) -> i32 {
    take(&ctx, ETHERNET).unwrap_or(UNSPEC)
}

#[classifier]
pub fn proxyd_in_l3(ctx: TcContext) -> i32 {
    take(&ctx, NO_LINK_LAYER).unwrap_or(UNSPEC)
}

/// `None`: the packet is left as it is.
#[inline(always)]
fn take(ctx: &TcContext, l3: u32) -> Option<i32> {
    let work = work(Direction::In)?;
    parse(ctx, l3, work)?;
    if is_translated(ctx, &work.packet, Direction::In) {
        return None;
    }
    let has_fast_path = redirect::is_wanted();
    let flow = INGRESS_FLOWS.get_ptr_mut(&work.packet.tuple);
    if let Some(flow) = flow {
        // SAFETY: others may write to it meanwhile, which costs no more than a wrong time.
        let flow = unsafe { &mut *flow };
        let now = now();
        if goes_on(flow, &work.packet, now) {
            touch(work, flow, now, Direction::In);
            if flow.frontend.port != 0 && !work.packet.is_error() {
                work.member.frontend = flow.frontend;
                work.member.backend = receiver(&flow.to);
                count::packet(&work.member, ctx.len(), false);
            }
            if has_fast_path && can_take(ctx, work, flow, now) {
                return Some(send(ctx, work, flow, Direction::In));
            }
            return Some(translate(ctx, work, &flow.to, Direction::In));
        }
    } else if has_fast_path && let Some(sent) = answer(ctx, work) {
        return Some(sent);
    }
    if !work.packet.may_begin() {
        return None;
    }
    match proxyd_begin(ctx.skb.skb, work) {
        BEGUN => {}
        REFUSED => return Some(SHOT),
        DIRECTLY => {
            if flow.is_some() {
                let _ = INGRESS_FLOWS.remove(&work.packet.tuple);
            }
            return None;
        }
        _ => return None,
    }
    proxyd_forget(&raw mut work.key);
    let to = work.flow.to;
    Some(translate(ctx, work, &to, Direction::In))
}

/// What becomes of a packet that may be the first one of a connection: it is, or no back end is there for it, or it is one of a
/// connection that no front end has to do with. Else rules find one.
const BEGUN: i32 = 1;
const REFUSED: i32 = 2;
const DIRECTLY: i32 = 3;
const BY_RULES: i32 = 4;

/// Begins a connection with a packet that may be its first one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_begin(skb: *mut __sk_buff, work: *mut Work) -> i32 {
    // SAFETY: who calls has it for himself.
    let Some(work) = (unsafe { work.as_mut() }) else {
        return REFUSED;
    };
    let ctx = &TcContext::new(skb);
    let masqueraded = match begin_at_frontend(ctx, work) {
        Begins::Balanced { masqueraded } => masqueraded,
        Begins::Refused => return REFUSED,
        Begins::ByRules => return BY_RULES,
        Begins::Directly if answers_are_taken(work) => {
            // The client gets another port.
            work.member.frontend = NO_FRONTEND;
            work.member.backend = receiver(&work.packet.tuple);
            false
        }
        Begins::Directly => return DIRECTLY,
    };
    let now = now();
    note_client(ctx, &mut work.flow);
    if begin(work, masqueraded, now).is_none() {
        return REFUSED;
    }
    note_begun(&work.packet.tuple, now);
    if work.member.frontend.port != 0 {
        count::packet(&work.member, ctx.len(), true);
    }
    BEGUN
}

/// How a connection begins.
enum Begins {
    /// With a front end and a back end, which are noted.
    Balanced { masqueraded: bool },
    /// With a front end that has no back end for it.
    Refused,
    /// With a front end whose back ends found no room here.
    ByRules,
    /// Without a front end.
    Directly,
}

#[inline(always)]
fn begin_at_frontend(ctx: &TcContext, work: &mut Work) -> Begins {
    let tuple = &work.packet.tuple;
    let Some((key, frontend)) = find(tuple.protocol, &receiver(tuple), || false) else {
        return Begins::Directly;
    };
    work.member.frontend = key;
    work.frontend = frontend;
    if frontend.flags & GUARDED != 0 && !is_allowed(&key, &tuple.source) {
        return Begins::Refused;
    }
    let is_pod = is_pod(ctx, &tuple.source);
    let is_local = frontend.flags & LOCAL_OUTSIDE != 0 && !is_pod;
    if proxyd_choose_for(work, is_local.into()) != TAKEN {
        return match list(&work.frontend, is_local).count {
            0 => Begins::Refused,
            _ => Begins::ByRules,
        };
    }
    let Packet { tuple, is_v4, .. } = &work.packet;
    let flags = work.frontend.flags;
    Begins::Balanced {
        masqueraded: flags & MASQUERADE_ALL != 0
            || (flags & MASQUERADE_OUTSIDE != 0 && !is_pod && knows_pods(*is_v4))
            || same(&work.member.backend.address, &tuple.source),
    }
}

/// Chooses and notes the back end of a new connection, one of all or one on this node (`is_local`, 1 or 0). [`LEFT`]: none is there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_choose_for(work: *mut Work, is_local: u32) -> i32 {
    // SAFETY: who calls has it for himself.
    let chosen = unsafe { work.as_mut() }.and_then(|work| {
        work.member.backend = choose(work, is_local != 0)?;
        Some(())
    });
    match chosen {
        Some(()) => TAKEN,
        None => LEFT,
    }
}

#[inline(always)]
fn choose(work: &mut Work, is_local: bool) -> Option<Destination> {
    let Work {
        packet,
        client,
        member,
        frontend,
        ..
    } = work;
    let (tuple, key) = (&packet.tuple, &member.frontend);
    client.source = tuple.source;
    client.padding = 0;
    let keeps = frontend.affinity_seconds != 0;
    if keeps {
        note_affinity_key(key, &mut client.frontend);
        let wanted = if is_local { HERE } else { ANYWHERE };
        let now = now();
        // SAFETY: the value is copied at once.
        let choice = unsafe { SOURCE_AFFINITY.get(&*client) }.copied();
        let limits = (frontend.affinity_seconds, wanted);
        if let Some(backend) = choice.and_then(|choice| recall(&choice, now, key, limits)) {
            remember(client, backend, now);
            return Some(backend);
        }
    }
    // The table of a front end with local back ends is one of those.
    let is_hashed = frontend.flags & LOCAL_OUTSIDE == 0 || is_local;
    let hash = if keeps {
        hash_of_client(&tuple.source, &client.frontend)
    } else {
        let ports = [tuple.source_port, tuple.destination_port];
        hash_of_flow(&tuple.source, ports, tuple.protocol)
    };
    let list = |frontend: &Frontend| list(frontend, is_local);
    let backend =
        look_up(&frontend.table, hash, is_hashed).or_else(|| pick(key, list(frontend), list))?;
    if keeps {
        remember(client, backend, now());
    }
    Some(backend)
}

/// Has a client keep its back end.
#[inline(always)]
fn remember(client: &SourceKey, backend: Destination, now: u64) {
    let choice = Choice {
        used_at: now,
        backend,
        padding: 0,
    };
    // Nothing is lost but the client's affinity if that fails.
    let _ = maps::remember(&SOURCE_AFFINITY, client, &choice);
}

/// The back ends that a client may get: those on this node, or all.
#[inline(always)]
fn list(frontend: &Frontend, is_local: bool) -> List {
    if is_local {
        List {
            first: FIRST_LOCAL,
            count: frontend.local,
        }
    } else {
        List {
            first: 0,
            count: frontend.count,
        }
    }
}

#[inline(always)]
fn knows_pods(is_v4: bool) -> bool {
    let Some(settings) = SETTINGS.get(0) else {
        return false;
    };
    let [v4, v6] = settings.knows_pods;
    let knows = if is_v4 { v4 } else { v6 };
    knows != 0
}

#[inline(always)]
fn is_pod(ctx: &TcContext, source: &Address) -> bool {
    // SAFETY: the value is looked at at once.
    let has_pods = unsafe { DEVICES.get(device(ctx)) }.is_some_and(|device| device.has_pods != 0);
    let address = NetworkKey { address: *source };
    let bits = 8 * size_of::<NetworkKey>() as u32;
    has_pods || POD_NETWORKS.get(&Key::new(bits, address)).is_some()
}
