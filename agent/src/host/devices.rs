//! The network devices of this machine: which of them carry traffic, and the node's addresses there. Read and watched by
//! rtnetlink.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::time::timeout;

use super::addresses::{AddressError, address_of, is_reachable};
use crate::model::{Device, Family, PerFamily};

/// How long changes are gathered before devices are read again: a pod that comes brings a dozen.
const GATHER: Duration = Duration::from_millis(20);

/// Addresses that are not used for long, or not yet.
const PASSING: AddressHeaderFlags = AddressHeaderFlags::Secondary
    .union(AddressHeaderFlags::Deprecated)
    .union(AddressHeaderFlags::Tentative);

/// Gives all devices but loopback ones to `take`: now, after changes, and, as they were, at the latest after `interval`; for as
/// long as it says true.
///
/// # Errors
/// That the kernel cannot be asked.
pub async fn watch(
    interval: Duration,
    mut take: impl FnMut(&[Device]) -> bool,
) -> Result<(), AddressError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, mut changes) = rtnetlink::new_multicast_connection(&groups)?;
    let connection = tokio::spawn(connection);
    let result = follow(&handle, &mut changes, interval, &mut take).await;
    connection.abort();
    result
}

async fn follow<T>(
    handle: &Handle,
    changes: &mut UnboundedReceiver<T>,
    interval: Duration,
    take: &mut impl FnMut(&[Device]) -> bool,
) -> Result<(), AddressError> {
    let mut devices = read(handle).await?;
    while take(&devices) {
        match timeout(interval, changes.next()).await {
            Err(_) => continue,
            Ok(Some(_)) => tokio::time::sleep(GATHER).await,
            Ok(None) => {
                let ended = std::io::ErrorKind::UnexpectedEof;
                return Err(AddressError::Socket(ended.into()));
            }
        }
        while changes.try_recv().is_ok() {}
        devices = read(handle).await?;
    }
    Ok(())
}

async fn read(handle: &Handle) -> Result<Vec<Device>, AddressError> {
    let mut devices = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let kind = link.header.link_layer_type;
        let (mut name, mut controller, mut mtu) = (None, None, 0);
        let (mut is_bridge_port, mut is_veth, mut leads_elsewhere) = (false, false, false);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value),
                LinkAttribute::Controller(index) => controller = Some(index),
                LinkAttribute::Mtu(value) => mtu = value,
                LinkAttribute::LinkNetNsId(_) => leads_elsewhere = true,
                LinkAttribute::LinkInfo(infos) => {
                    is_bridge_port = infos.contains(&LinkInfo::PortKind(InfoPortKind::Bridge));
                    is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        if let Some(name) = name
            && kind != LinkLayerType::Loopback
        {
            let device = Device {
                index: link.header.index,
                name,
                is_ethernet: kind == LinkLayerType::Ether,
                has_routes: false,
                has_default_route: false,
                has_single_routes: false,
                leads_elsewhere: is_veth && leads_elsewhere,
                mtu,
                bridge: controller.filter(|_| is_bridge_port),
                addresses: PerFamily::from_fn(|_| None),
            };
            devices.insert(device.index, device);
        }
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        let address = address_of(&message).filter(|address| is_reachable(*address));
        let lasts = !message.header.flags.intersects(PASSING);
        if let (Some(device), Some(address), true) =
            (devices.get_mut(&message.header.index), address, lasts)
        {
            let family = Family::of(address);
            let main = device.addresses.get_mut(family);
            // Linux lists IPv4 addresses from the first one on, and IPv6 ones from the last one on.
            if main.is_none() || family == Family::V6 {
                *main = Some(address);
            }
        }
    }
    for all in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(all).execute();
        while let Some(route) = routes.try_next().await? {
            let is_single = is_to_single_address(&route);
            for index in devices_of(&route) {
                if let Some(device) = devices.get_mut(&index) {
                    device.has_single_routes =
                        is_single && (device.has_single_routes || !device.has_routes);
                    device.has_routes = true;
                    device.has_default_route |= route.header.destination_prefix_length == 0;
                }
            }
        }
    }
    Ok(devices.into_values().collect())
}

/// Whether a route leads to one address, and to that without a router on the way.
fn is_to_single_address(route: &RouteMessage) -> bool {
    let address_bits = match route.header.address_family {
        AddressFamily::Inet => 32,
        _ => 128,
    };
    let has_router = route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    });
    route.header.destination_prefix_length == address_bits && !has_router
}

/// The devices that a route leads to, if it leads to other machines.
fn devices_of(route: &RouteMessage) -> BTreeSet<u32> {
    let is_link_local = route.attributes.iter().any(|attribute| {
        matches!(attribute, RouteAttribute::Destination(RouteAddress::Inet6(ip)) if ip.is_unicast_link_local())
    });
    if route.header.kind != RouteType::Unicast || is_link_local {
        return BTreeSet::new();
    }
    let attributes = route.attributes.iter();
    attributes
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
        .collect()
}
