//! Translates a packet, once on its way in and once on its way out: it may pass several devices, such as a port of a bridge and the
//! bridge.
//!
//! What was translated is marked in `tc_index`, which nothing else uses but qdiscs with a classifier that sets it. The mark is a
//! hash of what the packet is then, at this node: whoever gets it in another namespace and sends it on as something else has a
//! packet that was never seen.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxyd_ebpf_common::Tuple;

use crate::maps::SETTINGS;
use crate::packet::Packet;
use crate::rewrite::rewrite;
use crate::work::{Direction, Work};
use crate::{SHOT, UNSPEC};

/// Any large odd number whose bits look random.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Makes the packet be of another connection; tells what becomes of it.
#[inline(always)]
pub fn translate(ctx: &TcContext, work: &mut Work, to: &Tuple, direction: Direction) -> i32 {
    work.key = *to;
    proxyd_translate(ctx.skb.skb, work, direction as u32)
}

/// What is behind [`translate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_translate(skb: *mut __sk_buff, work: *mut Work, direction: u32) -> i32 {
    // SAFETY: who calls has it for himself.
    let Some(Work { packet, key, .. }) = (unsafe { work.as_mut() }) else {
        return SHOT;
    };
    let ctx = TcContext::new(skb);
    if rewrite(&ctx, packet, key).is_err() {
        return SHOT;
    }
    let mark = mark(key, direction);
    // SAFETY: the kernel gives a valid context.
    unsafe { (*skb).tc_index = mark };
    UNSPEC
}

/// Whether a packet was made what it is by [`translate`], on the same way.
#[inline(always)]
pub fn is_translated(ctx: &TcContext, packet: &Packet, direction: Direction) -> bool {
    // SAFETY: the kernel gives a valid context.
    let there = unsafe { (*ctx.skb.skb).tc_index };
    there != 0 && there == mark(&packet.tuple, direction as u32)
}

/// 16 bits that are not zero. The highest one is the direction: what came in is never taken for what went out already.
#[inline(always)]
fn mark(tuple: &Tuple, direction: u32) -> u32 {
    let node = SETTINGS
        .get(0)
        .map_or(0, |settings| settings.node_namespace);
    let hash = tuple
        .words()
        .iter()
        .fold(node << 1 | u64::from(direction), |hash, word| {
            let mixed = (hash ^ word).wrapping_mul(MIX);
            mixed ^ mixed >> 32
        });
    (hash as u32 & 0x7fff).max(1) | direction << 15
}
