//! The addresses of this machine's interfaces, read and watched by rtnetlink.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup};
use tracing::warn;

use crate::event::Event;

/// How long to wait before watching anew after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Why the addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No socket could be had.
    #[error("opening an rtnetlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused to list them.
    #[error("listing the addresses of this machine: {0}")]
    List(#[from] rtnetlink::Error),
}

/// Lists the addresses, without loopback and link-local ones.
///
/// # Errors
/// That the kernel cannot be asked.
pub async fn list() -> Result<BTreeSet<IpAddr>, AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let addresses = read(&handle).await;
    connection.abort();
    addresses
}

/// Sends the addresses now and after each change, for as long as events are taken.
pub async fn watch(mut send: impl FnMut(Event) -> bool) {
    loop {
        match watch_once(&mut send).await {
            Ok(()) => return,
            Err(error) => warn!("{error}; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch_once(send: &mut impl FnMut(Event) -> bool) -> Result<(), AddressError> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = rtnetlink::new_multicast_connection(&groups)?;
    let connection = tokio::spawn(connection);
    loop {
        if !send(Event::HostAddressesChanged(read(&handle).await?)) {
            connection.abort();
            return Ok(());
        }
        // Many changes come together; one list after the last of them tells all.
        if changes.next().await.is_none() {
            return Err(AddressError::Socket(
                std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        while changes.try_recv().is_ok() {}
    }
}

async fn read(handle: &Handle) -> Result<BTreeSet<IpAddr>, AddressError> {
    let mut messages = handle.address().get().execute();
    let mut addresses = BTreeSet::new();
    while let Some(message) = messages.try_next().await? {
        addresses.extend(address_of(&message).filter(|address| is_reachable(*address)));
    }
    Ok(addresses)
}

/// The machine's own address in a message. On a point-to-point link `Address` is the other end's.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })
}

/// Whether other machines may reach an address.
pub(super) fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}
