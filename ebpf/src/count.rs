//! Counts connections, and packets that devices translate, by front end and back end.

use proxyd_ebpf_common::{Counter, Destination, FrontendKey, MemberKey};

use crate::maps::COUNTERS;

/// Counts a new connection.
#[inline(always)]
pub fn connection(frontend: &FrontendKey, backend: &Destination) {
    add(frontend, backend, |counter| counter.connections += 1);
}

/// Counts a packet to a back end.
#[inline(always)]
pub fn packet(frontend: &FrontendKey, backend: &Destination, bytes: u32) {
    add(frontend, backend, |counter| {
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    });
}

#[inline(always)]
fn add(frontend: &FrontendKey, backend: &Destination, count: impl FnOnce(&mut Counter)) {
    let key = MemberKey {
        frontend: *frontend,
        backend: *backend,
    };
    if COUNTERS.get_ptr(key).is_none() {
        // What is not counted goes on all the same.
        let _ = COUNTERS.insert(key, Counter::default(), 0);
    }
    if let Some(counter) = COUNTERS.get_ptr_mut(key) {
        // SAFETY: it is that of this processor.
        count(unsafe { &mut *counter });
    }
}
