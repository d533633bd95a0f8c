//! Makes packets, and reads who talks to whom in them.

use std::net::{IpAddr, SocketAddr};

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6Header, SlicedPacket, TcpHeader, TransportSlice, UdpHeader, icmpv6,
};

/// What devices put before the IP header.
///
/// A test run always takes the first 14 bytes for an Ethernet header, and tells the program the protocol from the last two of them. Where there is
/// none, these belong to the source: so all addresses here have the protocol's number in that place. It takes no packet that ends within
/// what it takes for an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Ethernet,
    Nothing,
}

impl Link {
    /// How many bytes that is.
    pub(crate) fn length(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Nothing => 0,
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// What kind of packets a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) link: Link,
    pub(crate) is_v4: bool,
    pub(crate) protocol: Protocol,
}

impl Kind {
    /// All that devices of a link carry.
    pub(crate) fn all(link: Link) -> [Self; 4] {
        let kind = |is_v4, protocol| Self {
            link,
            is_v4,
            protocol,
        };
        [
            kind(true, Protocol::Tcp),
            kind(true, Protocol::Udp),
            kind(false, Protocol::Tcp),
            kind(false, Protocol::Udp),
        ]
    }

    /// The address of a host that has a number.
    pub(crate) fn ip(self, host: u16) -> IpAddr {
        let [high, low] = host.to_be_bytes();
        if self.is_v4 {
            [8, 0, high, low].into()
        } else {
            [0xfd00, 0, 0x86dd, 0, 0, 0, 0, host].into()
        }
    }

    /// A port of a host.
    pub(crate) fn at(self, host: u16, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(host), port)
    }

    /// The number of its transport protocol.
    pub(crate) fn number(self) -> u8 {
        match self.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// How many bytes come before the header of the transport protocol, if nothing unusual does.
    pub(crate) fn l4(self) -> usize {
        self.link.length() + if self.is_v4 { 20 } else { 40 }
    }

    /// Where the checksum of the transport protocol is, in its header.
    pub(crate) fn checksum(self) -> usize {
        match self.protocol {
            Protocol::Tcp => 16,
            Protocol::Udp => 6,
        }
    }

    /// An IP packet as it is at a device.
    pub(crate) fn framed(self, packet: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        if self.link == Link::Ethernet {
            frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            let protocol: u16 = if self.is_v4 { 0x0800 } else { 0x86dd };
            frame.extend(protocol.to_be_bytes());
        }
        frame.extend(packet);
        frame
    }

    /// A part of a talk, as it is at a device.
    pub(crate) fn packet(self, talk: Talk, part: Part) -> Vec<u8> {
        self.framed(&self.ip_packet(talk, part))
    }

    /// The same without what the device puts before it.
    pub(crate) fn ip_packet(self, talk: Talk, part: Part) -> Vec<u8> {
        self.shaped(talk, &self.segment(talk, part), &Shape::default())
    }

    /// A packet of a talk that is not as usual.
    pub(crate) fn shaped(self, talk: Talk, payload: &[u8], shape: &Shape) -> Vec<u8> {
        ip_packet(
            (talk.from.ip(), talk.to.ip()),
            self.number(),
            payload,
            shape,
        )
    }

    /// What a packet of a talk has behind its IP header.
    pub(crate) fn segment(self, talk: Talk, part: Part) -> Vec<u8> {
        self.segment_with(talk, part, self.payload(part))
    }

    /// The same with a payload of its own.
    pub(crate) fn segment_with(self, talk: Talk, part: Part, payload: &[u8]) -> Vec<u8> {
        let ends = (octets(talk.from.ip()), octets(talk.to.ip()));
        match self.protocol {
            Protocol::Tcp => {
                let mut header = TcpHeader::new(talk.from.port(), talk.to.port(), 1_000, 64_000);
                header.syn = matches!(part, Part::Syn | Part::SynAck);
                header.ack = part != Part::Syn;
                header.fin = part == Part::Fin;
                header.rst = part == Part::Rst;
                header.checksum = match &ends {
                    (Octets::V4(from), Octets::V4(to)) => {
                        header.calc_checksum_ipv4_raw(*from, *to, payload).unwrap()
                    }
                    (Octets::V6(from), Octets::V6(to)) => {
                        header.calc_checksum_ipv6_raw(*from, *to, payload).unwrap()
                    }
                    _ => panic!("two families: {talk:?}"),
                };
                [&header.to_bytes(), payload].concat()
            }
            Protocol::Udp => {
                let mut header = UdpHeader {
                    source_port: talk.from.port(),
                    destination_port: talk.to.port(),
                    length: u16::try_from(8 + payload.len()).unwrap(),
                    checksum: 0,
                };
                header.checksum = match &ends {
                    (Octets::V4(from), Octets::V4(to)) => {
                        header.calc_checksum_ipv4_raw(*from, *to, payload).unwrap()
                    }
                    (Octets::V6(from), Octets::V6(to)) => {
                        header.calc_checksum_ipv6_raw(*from, *to, payload).unwrap()
                    }
                    _ => panic!("two families: {talk:?}"),
                };
                [&header.to_bytes(), payload].concat()
            }
        }
    }

    pub(crate) fn payload(self, part: Part) -> &'static [u8] {
        match (self.protocol, part) {
            (Protocol::Udp, _) | (_, Part::Data) => b"what was asked for, and a byte more",
            _ => b"",
        }
    }

