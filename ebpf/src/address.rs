//! Addresses, and those in the context of a socket: read and written word by word, as the verifier demands.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use proxyd_ebpf_common::{Address, Destination};

/// The family that a hook is for, and with it the fields that hold the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What an IPv4 address is mapped with, as the third of four words.
const MAPPED: u32 = 0xffff_u32.to_be();

/// Reads the address and the port.
#[inline(always)]
pub fn get(ctx: &SockAddrContext, family: Family) -> Destination {
    let fields: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the kernel gives a valid context; it is read word by word.
    let (words, port) = unsafe {
        let word = |i: usize| (&raw const (*fields).user_ip6[i]).read_volatile();
        let words = match family {
            Family::V4 => [
                0,
                0,
                MAPPED,
                (&raw const (*fields).user_ip4).read_volatile(),
            ],
            Family::V6 => [word(0), word(1), word(2), word(3)],
        };
        (words, (&raw const (*fields).user_port).read_volatile())
    };
    Destination {
        address: bytes(words),
        port: port as u16,
        padding: 0,
    }
}

/// Writes the address and the port.
#[inline(always)]
pub fn set(ctx: &SockAddrContext, family: Family, to: &Destination) {
    let fields: *mut bpf_sock_addr = ctx.sock_addr;
    let words = words(&to.address);
    // SAFETY: the kernel gives a valid context; it is written word by word.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*fields).user_ip4).write_volatile(words[3]),
            Family::V6 => {
                (&raw mut (*fields).user_ip6[0]).write_volatile(words[0]);
                (&raw mut (*fields).user_ip6[1]).write_volatile(words[1]);
                (&raw mut (*fields).user_ip6[2]).write_volatile(words[2]);
                (&raw mut (*fields).user_ip6[3]).write_volatile(words[3]);
            }
        }
        (&raw mut (*fields).user_port).write_volatile(u32::from(to.port));
    }
}

/// The number of the transport protocol.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() }
}

/// Whether an address is an IPv4 one.
#[inline(always)]
pub fn is_v4(address: &Address) -> bool {
    let [first, second, third, _] = words(address);
    first == 0 && second == 0 && third == MAPPED
}

/// An IPv4 address as it is kept.
#[inline(always)]
pub fn mapped(v4: u32) -> Address {
    bytes([0, 0, MAPPED, v4])
}

/// The IPv4 address that is kept so.
#[inline(always)]
pub fn v4(address: &Address) -> u32 {
    words(address)[3]
}

/// Whether two addresses are the same.
#[inline(always)]
pub fn same(a: &Address, b: &Address) -> bool {
    words(a) == words(b)
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> Address {
    // SAFETY: both are 16 bytes, of which any is a value.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    // SAFETY: as above; both are aligned alike.
    unsafe { core::mem::transmute(*address) }
}
