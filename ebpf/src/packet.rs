//! Takes packets apart: who talks to whom, and where in the packet that stands.
//!
//! Of a fragment the ports are those of the first one. Of an ICMP error the connection is that of the packet that it is about.
//! Whatever is truncated or else not as it should be is nobody's packet.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use proxyd_ebpf_common::{Address, FragmentKey, Tuple};

use crate::address::{is_v4, mapped};
use crate::maps::{FRAGMENTS, remember};
use crate::verified::{LEFT, TAKEN};
use crate::work::Work;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const ETHERTYPE_IP: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// How many extension headers of IPv6 are passed over.
const MAX_EXTENSIONS: usize = 4;

/// A packet of TCP or UDP, or an ICMP error about one.
#[repr(C)]
pub struct Packet {
    /// Who talks to whom; for an error, whose answers the packet was among.
    pub tuple: Tuple,
    /// The sender and the receiver of the packet, also of an error.
    pub source: Address,
    pub destination: Address,
    /// Where the IP header is, and what follows it.
    pub l3: u32,
    pub l4: u32,
    /// For an error: where the headers of the packet are that it is about; else 0.
    pub inner_l3: u32,
    pub inner_l4: u32,
    pub is_v4: bool,
    /// Whether the header of the transport protocol is there; it is not in later fragments.
    pub has_l4: bool,
    tcp_flags: u8,
    pub padding: u8,
}

impl Packet {
    /// Whether it is an ICMP error.
    #[inline(always)]
    pub fn is_error(&self) -> bool {
        self.inner_l3 != 0
    }

    /// Whether it may be the first one of a connection.
    #[inline(always)]
    pub fn may_begin(&self) -> bool {
        !self.is_error() && self.has_l4 && (self.tuple.protocol == UDP || self.is_syn())
    }

    /// Whether it asks for a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Whether it answers that, or asks.
    #[inline(always)]
    pub fn has_syn(&self) -> bool {
        self.tcp_flags & SYN != 0
    }

    /// Whether it ends a TCP connection for both sides.
    #[inline(always)]
    pub fn resets(&self) -> bool {
        self.tcp_flags & RST != 0
    }

    /// Whether it closes a TCP connection.
    #[inline(always)]
    pub fn closes(&self) -> bool {
        self.tcp_flags & (RST | FIN) != 0
    }
}

/// The index of the device that a packet is at.
#[inline(always)]
pub fn device(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Takes apart what comes behind `l3` bytes. `None`: it is none of those that connections to Services consist of.
#[inline(always)]
pub fn parse(ctx: &TcContext, l3: u32, work: &mut Work) -> Option<()> {
    (proxyd_parse(ctx.skb.skb, l3, work) == TAKEN).then_some(())
}

/// What is behind [`parse`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_parse(skb: *mut __sk_buff, l3: u32, work: *mut Work) -> i32 {
    // SAFETY: who calls has it for himself.
    let work = unsafe { work.as_mut() };
    match work.and_then(|work| take_apart(&TcContext::new(skb), l3, work)) {
        Some(()) => TAKEN,
        None => LEFT,
    }
}

/// Takes apart the IP header behind `l3` bytes, and those that extend it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn proxyd_header(skb: *mut __sk_buff, l3: u32, work: *mut Work) -> i32 {
    // SAFETY: who calls has it for himself.
    let Some(work) = (unsafe { work.as_mut() }) else {
        return LEFT;
    };
    let ctx = &TcContext::new(skb);
    let header = if work.packet.is_v4 {
        header_v4(ctx, l3)
    } else {
        header_v6(ctx, l3)
    };
    let Some(header) = header else {
        return LEFT;
    };
    work.header = header;
    TAKEN
}

#[inline(always)]
fn header(ctx: &TcContext, l3: u32, work: &mut Work) -> Option<()> {
    (proxyd_header(ctx.skb.skb, l3, work) == TAKEN).then_some(())
}

#[inline(always)]
fn take_apart(ctx: &TcContext, l3: u32, work: &mut Work) -> Option<()> {
    let packet = &mut work.packet;
    // SAFETY: the kernel gives a valid context.
    let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    // What belongs to a VLAN comes again at the VLAN's own device.
    if vlan != 0 {
        return None;
    }
    packet.is_v4 = match u16::from_be(protocol as u16) {
        ETHERTYPE_IP => true,
        ETHERTYPE_IPV6 => false,
        _ => return None,
    };
    packet.l3 = l3;
    packet.inner_l3 = 0;
    packet.inner_l4 = 0;
    packet.tcp_flags = 0;
    header(ctx, l3, work)?;
    let Work { packet, header, .. } = work;
    packet.source = header.source;
    packet.destination = header.destination;
    packet.l4 = header.l4;
    packet.has_l4 = !header.is_later;
    match header.protocol {
        TCP | UDP => {
            let ports = ports(ctx, header)?;
            packet.tuple = header.tuple(ports);
            if header.protocol == TCP && packet.has_l4 {
                packet.tcp_flags = ctx.load(header.l4 as usize + 13).ok()?;
            }
            Some(())
        }
        ICMP if packet.is_v4 => error(ctx, work, &[3, 11, 12]),
        ICMPV6 if !packet.is_v4 => error(ctx, work, &[1, 2, 3, 4]),
        _ => None,
    }
}

