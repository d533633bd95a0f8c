//! Balances connections to Services. Where sockets make them: whoever connects to a Service is connected to one of its
//! back ends, once, and its packets carry the back end's address from then on. And at devices, for clients whose
//! sockets are elsewhere: there packets are translated, both ways.
//!
//! A file for each hook; `balance` is what those of sockets have in common, and `packet`, `flow`, `forget`, `rewrite`, `translate`, `redirect` what those of
//! devices have.
//! Whatever is not found in the maps is left as it is.

#![no_std]
#![no_main]

mod address;
mod balance;
mod connect;
mod count;
mod egress;
mod flow;
mod forget;
mod frontend;
mod getpeername;
mod ingress;
mod maglev;
mod maps;
mod packet;
mod recvmsg;
mod redirect;
mod rewrite;
mod sendmsg;
mod translate;
mod verified;
mod work;

/// What every hook answers: the socket may go on. `recvmsg` and `getpeername` may say nothing else.
const ALLOW: i32 = 1;

/// What programs at devices say: the packet goes on, to other programs too; or it is dropped.
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;

/// How many bytes come before the IP header.
const ETHERNET: u32 = 14;
const NO_LINK_LAYER: u32 = 0;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends some helpers to GPL programs only. None of those is used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
