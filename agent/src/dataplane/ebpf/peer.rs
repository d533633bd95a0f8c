//! What the programs remember of sockets that they balanced → which of those are to be closed, and how they are found.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use proxyd_ebpf_common as bpf;

use crate::model::{Family, Protocol};
use crate::plan::{Flow, Flows};

/// A socket, and a back end that it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The cookie of the socket, by which the kernel tells it from all others.
    pub cookie: u64,
    /// The back end.
    pub backend: SocketAddr,
}

/// Sockets, and what they called.
pub type Called = BTreeMap<Peer, SocketAddr>;

/// A question that finds sockets: which are connected to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Their transport protocol.
    pub protocol: Protocol,
    /// Their own family. Those of IPv6 may talk to IPv4 addresses.
    pub family: Family,
    /// The port that they are connected to; `None`: any.
    pub port: Option<u16>,
}

impl Peer {
    /// From an entry of the map of a protocol.
    pub(super) fn new(protocol: Protocol, key: &bpf::PeerKey) -> Self {
        Self {
            protocol,
            cookie: key.socket,
            backend: key.backend.into(),
        }
    }

    /// The key of its entry.
    pub(super) fn key(&self) -> bpf::PeerKey {
        bpf::PeerKey {
            socket: self.cookie,
            backend: self.backend.into(),
            padding: 0,
        }
    }

    /// Whether the socket is to be closed that called this for this back end.
    pub fn is_stale(&self, called: SocketAddr, flows: &Flows) -> bool {
        flows.is_stale(&Flow {
            protocol: self.protocol,
            destination: called,
            reply_source: self.backend,
            answered: true,
        })
    }
}

/// What rules are told of flows, for sockets: the programs know NodePorts at the loopback address too.
pub fn of_sockets(mut flows: Flows) -> Flows {
    // A socket that was not balanced is none of those that the programs remember.
    flows.opened.clear();
    if flows.node_port_addresses.iter().any(IpAddr::is_ipv4) {
        let loopback = Ipv4Addr::LOCALHOST.into();
        flows.node_port_addresses.insert(loopback);
    }
    flows
}

/// The questions that find these sockets: one for a protocol and a family, since the kernel looks at all sockets for
/// each.
pub fn questions<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> BTreeSet<Question> {
    let mut ports: BTreeMap<(Protocol, Family), BTreeSet<u16>> = BTreeMap::new();
    for peer in peers {
        let families: &[Family] = match Family::of(peer.backend.ip()) {
            Family::V4 => &[Family::V4, Family::V6],
            Family::V6 => &[Family::V6],
        };
        for family in families {
            let ports = ports.entry((peer.protocol, *family)).or_default();
            ports.insert(peer.backend.port());
        }
    }
    let questions = ports.into_iter().map(|((protocol, family), ports)| {
        let only = ports.first().copied().filter(|_| ports.len() == 1);
        Question {
            protocol,
            family,
            port: only,
        }
    });
    questions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Frontend;
    use crate::testing::{backend, ip, port};

    fn peer(protocol: Protocol, backend: &str) -> Peer {
        Peer {
            protocol,
            cookie: 7,
            backend: backend.parse().unwrap(),
        }
    }

    #[test]
    fn entries_are_read_as_they_are_written() {
        for to in ["10.1.0.1:53", "[fd00:1::1]:53"] {
            let peer = peer(Protocol::Udp, to);
            assert_eq!(Peer::new(Protocol::Udp, &peer.key()), peer);
            assert_eq!(SocketAddr::from(peer.key().backend).to_string(), to);
        }
        let key = peer(Protocol::Udp, "10.1.0.1:53").key();
        assert_eq!(key.backend.address.0[10..], [0xff, 0xff, 10, 1, 0, 1]);
    }

    #[test]
    fn sockets_are_asked_for_by_their_own_family_and_by_a_port_if_it_is_the_only_one() {
        let ask = |protocol, family, port| Question {
            protocol,
            family,
            port,
        };
        let check = |peers: &[Peer], expected: &[Question]| {
            assert!(questions(peers).iter().eq(expected), "{peers:?}");
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        check(&[], &[]);
        check(
            &[peer(udp, "10.1.0.1:53"), peer(udp, "10.1.0.2:53")],
            &[
                ask(udp, Family::V4, Some(53)),
                ask(udp, Family::V6, Some(53)),
            ],
        );
        check(
            &[peer(udp, "[fd00:1::1]:53"), peer(udp, "[fd00:1::1]:54")],
            &[ask(udp, Family::V6, None)],
        );
        check(
            &[peer(tcp, "[fd00:1::1]:80"), peer(udp, "10.1.0.1:53")],
            &[
                ask(tcp, Family::V6, Some(80)),
                ask(udp, Family::V4, Some(53)),
                ask(udp, Family::V6, Some(53)),
            ],
        );
    }

    #[test]
    fn a_socket_is_stale_by_what_it_called() {
        let udp = Protocol::Udp;
        let mut flows = Flows::default();
        let frontend = Frontend::NodePort {
            family: Family::V4,
            protocol: udp,
            port: port(30053),
        };
        flows
            .frontends
            .insert(frontend, [backend("10.1.0.1:53")].into());
        flows.node_port_addresses.insert(ip("192.168.0.2"));
        let flows = of_sockets(flows);
        let check = |called: &str, to, expected| {
            let is_stale = peer(udp, to).is_stale(called.parse().unwrap(), &flows);
            assert_eq!(is_stale, expected, "{called} {to}");
        };
        for called in ["192.168.0.2:30053", "127.0.0.1:30053"] {
            check(called, "10.1.0.1:53", false);
            check(called, "10.1.0.2:53", true);
        }
        check("10.96.0.10:30053", "10.1.0.2:53", false);
        check("[::1]:30053", "10.1.0.2:53", false);
    }
}
