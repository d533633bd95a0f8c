//! What a program at a device has at hand while it looks at a packet: more than fits a stack.

use proxyd_ebpf_common::{Flow, Frontend, MemberKey, SourceKey, Tuple};

use crate::maps::WORK;
use crate::packet::{Header, Packet};

/// Of one processor, for packets of one direction.
#[repr(C)]
pub struct Work {
    /// The packet.
    pub packet: Packet,
    /// The header of it that was looked at last.
    pub header: Header,
    /// A key that is looked up.
    pub key: Tuple,
    /// A value that is written.
    pub flow: Flow,
    /// Whose back end is remembered.
    pub client: SourceKey,
    /// The front end and the back end that it goes to.
    pub member: MemberKey,
    /// How the front end balances.
    pub frontend: Frontend,
    /// A port of the node that may be had for masquerade, if no other is free; 0: none.
    pub spare_port: u16,
}

/// Which way packets go.
#[derive(Clone, Copy)]
pub enum Direction {
    In = 0,
    Out = 1,
}

/// The one of this processor. Nothing interrupts a program at a device but one for the other direction.
#[inline(always)]
pub fn work(direction: Direction) -> Option<&'static mut Work> {
    let work = WORK.get_ptr_mut(direction as u32)?;
    // SAFETY: see above; all of it is integers.
    Some(unsafe { &mut *work })
}
