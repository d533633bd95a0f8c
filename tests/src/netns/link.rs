//! Links, addresses and routes of a namespace, over rtnetlink.
//!
//! There is one kind of link: a *leaf* hangs on a *router* by a veth pair, with a route to each of the leaf's
//! addresses on one side and a default route on the other. Both ends know each other's hardware address from the
//! start, so no packet ever waits for ARP or neighbour discovery. [`bridge`] puts a bridge under some of them.

pub mod bridge;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, CacheInfo};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, State};
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::RuleAction;
use rtnetlink::{
    AddressAddRequest, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::Netns;
use crate::wait::poll_async;

/// The leaf's end of every link.
pub const LEAF_DEVICE: &str = "eth0";

/// The next hop of the leaves' default routes. The routers do not have these addresses: packets find their way by the
/// hardware address, as Calico does it.
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];

/// The routing table of [`add_source_route`].
const SOURCE_TABLE: u32 = 100;

const LOOPBACK_INDEX: u32 = 1;
const LEAF_INDEX: u32 = 2;

// Locally administered. Every link is a network of its own, so they may all use the same two.
const ROUTER_MAC: [u8; 6] = [0xee; 6];
const LEAF_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];

/// How long the kernel's workers may take to see a carrier or an address: they take milliseconds.
const WORKER_PATIENCE: Duration = Duration::from_secs(30);

/// A veth pair to be made between a router and a leaf.
#[derive(Debug)]
pub struct Link<'a> {
    /// The namespace that forwards.
    pub router: &'a Netns,
    /// The device's name in the router, at most 15 bytes.
    pub router_device: &'a str,
    /// The device's index in the router: free there, and not that of the loopback interface.
    pub router_index: u32,
    /// The namespace at the end; its device is [`LEAF_DEVICE`].
    pub leaf: &'a Netns,
    /// The leaf's addresses, with the prefix lengths they have there. The router has a route to the address only.
    pub addresses: &'a [IpNet],
}

impl Link<'_> {
    /// Makes the link, the addresses and the routes on both sides.
    ///
    /// A route to the same address over an older link is replaced: a pod may follow one that is still being removed.
    ///
    /// # Errors
    /// Whatever the kernel says to the first request that it refuses.
    pub fn attach(&self) -> Result<()> {
        let pair = self.veth_pair();
        with_netlink(self.router, async |netlink| {
            netlink
                .link()
                .add(pair)
                .execute()
                .await
                .context("veth pair")?;
            set_up(&netlink, self.router_index).await?;
            for address in self.addresses {
                netlink
                    .neighbours()
                    .add(self.router_index, address.addr())
                    .link_layer_address(&LEAF_MAC)
                    .execute()
                    .await
                    .context("the leaf's hardware address")?;
                let to_leaf = link_route(IpNet::from(address.addr()), self.router_index)?;
                netlink
                    .route()
                    .add(to_leaf)
                    .replace()
                    .execute()
                    .await
                    .context("route to the leaf")?;
            }
            Ok(())
        })
        .with_context(|| format!("router side of {}", self.router_device))?;
        with_netlink(self.leaf, async |netlink| {
            set_up(&netlink, LEAF_INDEX).await?;
            operational(&netlink, LEAF_INDEX).await?;
            for address in self.addresses {
                add_address_by_index(&netlink, LEAF_INDEX, *address).await?;
            }
            know_gateways(&netlink).await?;
            for gateway in GATEWAYS {
                let default = destined(everything(gateway))?
                    .gateway(gateway)?
                    .output_interface(LEAF_INDEX)
                    .onlink()
                    .build();
                netlink
                    .route()
                    .add(default)
                    .execute()
                    .await
                    .context("default route")?;
            }
            Ok(())
        })
        .with_context(|| format!("leaf side of {}", self.router_device))?;
        with_netlink(self.router, async |netlink| {
            operational(&netlink, self.router_index).await
        })
    }

    /// Both ends, each in its namespace. An end cannot be up before the other exists (veth_open: ENOTCONN).
    fn veth_pair(&self) -> LinkMessage {
        let leaf_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(LEAF_DEVICE)
            .index(LEAF_INDEX)
            .address(LEAF_MAC.to_vec())
            .setns_by_fd(self.leaf.as_fd().as_raw_fd())
            .build();
        LinkVeth::new(self.router_device, LEAF_DEVICE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(leaf_end)))
            .index(self.router_index)
            .address(ROUTER_MAC.to_vec())
            .build()
    }
}

