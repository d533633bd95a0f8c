//! A UDP socket sends a datagram to an address: to a Service's back end instead of the Service. The next ones go there
//! too, as long as the Service has it.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::ALLOW;
use crate::address::{self, Family};
use crate::balance::{Protocol, choose};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Family::V6);
    ALLOW
}

#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, family: Family) {
    let called = address::get(ctx, family);
    if let Some(backend) = choose(ctx, Protocol::Udp, &called, false) {
        address::set(ctx, family, &backend);
    }
}
