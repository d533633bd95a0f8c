//! Balances connections to Services where sockets make them: whoever connects to a Service is connected to one of its
//! back ends, once, and its packets carry the back end's address from then on.
//!
//! A file for each hook; `balance` is what they have in common. Whatever is not found in the maps is left as it is.

#![no_std]
#![no_main]

mod address;
mod balance;
mod connect;
mod getpeername;
mod maps;
mod recvmsg;
mod sendmsg;

/// What every hook answers: the socket may go on. `recvmsg` and `getpeername` may say nothing else.
const ALLOW: i32 = 1;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends some helpers to GPL programs only. None of those is used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
