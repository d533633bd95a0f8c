//! Makes packets be from somebody else, or to somebody else, with their checksums right.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::bpf_csum_diff;
use aya_ebpf::programs::TcContext;
use proxyd_ebpf_common::{Address, Tuple};

use crate::address::{same, v4};
use crate::packet::{Packet, TCP};

type Result = core::result::Result<(), i64>;

/// Makes a packet be of another connection. An error about a packet of it is made to be about one of the other.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result {
    if packet.is_error() {
        rewrite_error(ctx, packet, to)
    } else {
        rewrite_packet(ctx, packet, to)
    }
}

#[inline(always)]
fn rewrite_packet(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result {
    let from = &packet.tuple;
    let change = addresses(from, to);
    if packet.is_v4 {
        ctx.l3_csum_replace(packet.l3 as usize + 10, 0, change, 0)?;
    }
    if packet.has_l4 {
        let (checksum, flags) = place_of_checksum(from.protocol);
        let checksum = (packet.l4 + checksum) as usize;
        let pseudo = flags | u64::from(BPF_F_PSEUDO_HDR);
        ctx.l4_csum_replace(checksum, 0, change, pseudo)?;
        ctx.l4_csum_replace(checksum, 0, ports(from, to), flags)?;
        let ports = [to.source_port, to.destination_port];
        ctx.store(packet.l4 as usize, &ports, 0)?;
    }
    set_source(ctx, packet, packet.l3, &to.source)?;
    set_destination(ctx, packet, packet.l3, &to.destination)
}

#[inline(always)]
fn rewrite_error(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result {
    let from = &packet.tuple;
    let checksum = packet.l4 as usize + 2;
    let change = addresses(from, to);
    // An IPv4 header's checksum makes up for its addresses.
    if packet.is_v4 {
        ctx.l3_csum_replace(packet.inner_l3 as usize + 10, 0, change, 0)?;
    } else {
        ctx.l4_csum_replace(checksum, 0, change, 0)?;
    }
    ctx.l4_csum_replace(checksum, 0, ports(from, to), 0)?;
    quoted_checksum(ctx, packet, to)?;
    // The packet inside went the other way.
    let ports = [to.destination_port, to.source_port];
    ctx.store(packet.inner_l4 as usize, &ports, 0)?;
    set_source(ctx, packet, packet.inner_l3, &to.destination)?;
    set_destination(ctx, packet, packet.inner_l3, &to.source)?;
    // A router on the way may speak for itself.
    if same(&packet.source, &from.source) {
        outer_checksum(ctx, packet, &from.source, &to.source)?;
        set_source(ctx, packet, packet.l3, &to.source)?;
    }
    if same(&packet.destination, &from.destination) {
        outer_checksum(ctx, packet, &from.destination, &to.destination)?;
        set_destination(ctx, packet, packet.l3, &to.destination)?;
    }
    Ok(())
}

/// Makes the checksum of the packet inside right, if so much of it is there.
#[inline(always)]
fn quoted_checksum(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result {
    let from = &packet.tuple;
    let (at, flags) = place_of_checksum(from.protocol);
    let at = (packet.inner_l4 + at) as usize;
    let before: u16 = ctx.load(at).unwrap_or(0);
    // Neither is it where only padding follows (RFC 4884, 5.5).
    if before == 0 {
        return Ok(());
    }
    ctx.l4_csum_replace(at, 0, addresses(from, to), flags)?;
    ctx.l4_csum_replace(at, 0, ports(from, to), flags)?;
    let after: u16 = ctx.load(at)?;
    let outer = packet.l4 as usize + 2;
    ctx.l4_csum_replace(outer, before.into(), after.into(), 2)
}

/// Where a transport protocol's checksum is, and how it is changed.
#[inline(always)]
fn place_of_checksum(protocol: u8) -> (u32, u64) {
    match protocol {
        TCP => (16, 0),
        // A datagram may have none: it stays so.
        _ => (6, u64::from(BPF_F_MARK_MANGLED_0)),
    }
}

#[inline(always)]
fn outer_checksum(ctx: &TcContext, packet: &Packet, from: &Address, to: &Address) -> Result {
    let change = difference::<16>(from.0.as_ptr(), to.0.as_ptr());
    if packet.is_v4 {
        ctx.l3_csum_replace(packet.l3 as usize + 10, 0, change, 0)
    } else {
        let flags = u64::from(BPF_F_PSEUDO_HDR);
        ctx.l4_csum_replace(packet.l4 as usize + 2, 0, change, flags)
    }
}

/// Where addresses are in the headers of IPv4 and IPv6.
const SOURCE: [u32; 2] = [12, 8];
const DESTINATION: [u32; 2] = [16, 24];

#[inline(always)]
fn set_source(ctx: &TcContext, packet: &Packet, l3: u32, to: &Address) -> Result {
    set_address(ctx, packet, (l3, SOURCE), to)
}

#[inline(always)]
fn set_destination(ctx: &TcContext, packet: &Packet, l3: u32, to: &Address) -> Result {
    set_address(ctx, packet, (l3, DESTINATION), to)
}

#[inline(always)]
fn set_address(
    ctx: &TcContext,
    packet: &Packet,
    (l3, [in_v4, in_v6]): (u32, [u32; 2]),
    to: &Address,
) -> Result {
    if packet.is_v4 {
        ctx.store((l3 + in_v4) as usize, &v4(to), 0)
    } else {
        ctx.store((l3 + in_v6) as usize, to, 0)
    }
}

/// What checksums change by with both addresses. What IPv4 addresses are mapped with is the same on both sides.
#[inline(always)]
fn addresses(from: &Tuple, to: &Tuple) -> u64 {
    difference::<32>(from.source.0.as_ptr(), to.source.0.as_ptr())
}

/// What checksums change by with both ports.
#[inline(always)]
fn ports(from: &Tuple, to: &Tuple) -> u64 {
    let from = &raw const from.source_port;
    let to = &raw const to.source_port;
    difference::<4>(from.cast(), to.cast())
}

#[inline(always)]
fn difference<const BYTES: u32>(from: *const u8, to: *const u8) -> u64 {
    // SAFETY: both point to so many bytes; they are only read.
    let difference = unsafe {
        bpf_csum_diff(
            from.cast_mut().cast(),
            BYTES,
            to.cast_mut().cast(),
            BYTES,
            0,
        )
    };
    difference as u64 & 0xffff_ffff
}
