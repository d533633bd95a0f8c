//! The fast path (`--fast-path`): packets of a connection that is known go from device to device, past the node's routing and
//! its firewall. The first packet of a connection never does.
//!
//! Nobody is asked where a receiver is; that is seen. A client that came in at the device of a pod is there, and so is a back end
//! that answers from one: its packets are handed to the pod as if they had come out of its device there. To others answers go
//! as the kernel sends them, which has to route one of them every second to show.

use aya_ebpf::helpers::{bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use proxyd_ebpf_common::{BY_ROUTES, Device, Flow, NOT_KNOWN, TO_NEIGHBOUR, TO_POD, Tuple, ticks};

use crate::flow::{now, same_tuple, touch};
use crate::maps::{DEVICES, EGRESS_FLOWS, INGRESS_FLOWS, SETTINGS};
use crate::packet::{Packet, TCP, device};
use crate::translate::translate;
use crate::work::{Direction, Work};
use crate::{ETHERNET, SHOT, UNSPEC};

/// What the kernel says of packets that are for this machine, or for a pod behind it.
const PACKET_HOST: u32 = 0;

/// Whether the agent wants it.
#[inline(always)]
pub fn is_wanted() -> bool {
    SETTINGS
        .get(0)
        .is_some_and(|settings| settings.has_fast_path != 0)
}

/// Notes the way back to a client whose first packet this is, for a new connection.
#[inline(always)]
pub fn note_client(ctx: &TcContext, flow: &mut Flow) {
    flow.go_by_routes();
    if !is_wanted() {
        return;
    }
    flow.way = NOT_KNOWN;
    if is_at_pod(ctx)
        && let Some(frame) = answering_frame(ctx)
    {
        flow.way = TO_POD;
        flow.device = device(ctx);
        flow.frame = frame;
    }
}

/// An answer of a back end, which elsewhere would be translated as it goes out. `None`: it is none, or has no way yet.
#[inline(always)]
pub fn answer(ctx: &TcContext, work: &mut Work) -> Option<i32> {
    let flow = EGRESS_FLOWS.get_ptr_mut(&work.packet.tuple)?;
    // SAFETY: others may write to it meanwhile, which costs no more than a wrong time.
    let flow = unsafe { &mut *flow };
    let now = now();
    if flow.way == BY_ROUTES || !flow.is_alive(now) {
        return None;
    }
    if flow.has_told == 0 {
        flow.has_told = 1;
        tell(ctx, work, &flow.to);
    }
    if !can_take(ctx, work, flow, now) {
        return None;
    }
    touch(work, flow, now, Direction::Out);
    Some(send(ctx, work, flow, Direction::Out))
}

/// Tells packets to a back end, whose answer this is, where it is: at a pod's device.
#[inline(always)]
fn tell(ctx: &TcContext, work: &mut Work, answered: &Tuple) -> Option<()> {
    if !is_at_pod(ctx) {
        return None;
    }
    let Work { packet, key, .. } = work;
    *key = answered.reversed();
    let there = INGRESS_FLOWS.get_ptr_mut(&*key)?;
    // SAFETY: others may write to it meanwhile; what is written is the same for all of them.
    let there = unsafe { &mut *there };
    *key = packet.tuple.reversed();
    if same_tuple(&there.to, key) {
        there.device = device(ctx);
        there.frame = answering_frame(ctx)?;
        there.way = TO_POD;
    }
    Some(())
}

/// Notes that the kernel sends answers out here.
#[inline(always)]
pub fn note_way(ctx: &TcContext, flow: &mut Flow, l3: u32, now: u64) {
    if (flow.way == NOT_KNOWN || flow.way == TO_NEIGHBOUR) && l3 == ETHERNET {
        flow.device = device(ctx);
        flow.seen_at = ticks(now);
        flow.way = TO_NEIGHBOUR;
    }
}

/// Whether a packet can take the way of its flow: nobody but a router has to do with it.
#[inline(always)]
pub fn can_take(ctx: &TcContext, work: &Work, flow: &Flow, now: u64) -> bool {
    let packet = &work.packet;
    // SAFETY: the kernel gives a valid context.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    let header = if packet.is_v4 { 20 } else { 40 };
    if flow.way < TO_POD
        || kind != PACKET_HOST
        || packet.l3 != ETHERNET
        || packet.l4 - packet.l3 != header
        || packet.is_error()
        || !packet.has_l4
        || hops(ctx, packet).is_none_or(|hops| hops < 2)
    {
        return false;
    }
    // SAFETY: the value is copied at once.
    let Some(Device { is_of_pod, mtu, .. }) = (unsafe { DEVICES.get(flow.device) }).copied() else {
        // It is gone, and the kernel may know another.
        return false;
    };
    if flow.way == TO_POD {
        is_of_pod != 0
    } else {
        flow.seen_at == ticks(now) && fits(ctx, packet, mtu)
    }
}

/// Translates a packet and sends it the way of its flow.
#[inline(always)]
pub fn send(ctx: &TcContext, work: &mut Work, flow: &Flow, direction: Direction) -> i32 {
    let (way, device, frame) = (flow.way, flow.device, flow.frame);
    match translate(ctx, work, &flow.to, direction) {
        UNSPEC => {}
        refused => return refused,
    }
    if pass_router(ctx, &work.packet).is_err() {
        return SHOT;
    }
    if way == TO_POD {
        if ctx.store(0, &frame, 0).is_err() {
            return SHOT;
        }
        // SAFETY: a helper that takes numbers.
        (unsafe { bpf_redirect_peer(device, 0) }) as i32
    } else {
        // SAFETY: without a next hop, the kernel looks for it.
        (unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) }) as i32
    }
}

