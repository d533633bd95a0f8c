//! Consistent hashing: what the tables look like, and where a flow is in them. The same on all nodes, whatever their
//! processors' byte order.

use crate::{Address, FrontendKey};

/// How many slots a piece of a table has. With the key and what the kernel puts around it, a piece fills 2 KiB.
pub const PIECE_SLOTS: u32 = 976;

/// A table, which sends flows to the back ends of a set. It is named by what it holds, and never changes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// A hash of its back ends.
    pub name: [u32; 3],
    /// How many slots it has; 0: there is no table.
    pub size: u32,
}

impl Table {
    /// Where there is no table.
    pub const NONE: Self = Self {
        name: [0; 3],
        size: 0,
    };
}

/// The key of a piece of a table.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceKey {
    /// The table.
    pub table: Table,
    /// Which piece it is, from 0 up.
    pub number: u32,
}

/// A piece of a table: for each slot, which of the table's back ends gets the flow.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The slots; those behind the end of the table are zero.
    pub slots: [u16; PIECE_SLOTS as usize],
}

/// The key of a back end of a table.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableKey {
    /// The table.
    pub table: Table,
    /// Which of its back ends.
    pub index: u32,
}

/// The hash of a flow, of a client and what it calls, but for the address, since every node has NodePorts at its own.
/// Ports are in network order.
#[must_use]
#[inline(always)]
pub const fn hash_of_flow(source: &Address, ports: [u16; 2], protocol: u8) -> u32 {
    let [from, to] = ports;
    let [from, to] = [u16::from_be(from) as u64, u16::from_be(to) as u64];
    hash(source, from << 32 | to << 16 | protocol as u64)
}

/// The hash of a client that keeps its back end of a Service port, which is named by the front end that all of the port share. Two
/// Services so choose independently.
#[must_use]
#[inline(always)]
pub const fn hash_of_client(source: &Address, shared: &FrontendKey) -> u32 {
    let port = (u16::from_be(shared.port) as u64) << 16;
    let beside = port | (shared.protocol as u64) << 8 | shared.kind as u64;
    hash(source, hash_of_address(&shared.address, beside))
}

#[inline(always)]
const fn hash(source: &Address, beside: u64) -> u32 {
    (hash_of_address(source, beside) >> 32) as u32
}

/// The hash of an address and something beside it.
#[must_use]
#[inline(always)]
pub const fn hash_of_address(address: &Address, beside: u64) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.0;
    let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let low = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
    mix(mix(mix(high) ^ low) ^ beside)
}

/// Each bit of the result depends on every bit that goes in: the end of MurmurHash3, made odd at the start so that zeros
/// do not stay zero.
#[inline(always)]
const fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let bits = (bits ^ bits >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

// The sums of the fields' sizes: there is no implicit padding.
const _: () = {
    assert!(size_of::<Table>() == 4 * 4);
    assert!(size_of::<PieceKey>() == 16 + 4);
    assert!(size_of::<Piece>() == 2 * PIECE_SLOTS as usize);
    assert!(size_of::<TableKey>() == 16 + 4);
};