/// Gives a device one more address, usable at once.
///
/// # Errors
/// If there is no such device or it has the address already.
pub fn add_address(netns: &Netns, device: &str, address: IpNet) -> Result<()> {
    with_netlink(netns, async |netlink| {
        let index = index_of(&netlink, device).await?;
        add_address_by_index(&netlink, index, address).await
    })
}

/// As [`add_address`], with one that the kernel never chooses as a source: only who binds to it has it.
///
/// # Errors
/// If there is no such device or it has the address already.
pub fn add_unchosen_address(netns: &Netns, device: &str, address: IpNet) -> Result<()> {
    with_netlink(netns, async |netlink| {
        let index = index_of(&netlink, device).await?;
        let mut request = address_request(&netlink, index, address);
        // IPv4 chooses the oldest one anyway; IPv6 does not choose what is deprecated (RFC 6724, rule 3).
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_preferred = 0;
        lifetimes.ifa_valid = u32::MAX;
        let message = request.message_mut();
        message
            .attributes
            .push(AddressAttribute::CacheInfo(lifetimes));
        execute_address(&netlink, request, address).await
    })
}

/// Sets how many bytes a packet may have that a device sends.
///
/// # Errors
/// If there is no such device or it refuses.
pub fn set_mtu(netns: &Netns, device: &str, mtu: u32) -> Result<()> {
    with_netlink(netns, async |netlink| {
        let index = index_of(&netlink, device).await?;
        let change = LinkUnspec::new_with_index(index).mtu(mtu).build();
        let request = netlink.link().set(change);
        request.execute().await.context("setting the MTU")
    })
}

/// Takes an address from a device.
///
/// # Errors
/// If there is no such device or it does not have the address.
pub fn remove_address(netns: &Netns, device: &str, address: IpNet) -> Result<()> {
    with_netlink(netns, async |netlink| {
        let index = index_of(&netlink, device).await?;
        let mut found = netlink
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(address.addr())
            .execute();
        let message = found
            .try_next()
            .await?
            .with_context(|| format!("{device} does not have {address}"))?;
        netlink
            .address()
            .del(message)
            .execute()
            .await
            .with_context(|| format!("removing {address}"))
    })
}

/// Adds a route by way of a gateway that an existing route reaches.
///
/// # Errors
/// If the gateway cannot be reached or there is a route to `destination` already.
pub fn add_route(netns: &Netns, destination: IpNet, gateway: IpAddr) -> Result<()> {
    let route = destined(destination)?.gateway(gateway)?.build();
    add(netns, route).with_context(|| format!("route to {destination} by {gateway}"))
}

/// Sends what comes from some sources to a destination by way of a gateway, whatever the routes say.
///
/// # Errors
/// If the gateway cannot be reached.
pub fn add_source_route(
    netns: &Netns,
    source: IpNet,
    destination: IpAddr,
    gateway: IpAddr,
) -> Result<()> {
    let route = destined(everything(gateway))?.gateway(gateway)?;
    let route = route.table_id(SOURCE_TABLE).build();
    with_netlink(netns, async |netlink| {
        netlink.route().add(route).replace().execute().await?;
        let rule = netlink.rule().add().table_id(SOURCE_TABLE);
        let rule = rule.action(RuleAction::ToTable);
        match (source.addr(), destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let rule = rule.v4().source_prefix(from, source.prefix_len());
                rule.destination_prefix(to, 32).execute().await?;
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let rule = rule.v6().source_prefix(from, source.prefix_len());
                rule.destination_prefix(to, 128).execute().await?;
            }
            _ => anyhow::bail!("{source} and {destination} are of two families"),
        }
        Ok(())
    })
    .with_context(|| format!("route from {source} to {destination} by {gateway}"))
}

/// Adds a route that silently discards what nothing more specific matches.
///
/// # Errors
/// If there is a route to `destination` already.
pub fn add_blackhole(netns: &Netns, destination: IpNet) -> Result<()> {
    let route = destined(destination)?.kind(RouteType::BlackHole).build();
    add(netns, route).with_context(|| format!("blackhole for {destination}"))
}