/// Takes apart the packet that an ICMP error is about, if it is of one of these types (RFC 792, RFC 4443).
#[inline(always)]
fn error(ctx: &TcContext, work: &mut Work, types: &[u8]) -> Option<()> {
    let outer = &work.header;
    if outer.is_first || outer.is_later {
        return None;
    }
    let kind: u8 = ctx.load(outer.l4 as usize).ok()?;
    if !types.contains(&kind) {
        return None;
    }
    let inner_l3 = outer.l4 + 8;
    header(ctx, inner_l3, work)?;
    let Work {
        packet,
        header: inner,
        ..
    } = work;
    if inner.is_later || !matches!(inner.protocol, TCP | UDP) {
        return None;
    }
    let ports: [u16; 2] = ctx.load(inner.l4 as usize).ok()?;
    packet.inner_l3 = inner_l3;
    packet.inner_l4 = inner.l4;
    packet.tuple = inner.tuple(ports).reversed();
    Some(())
}

/// What an IP header says.
#[repr(C)]
pub struct Header {
    source: Address,
    destination: Address,
    protocol: u8,
    /// Where the next one is.
    l4: u32,
    identification: u32,
    /// A first fragment, and one of the others.
    is_first: bool,
    is_later: bool,
}

impl Header {
    #[inline(always)]
    fn tuple(&self, [source_port, destination_port]: [u16; 2]) -> Tuple {
        Tuple {
            source: self.source,
            destination: self.destination,
            source_port,
            destination_port,
            protocol: self.protocol,
            padding: [0; 3],
        }
    }

    #[inline(always)]
    fn fragments(&mut self, identification: u32, offset: u16, more: bool) {
        self.identification = identification;
        self.is_first = offset == 0 && more;
        self.is_later = offset != 0;
    }
}

#[inline(always)]
fn header_v4(ctx: &TcContext, l3: u32) -> Option<Header> {
    let bytes: [u32; 5] = ctx.load(l3 as usize).ok()?;
    let [first, second, third, source, destination] = bytes;
    let version_and_length = u32::from_be(first) >> 24;
    let length = (version_and_length & 0xf) * 4;
    if version_and_length >> 4 != 4 || length < 20 {
        return None;
    }
    let mut header = Header {
        source: mapped(source),
        destination: mapped(destination),
        protocol: (u32::from_be(third) >> 16) as u8,
        l4: l3 + length,
        identification: 0,
        is_first: false,
        is_later: false,
    };
    let second = u32::from_be(second);
    header.fragments(second >> 16, second as u16 & 0x1fff, second & 0x2000 != 0);
    Some(header)
}

#[inline(always)]
fn header_v6(ctx: &TcContext, l3: u32) -> Option<Header> {
    let [first, next]: [u32; 2] = ctx.load(l3 as usize).ok()?;
    if u32::from_be(first) >> 28 != 6 {
        return None;
    }
    let mut header = Header {
        source: ctx.load(l3 as usize + 8).ok()?,
        destination: ctx.load(l3 as usize + 24).ok()?,
        protocol: (u32::from_be(next) >> 8) as u8,
        l4: l3 + 40,
        identification: 0,
        is_first: false,
        is_later: false,
    };
    // Nobody has such an address on a wire, and flows of IPv4 are kept so.
    if is_v4(&header.source) || is_v4(&header.destination) {
        return None;
    }
    for _ in 0..MAX_EXTENSIONS {
        match header.protocol {
            // Hop-by-hop options, routing, destination options (RFC 8200).
            0 | 43 | 60 => {
                let [next, length]: [u8; 2] = ctx.load(header.l4 as usize).ok()?;
                header.protocol = next;
                header.l4 += (u32::from(length) + 1) * 8;
            }
            44 => {
                let [first, identification]: [u32; 2] = ctx.load(header.l4 as usize).ok()?;
                let first = u32::from_be(first);
                header.protocol = (first >> 24) as u8;
                header.l4 += 8;
                header.fragments(identification, first as u16 >> 3, first & 1 != 0);
            }
            _ => break,
        }
        // Of another than the first one, what follows is no header.
        if header.is_later {
            break;
        }
    }
    Some(header)
}

/// The ports; of a fragment, those of the first one.
#[inline(always)]
fn ports(ctx: &TcContext, header: &Header) -> Option<[u16; 2]> {
    let key = FragmentKey {
        source: header.source,
        destination: header.destination,
        identification: header.identification,
        protocol: header.protocol.into(),
    };
    if header.is_later {
        // SAFETY: the value is copied at once.
        return unsafe { FRAGMENTS.get(key) }.copied();
    }
    let ports = ctx.load(header.l4 as usize).ok()?;
    if header.is_first {
        // The others go where they would have gone anyhow if that fails.
        let _ = remember(&FRAGMENTS, &key, &ports);
    }
    Some(ports)
}
