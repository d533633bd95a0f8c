//! Counts connections, and packets that devices translate, by front end and back end.

use proxyd_ebpf_common::{Counter, MemberKey};

use crate::maps::COUNTERS;

/// Counts a connection of a socket.
#[inline(always)]
pub fn connection(member: &MemberKey) {
    add(member, |counter| counter.connections += 1);
}

/// Counts a packet to a back end, and with the first one its connection.
#[inline(always)]
pub fn packet(member: &MemberKey, bytes: u32, is_first: bool) {
    add(member, |counter| {
        counter.connections += u64::from(is_first);
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    });
}

#[inline(always)]
fn add(member: &MemberKey, count: impl FnOnce(&mut Counter)) {
    let counter = COUNTERS.get_ptr_mut(member).or_else(|| {
        // What is not counted goes on all the same.
        let _ = COUNTERS.insert(member, Counter::default(), 0);
        COUNTERS.get_ptr_mut(member)
    });
    if let Some(counter) = counter {
        // SAFETY: it is that of this processor.
        count(unsafe { &mut *counter });
    }
}
