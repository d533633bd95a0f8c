//! A UDP socket is told whom a datagram came from: the Service that it called, where a back end answered.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::ALLOW;
use crate::address::{self, Family};
use crate::balance::{Protocol, called};

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(&ctx, Family::V6);
    ALLOW
}

#[inline(always)]
fn recvmsg(ctx: &SockAddrContext, family: Family) {
    let backend = address::get(ctx, family);
    if let Some(called) = called(ctx, Protocol::Udp, backend) {
        address::set(ctx, family, &called);
    }
}
