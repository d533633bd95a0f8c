//! A packet goes out at a device: from the Service that a client called instead of the back end, or from the node instead of
//! the client.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxyd_ebpf_common::{Address, Flow, PENDING};

use crate::flow::{masquerade, now, touch};
use crate::maps::{DEVICES, EGRESS_FLOWS};
use crate::packet::{device, parse};
use crate::redirect::note_way;
use crate::translate::{is_translated, translate};
use crate::verified::{LEFT, TAKEN};
use crate::work::{Direction, Work, work};
use crate::{ETHERNET, NO_LINK_LAYER, SHOT, UNSPEC};

#[classifier]
pub fn proxyd_out(ctx: TcContext) -> i32 {
    take(&ctx, ETHERNET).unwrap_or(UNSPEC)
}

#[classifier]
pub fn proxyd_out_l3(ctx: TcContext) -> i32 {
    take(&ctx, NO_LINK_LAYER).unwrap_or(UNSPEC)
}

/// `None`: the packet is left as it is.
#[inline(always)]
fn take(ctx: &TcContext, l3: u32) -> Option<i32> {
    let work = work(Direction::Out)?;
    parse(ctx, l3, work)?;
    if is_translated(ctx, &work.packet, Direction::Out) {
        return None;
    }
    let flow = EGRESS_FLOWS.get_ptr_mut(&work.packet.tuple)?;
    // SAFETY: others may write to it meanwhile, which costs no more than a wrong time.
    let flow = unsafe { &mut *flow };
    let now = now();
    if !flow.is_alive(now) {
        return None;
    }
    if flow.state == PENDING && proxyd_masquerade(ctx.skb.skb, work, flow, now) != TAKEN {
        return Some(SHOT);
    }
    touch(work, flow, now, Direction::Out);
    note_way(ctx, flow, l3, now);
    Some(translate(ctx, work, &flow.to, Direction::Out))
}

/// Masquerades a connection, whose first packet this is, with an address that the device has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_masquerade(
    skb: *mut __sk_buff,
    work: *mut Work,
    flow: *mut Flow,
    now: u64,
) -> i32 {
    // SAFETY: who calls has them for himself, but for what others may write to the flow meanwhile.
    let (Some(work), Some(flow)) = (unsafe { (work.as_mut(), flow.as_mut()) }) else {
        return LEFT;
    };
    // SAFETY: the value is copied at once.
    let Some(device) = (unsafe { DEVICES.get(device(&TcContext::new(skb))) }) else {
        return LEFT;
    };
    let node = if work.packet.is_v4 {
        device.v4
    } else {
        device.v6
    };
    // Nobody could answer to no address.
    if node == Address::NONE || masquerade(work, flow, &node, now).is_none() {
        return LEFT;
    }
    TAKEN
}
