//! A socket asks whom it is connected to: the Service that it called.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::ALLOW;
use crate::address::{self, Family};
use crate::balance::{Protocol, called};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(&ctx, Family::V6);
    ALLOW
}

#[inline(always)]
fn getpeername(ctx: &SockAddrContext, family: Family) {
    let backend = address::get(ctx, family);
    let Some(protocol) = Protocol::of(ctx) else {
        return;
    };
    if let Some(called) = called(ctx, protocol, backend) {
        address::set(ctx, family, &called);
    }
}
