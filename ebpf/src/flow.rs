//! Connections that devices carry: whether they go on, and what is remembered of new ones.
//!
//! Packets that come in get another receiver, and packets that go out another sender, so that in between, where the kernel routes them, they
//! come from where it expects them. A connection so has an entry for each hook that changes its packets:
//!
//! ```text
//! in:   client → Service        becomes  client → back end
//! out:  client → back end       becomes  node → back end       if it is masqueraded
//! in:   back end → node         becomes  back end → client     if it is masqueraded
//! out:  back end → client       becomes  Service → client
//! ```

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns};
use proxyd_ebpf_common::{
    AGREED, ANYWHERE, AT_ADDRESS, Address, BY_ROUTES, CLOSING, Destination, ESTABLISHED, Flow,
    FrontendKey, HERE, MASQUERADE_PORTS, NEW, PENDING, Tuple, ticks,
};

use crate::address::same;
use crate::forget::{forget_masqueraded, note_closed};
use crate::frontend::has;
use crate::maps::{EGRESS_FLOWS, Flows, INGRESS_FLOWS, remember};
use crate::packet::{Packet, UDP};
use crate::verified::{LEFT, TAKEN};
use crate::work::{Direction, Work};

const SECOND: u64 = 1_000_000_000;

/// A client that asks again within this time has not heard from the back end yet.
const PATIENCE: u64 = 10 * SECOND;

/// How often a port is tried that may be taken: for a client that has to have another one, and for masquerade.
const TRIES: u32 = 16;
const MASQUERADE_TRIES: u16 = 64;

/// For how long the port of a connection is kept that is closed, or that may begin anew, when others want for ports.
pub const SPARE_AFTER: u64 = SECOND;

/// What a connection is called by that is not one to a front end: answers, or a client that has to have another port.
pub const NO_FRONTEND: FrontendKey = FrontendKey {
    address: Address::NONE,
    port: 0,
    protocol: 0,
    kind: AT_ADDRESS,
};

/// Nanoseconds since the machine started.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whether a packet that came in goes where those before it went.
#[inline(always)]
pub fn goes_on(flow: &Flow, packet: &Packet, now: u64) -> bool {
    if !flow.is_alive(now) {
        return false;
    }
    if packet.is_error() {
        return true;
    }
    if packet.is_syn() {
        // A client that has the same port as an earlier one.
        return flow.state != CLOSING && flow.is_silent_for(now) < PATIENCE;
    }
    let is_to_frontend = flow.frontend.port != 0;
    // UDP knows no end of a connection; it is over when the front end does not have the back end any more.
    packet.tuple.protocol != UDP
        || !is_to_frontend
        || has(&flow.frontend, &receiver(&flow.to), ANYWHERE | HERE)
}

/// Notes a packet. What both directions have to know is told to that of its answers, which is one of the other hook's flows: that a
/// connection is established, is closed or was reset, and, every second, that it is in use. Neither is forgotten before the other then.
#[inline(always)]
pub fn touch(work: &mut Work, flow: &mut Flow, now: u64, direction: Direction) {
    let Work { packet, key, .. } = work;
    if packet.is_error() {
        return;
    }
    let mut is_told = ticks(now) != ticks(flow.used_at);
    let mut closes = false;
    flow.used_at = now;
    if packet.closes() {
        closes = flow.state != CLOSING;
        is_told |= closes || packet.resets();
        flow.state = CLOSING;
    } else if packet.has_syn() {
        if flow.state == NEW && !packet.is_syn() {
            flow.state = AGREED;
        }
    } else if flow.state == NEW || flow.state == AGREED {
        flow.state = ESTABLISHED;
        is_told = true;
    }
    if !is_told {
        return;
    }
    let answers = match direction {
        Direction::In => &EGRESS_FLOWS,
        Direction::Out => &INGRESS_FLOWS,
    };
    *key = flow.to.reversed();
    let Some(there) = answers.get_ptr_mut(&*key) else {
        if flow.frontend.port != 0 {
            restore_answers(work, flow, answers);
        }
        return;
    };
    // SAFETY: others may write to it meanwhile, which costs no more than a wrong time.
    let there = unsafe { &mut *there };
    *key = packet.tuple.reversed();
    if !same_tuple(&there.to, key) {
        return;
    }
    there.used_at = now;
    if packet.resets() {
        there.state = CLOSING;
    } else if closes && there.state == CLOSING && flow.frontend.port != 0 {
        *key = match direction {
            Direction::In => packet.tuple,
            Direction::Out => flow.to.reversed(),
        };
        note_closed(key, now);
    } else if there.state == AGREED && flow.state == ESTABLISHED {
        there.state = ESTABLISHED;
    }
}

/// Remembers anew how answers are translated: where there was no room for all, that was forgotten.
#[inline(always)]
fn restore_answers(work: &mut Work, flow: &Flow, answers: &Flows) {
    let Work {
        packet,
        key,
        flow: there,
        ..
    } = work;
    there.to = packet.tuple.reversed();
    there.used_at = flow.used_at;
    there.frontend = flow.frontend;
    there.state = flow.state;
    there.go_by_routes();
    // If that fails there is no room for it now either.
    let _ = answers.insert(&*key, &*there, BPF_NOEXIST.into());
}

