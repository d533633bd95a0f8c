//! A bridge under links that were made already.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use rtnetlink::{LinkBridge, LinkBridgePort, LinkUnspec};

use super::{
    LEAF_DEVICE, Netns, ROUTER_MAC, index_of, know_gateways, link_route, operational, with_netlink,
};

/// A link of a router that becomes a port of its bridge.
#[derive(Debug)]
pub struct Port<'a> {
    /// The device in the router.
    pub device: &'a str,
    /// The namespace at the other end.
    pub leaf: &'a Netns,
    /// The leaf's addresses.
    pub addresses: [IpAddr; 2],
}

/// Makes a bridge in a router, and these links its ports: what leaves send comes in by the bridge, what is for them
/// leaves by it.
///
/// Leaves have no route to each other but by the router, so each sends what is for its neighbour on the bridge to the
/// router too, and replies are translated back on their way.
///
/// # Errors
/// If the kernel has no bridges, or there is one of this name.
pub fn attach(router: &Netns, name: &str, index: u32, ports: &[Port<'_>]) -> Result<()> {
    let mac = |port: usize| {
        let number = u8::try_from(port).expect("a bridge of a test has few ports");
        [0x0a, 0, 0, 0, 1, number]
    };
    for (number, port) in ports.iter().enumerate() {
        // On a network of its own each leaf may have the same address, on a bridge not.
        with_netlink(port.leaf, async |netlink| {
            let leaf = index_of(&netlink, LEAF_DEVICE).await?;
            let mac = mac(number).to_vec();
            let change = LinkUnspec::new_with_index(leaf).address(mac).build();
            netlink.link().set(change).execute().await?;
            // With the device's address goes all that it knew of its neighbours.
            know_gateways(&netlink).await
        })
        .with_context(|| format!("the hardware address behind {}", port.device))?;
    }
    with_netlink(router, async |netlink| {
        let bridge = LinkBridge::new(name).index(index);
        let bridge = bridge.address(ROUTER_MAC.to_vec()).up().build();
        netlink.link().add(bridge).execute().await?;
        for port in ports {
            let device = index_of(&netlink, port.device).await?;
            let enslaved = LinkUnspec::new_with_index(device).controller(index).build();
            netlink.link().set(enslaved).execute().await?;
            // With br_netfilter, which new namespaces have switched on where it is loaded, what a leaf sends is translated while
            // it is still on the bridge: it may have to leave by the port that it came in by. (kubelet's `hairpin-veth`.)
            let hairpin = LinkBridgePort::new(device).hairpin(true).build();
            netlink.link().change(hairpin).execute().await?;
        }
        operational(&netlink, index).await?;
        for (number, port) in ports.iter().enumerate() {
            for address in port.addresses {
                netlink
                    .neighbours()
                    .add(index, address)
                    .link_layer_address(&mac(number))
                    .execute()
                    .await?;
                let route = link_route(IpNet::from(address), index)?;
                netlink.route().add(route).replace().execute().await?;
            }
        }
        Ok(())
    })
    .with_context(|| format!("bridge {name}"))
}