/// Where the number of routers is that may follow, behind the IP header's begin.
#[inline(always)]
fn place_of_hops(packet: &Packet) -> usize {
    let behind = if packet.is_v4 { 8 } else { 7 };
    (packet.l3 + behind) as usize
}

#[inline(always)]
fn hops(ctx: &TcContext, packet: &Packet) -> Option<u8> {
    ctx.load(place_of_hops(packet)).ok()
}

/// Counts one router.
#[inline(always)]
fn pass_router(ctx: &TcContext, packet: &Packet) -> Result<(), i64> {
    let at = place_of_hops(packet);
    let hops: u8 = ctx.load(at)?;
    let less = hops.wrapping_sub(1);
    if packet.is_v4 {
        let [before, after] = [hops, less].map(|hops| u64::from(u16::from_ne_bytes([hops, 0])));
        ctx.l3_csum_replace(packet.l3 as usize + 10, before, after, 2)?;
    }
    ctx.store(at, &less, 0)
}

/// Whether a packet is no longer than a device takes it; one that will be cut, whether its parts are.
#[inline(always)]
fn fits(ctx: &TcContext, packet: &Packet, mtu: u32) -> bool {
    // SAFETY: the kernel gives a valid context.
    let part = unsafe { (*ctx.skb.skb).gso_size };
    if part == 0 {
        return ctx.len() - packet.l3 <= mtu;
    }
    let header = if packet.tuple.protocol == TCP {
        let Ok(length) = ctx.load::<u8>(packet.l4 as usize + 12) else {
            return false;
        };
        u32::from(length >> 4) * 4
    } else {
        8
    };
    packet.l4 - packet.l3 + header + part <= mtu
}

#[inline(always)]
fn is_at_pod(ctx: &TcContext) -> bool {
    // SAFETY: the value is looked at at once.
    unsafe { DEVICES.get(device(ctx)) }.is_some_and(|device| device.is_of_pod != 0)
}

/// The addresses of an Ethernet frame that answers this one.
#[inline(always)]
fn answering_frame(ctx: &TcContext) -> Option<[u16; 6]> {
    let [a, b, c, d, e, f]: [u16; 6] = ctx.load(0).ok()?;
    Some([d, e, f, a, b, c])
}