/// Remembers a new connection with the front end and the back end that are noted, whose first packet has come in, and the way to the
/// client, which is noted too. `None`: no port is left for it.
#[inline(always)]
pub fn begin(work: &mut Work, masqueraded: bool, now: u64) -> Option<()> {
    let Work {
        packet,
        key,
        flow,
        member,
        ..
    } = work;
    flow.to = packet.tuple.reversed();
    flow.used_at = now;
    flow.frontend = member.frontend;
    flow.state = NEW;
    // Answers to the node pass two hooks.
    if masqueraded {
        flow.way = BY_ROUTES;
    }
    key.source = member.backend.address;
    key.source_port = member.backend.port;
    key.destination = packet.tuple.source;
    key.destination_port = packet.tuple.source_port;
    key.protocol = packet.tuple.protocol;
    key.padding = [0; 3];
    // The client may talk to the same back end by another front end from the same port already. And of one that calls
    // itself, packets there and back must not look the same.
    let mut tries = 0;
    while proxyd_claim(key, flow, now) != TAKEN {
        tries += 1;
        if tries == TRIES {
            return None;
        }
        key.destination_port = (1_024 + random(64_512)).to_be();
    }
    *key = key.reversed();
    flow.way = BY_ROUTES;
    if masqueraded {
        flow.to = *key;
        flow.state = PENDING;
        flow.frontend = NO_FRONTEND;
        remember(&EGRESS_FLOWS, key, flow)?;
        flow.state = NEW;
    } else {
        let _ = EGRESS_FLOWS.remove(&*key);
    }
    flow.to = *key;
    flow.frontend = member.frontend;
    remember(&INGRESS_FLOWS, &packet.tuple, flow)
}

/// Remembers how answers are translated, if they are not those of another connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_claim(key: *const Tuple, flow: *const Flow, now: u64) -> i32 {
    // SAFETY: who calls has them for himself.
    let (Some(key), Some(flow)) = (unsafe { (key.as_ref(), flow.as_ref()) }) else {
        return LEFT;
    };
    if same_tuple(key, &key.reversed()) {
        return LEFT;
    }
    // SAFETY: it is looked at at once.
    if let Some(there) = unsafe { EGRESS_FLOWS.get(key) }
        && there.is_alive(now)
        && !same_tuple(&there.to, &flow.to)
    {
        return LEFT;
    }
    match remember(&EGRESS_FLOWS, key, flow) {
        Some(()) => TAKEN,
        None => LEFT,
    }
}

/// Whether answers to a packet that no front end has would be taken for those of a connection to one: the client talks to the same
/// receiver by that, from the same port.
#[inline(always)]
pub fn answers_are_taken(work: &mut Work) -> bool {
    let Work { packet, key, .. } = work;
    *key = packet.tuple.reversed();
    // SAFETY: it is looked at at once.
    unsafe { EGRESS_FLOWS.get(&*key) }.is_some_and(|there| there.is_alive(now()))
}

/// Chooses a port of the node for a connection that is to be masqueraded, whose first packet goes out: a free one, or that of a
/// connection that does without. `None`: none is left.
#[inline(always)]
pub fn masquerade(work: &mut Work, pending: &mut Flow, node: &Address, now: u64) -> Option<()> {
    let Work {
        packet,
        key,
        flow,
        spare_port: spare,
        ..
    } = work;
    *key = packet.tuple.reversed();
    flow.to = *key;
    flow.used_at = now;
    flow.frontend = NO_FRONTEND;
    flow.state = NEW;
    flow.way = BY_ROUTES;
    key.destination = *node;
    let (first, count) = MASQUERADE_PORTS;
    let start = random(count);
    let mut is_free = false;
    *spare = 0;
    for number in 0..MASQUERADE_TRIES {
        let port = (first + (start + number) % count).to_be();
        key.destination_port = port;
        match proxyd_port(key, now) {
            FREE => {
                is_free = true;
                break;
            }
            SPARE if *spare == 0 => *spare = port,
            _ => {}
        }
    }
    if !is_free {
        if *spare == 0 {
            return None;
        }
        key.destination_port = *spare;
        forget_masqueraded(key, &flow.to);
    }
    remember(&INGRESS_FLOWS, key, flow)?;
    pending.to = key.reversed();
    pending.state = NEW;
    Some(())
}

/// How a port is used: by nobody, by a connection that does without, or by one that needs it.
const FREE: i32 = 0;
const SPARE: i32 = 1;
const NEEDED: i32 = 2;

/// How a port of the node is used, where answers to it have this key.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_port(key: *const Tuple, now: u64) -> i32 {
    // SAFETY: who calls has it for himself.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return NEEDED;
    };
    // SAFETY: it is looked at at once.
    match unsafe { INGRESS_FLOWS.get(key) } {
        Some(there) if !there.is_alive(now) => FREE,
        Some(there) if is_spare(there, now) => SPARE,
        Some(_) => NEEDED,
        None => FREE,
    }
}

/// Whether a connection does without its port: its client begins anew if it has anything to say.
#[inline(always)]
pub fn is_spare(flow: &Flow, now: u64) -> bool {
    (flow.to.protocol == UDP || flow.state == CLOSING) && flow.is_silent_for(now) >= SPARE_AFTER
}

/// Any number below another.
#[inline(always)]
fn random(count: u16) -> u16 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_get_prandom_u32() } % u32::from(count)) as u16
}

/// Whom packets are sent to.
#[inline(always)]
pub fn receiver(tuple: &Tuple) -> Destination {
    Destination {
        address: tuple.destination,
        port: tuple.destination_port,
        padding: 0,
    }
}

#[inline(always)]
pub fn same_tuple(a: &Tuple, b: &Tuple) -> bool {
    same(&a.source, &b.source)
        && same(&a.destination, &b.destination)
        && a.source_port == b.source_port
        && a.destination_port == b.destination_port
        && a.protocol == b.protocol
}
