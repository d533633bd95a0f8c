//! A socket connects: to a Service's back end instead of the Service.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::ALLOW;
use crate::address::{self, Family};
use crate::balance::{Protocol, choose};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V6);
    ALLOW
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, family: Family) {
    let called = address::get(ctx, family);
    let Some(protocol) = Protocol::of(ctx) else {
        return;
    };
    if let Some(backend) = choose(ctx, protocol, &called, true) {
        address::set(ctx, family, &backend);
    }
}