    /// An ICMP error about an IP packet, as much of it as is quoted.
    pub(crate) fn error(
        self,
        (from, to): (IpAddr, IpAddr),
        trouble: Trouble,
        quoted: &[u8],
        shape: &Shape,
    ) -> Vec<u8> {
        match (octets(from), octets(to)) {
            (Octets::V4(_), Octets::V4(_)) => {
                let header = Icmpv4Header::with_checksum(trouble.v4(), quoted);
                let message = [&header.to_bytes(), quoted].concat();
                ip_packet((from, to), IpNumber::ICMP.0, &message, shape)
            }
            (Octets::V6(source), Octets::V6(destination)) => {
                let header =
                    Icmpv6Header::with_checksum(trouble.v6(), source, destination, quoted).unwrap();
                let message = [&header.to_bytes(), quoted].concat();
                ip_packet((from, to), IpNumber::IPV6_ICMP.0, &message, shape)
            }
            _ => panic!("two families: {from} and {to}"),
        }
    }

    /// Who talks to whom in a whole packet without surprises.
    pub(crate) fn read(self, packet: &[u8]) -> Talk {
        let sliced = match self.link {
            Link::Ethernet => SlicedPacket::from_ethernet(packet).unwrap(),
            Link::Nothing => SlicedPacket::from_ip(packet).unwrap(),
        };
        let ports = match sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            other => panic!("neither TCP nor UDP: {other:?}"),
        };
        let net = sliced.net.unwrap();
        let (from, to): (IpAddr, IpAddr) = if let Some(ip) = net.ipv4_ref() {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        } else {
            let header = net.ipv6_ref().unwrap().header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        };
        Talk {
            from: SocketAddr::new(from, ports.0),
            to: SocketAddr::new(to, ports.1),
        }
    }
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Talk {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

impl Talk {
    /// The other direction.
    pub(crate) fn answer(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }

    /// From somebody else.
    pub(crate) fn from(self, from: SocketAddr) -> Self {
        Self { from, ..self }
    }

    /// To somebody else.
    pub(crate) fn to(self, to: SocketAddr) -> Self {
        Self { to, ..self }
    }
}

/// A packet of a talk. UDP has no parts: all are data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Syn,
    SynAck,
    Data,
    Fin,
    Rst,
}

/// How many routers packets may pass.
pub(crate) const HOPS: u8 = 61;

