//! Connections that are over leave the tables, so that those that are open need not: a table without room forgets what was silent for
//! longest, be it open or not.
//!
//! With each new connection some earlier ones are looked at: those that both sides have closed after a second, in which the last
//! packets may come again, and all after the time that silent ones are remembered for. No clock is needed, and no agent.

use aya_ebpf::bindings::BPF_EXIST;
use aya_ebpf::btf_maps::Queue;
use proxyd_ebpf_common::{Flow, TIMEOUT, Tuple, Waiting};

use crate::flow::{SPARE_AFTER, is_spare, now, same_tuple};
use crate::maps::{BEGUN, CLOSED, EGRESS_FLOWS, INGRESS_FLOWS};
use crate::verified::{LEFT, TAKEN};

/// How many connections are looked at in each queue: more than one, or those that wait would not become fewer.
const LOOKED_AT: usize = 2;

/// Notes a connection that begins.
#[inline(always)]
pub fn note_begun(called: &Tuple, now: u64) {
    wait(&BEGUN, called, now);
}

/// Notes a connection that both sides have closed.
#[inline(always)]
pub fn note_closed(called: &Tuple, now: u64) {
    wait(&CLOSED, called, now);
}

/// Has a connection wait. Where there is no room, the one that waits for longest does so no more.
#[inline(always)]
fn wait<const SIZE: usize>(queue: &Queue<Waiting, SIZE>, called: &Tuple, now: u64) {
    let waiting = Waiting {
        called: *called,
        since: now,
    };
    // What does not wait stays until there is no room for it.
    let _ = queue.push(&waiting, BPF_EXIST.into());
}

/// Forgets earlier connections that are over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_forget(key: *mut Tuple) -> i32 {
    // SAFETY: who calls has it for himself.
    let Some(key) = (unsafe { key.as_mut() }) else {
        return LEFT;
    };
    let now = now();
    for _ in 0..LOOKED_AT {
        if let Some(called) = next(&CLOSED, SPARE_AFTER, now) {
            forget_if(&called, key, |flow| is_spare(flow, now));
        }
        if let Some(called) = next(&BEGUN, TIMEOUT, now)
            && forget_if(&called, key, |flow| !flow.is_alive(now)) == Some(false)
        {
            note_begun(&called, now);
        }
    }
    TAKEN
}

/// The connection that waits for longest, if it does for so long.
#[inline(always)]
fn next<const SIZE: usize>(
    queue: &Queue<Waiting, SIZE>,
    nanoseconds: u64,
    now: u64,
) -> Option<Tuple> {
    let first = queue.peek().ok()??;
    if now.saturating_sub(first.since) < nanoseconds {
        return None;
    }
    // Another processor may have taken that one meanwhile. The next one is as good: it is looked at all the same.
    Some(queue.pop().ok()??.called)
}

/// Forgets a connection if it is over in both directions; tells whether it was. `None`: it is not known any more.
#[inline(always)]
fn forget_if(called: &Tuple, key: &mut Tuple, is_over: impl Fn(&Flow) -> bool) -> Option<bool> {
    // SAFETY: it is looked at at once.
    let flow = unsafe { INGRESS_FLOWS.get(called)? };
    if !is_over(flow) {
        return Some(false);
    }
    let own = flow.to;
    *key = own.reversed();
    // SAFETY: it is looked at at once.
    if let Some(answers) = unsafe { EGRESS_FLOWS.get(&*key) }
        && same_tuple(&answers.to.reversed(), called)
    {
        if !is_over(answers) {
            return Some(false);
        }
        let _ = EGRESS_FLOWS.remove(&*key);
    }
    // SAFETY: it is looked at at once.
    if let Some(masqueraded) = unsafe { EGRESS_FLOWS.get(&own) } {
        *key = masqueraded.to.reversed();
        // SAFETY: it is looked at at once.
        let answers = unsafe { INGRESS_FLOWS.get(&*key) };
        if answers.is_some_and(|answers| same_tuple(&answers.to.reversed(), &own)) {
            let _ = INGRESS_FLOWS.remove(&*key);
        }
        let _ = EGRESS_FLOWS.remove(&own);
    }
    let _ = INGRESS_FLOWS.remove(called);
    Some(true)
}

/// Forgets a masqueraded connection that is known by its answers, if it is not an earlier one of the same client and port.
#[inline(always)]
pub fn forget_masqueraded(answers: &Tuple, own: &Tuple) -> Option<()> {
    // SAFETY: it is copied at once.
    let to_client = unsafe { INGRESS_FLOWS.get(answers)? }.to;
    if same_tuple(&to_client, own) {
        return None;
    }
    let _ = EGRESS_FLOWS.remove(to_client.reversed());
    // SAFETY: it is copied at once.
    let called = unsafe { EGRESS_FLOWS.get(to_client)? }.to.reversed();
    let _ = EGRESS_FLOWS.remove(to_client);
    INGRESS_FLOWS.remove(called).ok()
}
