//! The one place that sees Kubernetes API types: turns them into the model's own, once, at the edge.
//!
//! Nothing here fails: what cannot be served becomes a [`Complaint`] that names the field, and the rest of
//! the object is served. Defaults are those of the Kubernetes API reference.

pub mod dns;
mod endpoints;
mod node;
mod objects;
pub mod pods;
mod service;
mod service_cidr;
mod slice;
pub mod strays;
pub mod wire;

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use endpoints::endpoints;
pub use node::node;
pub use objects::Objects;
pub use service::service;
pub use service_cidr::service_cidr;
pub use slice::slice;

use super::{Complaint, ObjectName, Port, Protocol};

/// The label that joins an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The label on the slices of headless Services, which have no rules.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The label that hands a Service to another proxy.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The bits before an IPv4 address that is mapped to IPv6 (RFC 4291, 2.5.5.2).
const MAPPED_PREFIX_BITS: u8 = 96;

/// The namespace and name in an object's metadata.
pub fn name_of(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// The value of a label.
fn label<'a>(metadata: &'a ObjectMeta, label: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(label).map(String::as_str)
}

/// The Service that an EndpointSlice belongs to, if it belongs to one.
fn service_of(slice: &ObjectMeta) -> Option<ObjectName> {
    let service = label(slice, SERVICE_NAME_LABEL).filter(|service| !service.is_empty())?;
    Some(ObjectName::new(
        slice.namespace.as_deref().unwrap_or_default(),
        service,
    ))
}

/// Reads a protocol; absent means TCP.
fn protocol(text: Option<&str>, field: &str) -> Result<Protocol, Complaint> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(Complaint::new(
            format!("{field}.protocol"),
            format!("{other:?} is not one of TCP, UDP, SCTP; this port is skipped"),
        )),
    }
}

/// Reads a port number from 1 to 65535.
fn port(number: i32, field: String) -> Result<Port, Complaint> {
    u16::try_from(number)
        .ok()
        .and_then(Port::new)
        .ok_or_else(|| {
            Complaint::new(
                field,
                format!("{number} is not a port number (1 to 65535); this port is skipped"),
            )
        })
}

/// Reads an address that other machines may have, and refuses those that kube-apiserver does for endpoints (its
/// `ValidateNonSpecialIP`).
fn address(text: &str, field: String, consequence: &str) -> Result<IpAddr, Complaint> {
    let Some(address) = parse_address(text) else {
        let reason = format!("{text:?} is not an IP address; {consequence}");
        return Err(Complaint::new(field, reason));
    };
    if is_special(address) {
        let address = mapped(text).map_or(address, IpAddr::V6);
        let reason = format!(
            "{address} is an unspecified, loopback, link-local or multicast address; {consequence}"
        );
        return Err(Complaint::new(field, reason));
    }
    Ok(address)
}

/// Whether an address cannot be that of another machine, so that no rule may have to do with it.
fn is_special(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local
}

/// Reads a network.
fn network(text: &str, field: String) -> Result<IpNet, Complaint> {
    parse_network(text).ok_or_else(|| {
        let reason = format!(
            "{text:?} is not a network such as 192.0.2.0/24 or 2001:db8::/32; it is skipped"
        );
        Complaint::new(field, reason)
    })
}

/// Reads a network, as kube-apiserver does: with spaces around it, and with zeros before a number of an IPv4
/// address (its `ParseCIDRSloppy`). Bits after the prefix do not count. Networks of IPv4 addresses mapped to IPv6
/// become IPv4, as addresses do.
fn parse_network(text: &str) -> Option<IpNet> {
    let trimmed = text.trim();
    let parsed = trimmed
        .parse()
        .ok()
        .or_else(|| without_leading_zeros(trimmed)?.parse().ok());
    let network = parsed.map(|network: IpNet| network.trunc())?;
    let mapped = match network.addr().to_canonical() {
        address if network.addr().is_ipv6() && address.is_ipv4() => network
            .prefix_len()
            .checked_sub(MAPPED_PREFIX_BITS)
            .and_then(|bits| IpNet::new(address, bits).ok()),
        _ => None,
    };
    Some(mapped.unwrap_or(network))
}

/// Reads an address, as kube-apiserver does (its `ParseIPSloppy`). IPv4 addresses mapped to IPv6 become IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    parse_as_written(text).map(|address| address.to_canonical())
}

/// The address as it is written, if it is one of IPv4 mapped to IPv6: it counts as one of IPv4, and whoever reads a message
/// looks for what is written.
fn mapped(text: &str) -> Option<Ipv6Addr> {
    match parse_as_written(text)? {
        IpAddr::V6(address) => address.to_ipv4_mapped().map(|_| address),
        IpAddr::V4(_) => None,
    }
}

fn parse_as_written(text: &str) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    parsed.or_else(|| {
        // An IPv4 address may also be the end of an IPv6 one.
        let tidy = match text.rsplit_once(':') {
            Some((before, last)) => format!("{before}:{}", without_leading_zeros(last)?),
            None => without_leading_zeros(text)?,
        };
        tidy.parse().ok()
    })
}

/// An IPv4 address, or network, without zeros before its numbers; `None` for anything else. Old objects have
/// such addresses, and Kubernetes reads them as decimal.
fn without_leading_zeros(text: &str) -> Option<String> {
    let (address, prefix) = text
        .split_once('/')
        .map_or((text, None), |(a, p)| (a, Some(p)));
    let number = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let number: u8 = text.parse().ok().filter(|_| is_number)?;
        Some(number.to_string())
    };
    let numbers: Vec<String> = address.split('.').map(number).collect::<Option<_>>()?;
    let address = numbers.join(".");
    Some(match prefix {
        Some(prefix) => format!("{address}/{}", number(prefix)?),
        None => address,
    })
}

/// Keeps what is good and sets the complaints aside.
fn keep_good<T>(
    parsed: impl Iterator<Item = Result<T, Complaint>>,
    complaints: &mut Vec<Complaint>,
) -> Vec<T> {
    parsed
        .filter_map(|item| item.map_err(|complaint| complaints.push(complaint)).ok())
        .collect()
}

#[cfg(test)]
mod tests;
