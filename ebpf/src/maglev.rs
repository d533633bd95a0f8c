//! Consistent hashing, as devices look it up: several nodes choose the same back end for a flow.

use core::hint::black_box;

use proxyd_ebpf_common::{Destination, PIECE_SLOTS, PieceKey, Table, TableKey};

use crate::maps::{TABLE_BACKENDS, TABLES};

/// The back end for a hash. `None`: it is not to be chosen so, or there is no such table, or not yet.
#[inline(always)]
pub fn look_up(table: &Table, hash: u32, is_hashed: bool) -> Option<Destination> {
    if !is_hashed || table.size == 0 {
        return None;
    }
    let slot = hash % table.size;
    let key = PieceKey {
        table: *table,
        number: slot / PIECE_SLOTS,
    };
    // SAFETY: the value is looked at at once.
    let piece = unsafe { TABLES.get(key)? };
    // The verifier does not see that a remainder is small, and believes only what it sees compared.
    let offset = black_box((slot % PIECE_SLOTS) as usize);
    let index = *piece.slots.get(offset)?;
    let key = TableKey {
        table: *table,
        index: index.into(),
    };
    // SAFETY: the value is copied at once.
    unsafe { TABLE_BACKENDS.get(key).copied() }
}