/// What is unusual about an IP packet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    /// Whether an IPv4 header has options.
    pub(crate) has_options: bool,
    /// The numbers of extension headers of IPv6, but for that of fragments.
    pub(crate) extensions: Vec<u8>,
    /// Which part of a datagram it is.
    pub(crate) fragment: Option<Fragment>,
    /// How many routers it has passed more than others.
    pub(crate) routers: u8,
}

/// Which part of a datagram a packet is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment {
    /// What fragments have in common.
    pub(crate) id: u16,
    /// Where it begins, in units of 8 bytes.
    pub(crate) offset: u16,
    /// Whether others follow.
    pub(crate) more: bool,
}

/// What an ICMP error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    PortUnreachable,
    TooBig,
    TimeExceeded,
}

impl Trouble {
    pub(crate) const ALL: [Self; 3] = [Self::PortUnreachable, Self::TooBig, Self::TimeExceeded];

    fn v4(self) -> Icmpv4Type {
        match self {
            Self::PortUnreachable => {
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port)
            }
            Self::TooBig => {
                let needed = DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: 1_400,
                };
                Icmpv4Type::DestinationUnreachable(needed)
            }
            Self::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        }
    }

    fn v6(self) -> Icmpv6Type {
        match self {
            Self::PortUnreachable => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
            }
            Self::TooBig => Icmpv6Type::PacketTooBig { mtu: 1_400 },
            Self::TimeExceeded => {
                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)
            }
        }
    }
}

enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

fn octets(ip: IpAddr) -> Octets {
    match ip {
        IpAddr::V4(ip) => Octets::V4(ip.octets()),
        IpAddr::V6(ip) => Octets::V6(ip.octets()),
    }
}

/// An IP packet from somebody to somebody.
pub(crate) fn ip_packet(
    (from, to): (IpAddr, IpAddr),
    protocol: u8,
    payload: &[u8],
    shape: &Shape,
) -> Vec<u8> {
    match (octets(from), octets(to)) {
        (Octets::V4(from), Octets::V4(to)) => {
            let length = u16::try_from(payload.len()).unwrap();
            let mut header =
                Ipv4Header::new(length, HOPS - shape.routers, IpNumber(protocol), from, to)
                    .unwrap();
            header.dont_fragment = false;
            if shape.has_options {
                header.options = [1; 8].into();
                header.set_payload_len(payload.len()).unwrap();
            }
            if let Some(fragment) = shape.fragment {
                header.identification = fragment.id;
                header.fragment_offset = IpFragOffset::try_new(fragment.offset).unwrap();
                header.more_fragments = fragment.more;
            }
            header.header_checksum = header.calc_header_checksum();
            [&header.to_bytes(), payload].concat()
        }
        (Octets::V6(source), Octets::V6(destination)) => {
            let (first, extensions) = extensions(protocol, shape);
            let header = Ipv6Header {
                payload_length: u16::try_from(extensions.len() + payload.len()).unwrap(),
                next_header: IpNumber(first),
                hop_limit: HOPS - shape.routers,
                source,
                destination,
                ..Ipv6Header::default()
            };
            [&header.to_bytes(), &*extensions, payload].concat()
        }
        _ => panic!("two families: {from} and {to}"),
    }
}

/// The extension headers, and the number of the first one.
fn extensions(protocol: u8, shape: &Shape) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut next = protocol;
    // From the last one to the first one, since each names the one that follows.
    if let Some(fragment) = shape.fragment {
        let place = fragment.offset << 3 | u16::from(fragment.more);
        let header = [
            [next, 0],
            place.to_be_bytes(),
            [0, 0],
            fragment.id.to_be_bytes(),
        ];
        bytes = header.concat();
        next = 44;
    }
    for (i, number) in shape.extensions.iter().copied().enumerate() {
        // One option that pads, of 6 or 14 bytes.
        let more = u8::try_from(i % 2).unwrap();
        let length = 6 + 8 * usize::from(more);
        let mut header = vec![next, more, 1, u8::try_from(length - 2).unwrap()];
        header.resize(2 + length, 0);
        bytes = [header, bytes].concat();
        next = number;
    }
    (next, bytes)
}