/// Brings up the loopback interface, the only one that a new namespace has.
pub(super) fn set_loopback_up(netns: &Netns) -> Result<()> {
    with_netlink(netns, async |netlink| {
        set_up(&netlink, LOOPBACK_INDEX).await
    })
}

/// Waits until a device that is up, and whose peer is up, does send.
///
/// The end that came up first gets its queue when a worker of the kernel's (linkwatch) has seen the carrier; until then
/// it drops every packet without a word.
async fn operational(netlink: &Handle, index: u32) -> Result<()> {
    let up = LinkAttribute::OperState(State::Up);
    poll_async(WORKER_PATIENCE, async || {
        let mut links = netlink.link().get().match_index(index).execute();
        let link = links.try_next().await.ok()??;
        link.attributes.contains(&up).then_some(())
    })
    .await
    .with_context(|| format!("no carrier within {WORKER_PATIENCE:?}"))
}

/// Tells a leaf the hardware address of its next hops.
async fn know_gateways(netlink: &Handle) -> Result<()> {
    for gateway in GATEWAYS {
        netlink
            .neighbours()
            .add(LEAF_INDEX, gateway)
            .link_layer_address(&ROUTER_MAC)
            .execute()
            .await
            .context("the gateway's hardware address")?;
    }
    Ok(())
}

async fn set_up(netlink: &Handle, index: u32) -> Result<()> {
    let up = LinkUnspec::new_with_index(index).up().build();
    netlink
        .link()
        .set(up)
        .execute()
        .await
        .context("setting the device up")
}

fn add(netns: &Netns, route: RouteMessage) -> Result<()> {
    with_netlink(netns, async |netlink| {
        Ok(netlink.route().add(route).execute().await?)
    })
}

fn destined(destination: IpNet) -> Result<RouteMessageBuilder<IpAddr>> {
    Ok(RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.addr(), destination.prefix_len())?)
}

/// The destination of a default route by `gateway`.
fn everything(gateway: IpAddr) -> IpNet {
    let address = if gateway.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    IpNet::new(address, 0).expect("0 is a prefix length of both families")
}

fn link_route(destination: IpNet, index: u32) -> Result<RouteMessage> {
    let route = destined(destination)?.output_interface(index);
    // IPv6 routes have no scope; rtnetlink(7).
    Ok(if destination.addr().is_ipv4() {
        route.scope(RouteScope::Link).build()
    } else {
        route.build()
    })
}

async fn add_address_by_index(netlink: &Handle, index: u32, address: IpNet) -> Result<()> {
    execute_address(netlink, address_request(netlink, index, address), address).await
}

fn address_request(netlink: &Handle, index: u32, address: IpNet) -> AddressAddRequest {
    let mut request = netlink
        .address()
        .add(index, address.addr(), address.prefix_len());
    if address.addr().is_ipv6() {
        // Without this the address is tentative, and unusable, for about a second.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request
}

async fn execute_address(
    netlink: &Handle,
    request: AddressAddRequest,
    address: IpNet,
) -> Result<()> {
    request
        .execute()
        .await
        .with_context(|| format!("address {address}"))?;
    accepted(netlink, address.addr()).await
}

/// Waits until packets to an address of the namespace's are delivered.
///
/// A worker of the kernel's (addrconf_dad_work) adds the local route of an IPv6 address, also of one without duplicate
/// address detection; until then a packet to it goes elsewhere.
async fn accepted(netlink: &Handle, address: IpAddr) -> Result<()> {
    let question = destined(IpNet::from(address))?.build();
    poll_async(WORKER_PATIENCE, async || {
        let mut routes = netlink.route().get(question.clone()).execute();
        // An error is "no route", and there may be none yet.
        let route = routes.try_next().await.ok()??;
        (route.header.kind == RouteType::Local).then_some(())
    })
    .await
    .with_context(|| format!("{address} does not work within {WORKER_PATIENCE:?}"))
}

async fn index_of(netlink: &Handle, device: &str) -> Result<u32> {
    let mut links = netlink.link().get().match_name(device).execute();
    let link = links
        .try_next()
        .await?
        .with_context(|| format!("no device {device}"))?;
    Ok(link.header.index)
}

/// Runs `work` with an rtnetlink connection of the namespace, on a thread inside it.
fn with_netlink<T, F>(netns: &Netns, work: impl FnOnce(Handle) -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    netns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await
        })
    })
}
