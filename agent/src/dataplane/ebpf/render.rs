//! What the maps hold, as text for people.
//!
//! Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxyd_ebpf_common as bpf;

use super::layout::Entries;
use crate::diff::Held;
use crate::model::{Family, Protocol};

/// What the maps hold of a family, line by line.
pub fn maps(family: Family, held: &Held) -> Vec<String> {
    let entries = Entries::of(family, held);
    let mut lines = vec![format!(
        "BPF maps, {family}: sockets of this node and its pods"
    )];
    for (address, who) in &entries.node_addresses {
        let whose = match *who {
            bpf::THE_NODE => "NodePorts for the node itself",
            _ => "NodePorts",
        };
        lines.push(format!("  {}: {whose}", ip(*address)));
    }
    for (key, frontend) in &entries.frontends {
        let affinity = match frontend.affinity_seconds {
            0 => String::new(),
            seconds => format!(", each client keeps its own for {seconds} s"),
        };
        let has = |flag| frontend.flags & flag != 0;
        let whose = match (has(bpf::LOCAL_OUTSIDE), has(bpf::GUARDED)) {
            (true, true) => ", clients outside get those here; for some sources",
            (true, false) => ", clients outside get those here",
            (false, true) => ", for some sources",
            (false, false) => "",
        };
        let count = frontend.count;
        lines.push(format!(
            "  {}: back ends: {count}{affinity}{whose}",
            Shown(key)
        ));
        let place = |index| bpf::BackendKey {
            frontend: *key,
            index,
        };
        let of = entries.backends.range(place(0)..=place(u32::MAX));
        lines.extend(of.map(|(place, to)| {
            let port = u16::from_be(to.port);
            let to = SocketAddr::new(ip(to.address), port);
            format!("    {} → {to}", place.index)
        }));
    }
    lines
}

fn ip(address: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// A front end as people write it.
struct Shown<'a>(&'a bpf::FrontendKey);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.0;
        let port = u16::from_be(key.port);
        match key.kind {
            bpf::AT_ADDRESS => SocketAddr::new(ip(key.address), port).fmt(f)?,
            _ => write!(f, "NodePort {port}")?,
        }
        let mut protocols = Protocol::ALL.into_iter();
        let protocol = protocols.find(|protocol| protocol.number() == key.protocol);
        protocol.map_or(Ok(()), |protocol| write!(f, " {protocol}"))
    }
}
