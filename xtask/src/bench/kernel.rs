//! What the kernel holds: single elements of nftables maps, looked up over netlink, or entries of BPF maps.
//!
//! A lookup costs microseconds, whatever the size of the map, takes no lock that a transaction waits for
//! (`NFT_MSG_GETSETELEM` runs under RCU), and asks both proxies the same: each has a map from ClusterIP, protocol and
//! port of a Service that has endpoints to the chain that balances. proxyd has one of single endpoints too.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData, MapError};
use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use proxyd_ebpf_common as bpf;
use proxyd_tests::netns::Netns;
use proxyd_tests::sockets::Sockets;

// Defined in Linux: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h
const NFT_MSG_NEWSETELEM: u16 = 0x0a0c;
const NFT_MSG_GETSETELEM: u16 = 0x0a0d;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// Those of netlink and of netfilter.
const HEADERS_BYTES: usize = 20;

const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const ENOENT: i32 = 2;

/// The maps that proxies keep their Services in: table and map, both of family `ip`.
const MAPS: [(&str, &str); 2] = [("proxyd", "services"), ("kube-proxy", "service-ips")];

/// The map of proxyd from ClusterIP, protocol, port and index to an endpoint.
const ENDPOINTS: (&str, &str) = ("proxyd", "endpoints");

/// Looks Services up where a proxy keeps them.
pub(super) struct Kernel(Source);

enum Source {
    /// In the rules of one namespace.
    Rules {
        socket: Socket,
        map: (&'static str, &'static str),
    },
    /// In the maps of programs.
    Programs(Box<Maps>),
}

struct Maps {
    frontends: HashMap<MapData, bpf::FrontendKey, bpf::Frontend>,
    backends: HashMap<MapData, bpf::BackendKey, bpf::Destination>,
}

impl Kernel {
    /// Finds the proxy's map by a Service that it is known to hold.
    ///
    /// # Errors
    /// That no proxy holds it.
    pub(super) fn find(netns: &Netns, known: Ipv4Addr) -> Result<Self> {
        let socket = netns.enter(|| -> Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            Ok(socket)
        })?;
        for map in MAPS {
            if look_up(&socket, map, &key(known))?.is_some() {
                return Ok(Self(Source::Rules { socket, map }));
            }
        }
        bail!("{known} is in no proxy's map of Services");
    }

    /// Opens the maps of programs.
    pub(super) fn of_programs(programs: &Sockets) -> Result<Self> {
        let open = |name| Map::from_map_data(MapData::from_pin(programs.map(name))?);
        let maps = Maps {
            frontends: open("frontends")?.try_into()?,
            backends: open("backends")?.try_into()?,
        };
        Ok(Self(Source::Programs(Box::new(maps))))
    }

    /// Whether TCP connections to port 80 of a ClusterIP are balanced: the Service is there, and has endpoints.
    pub(super) fn serves(&self, cluster_ip: Ipv4Addr) -> Result<bool> {
        match &self.0 {
            Source::Rules { socket, map } => Ok(look_up(socket, *map, &key(cluster_ip))?.is_some()),
            Source::Programs(maps) => {
                Ok(found(maps.frontends.get(&frontend(cluster_ip), 0))?.is_some())
            }
        }
    }

    /// Whether a Service has an endpoint, with any of so many indexes.
    pub(super) fn has_endpoint(
        &self,
        cluster_ip: Ipv4Addr,
        count: usize,
        endpoint: Ipv4Addr,
    ) -> Result<bool> {
        for index in 0..u16::try_from(count)? {
            if self.endpoint(cluster_ip, index)? == Some(endpoint) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The endpoint with this index of the Service at port 80 of a ClusterIP.
    pub(super) fn endpoint(&self, cluster_ip: Ipv4Addr, index: u16) -> Result<Option<Ipv4Addr>> {
        match &self.0 {
            Source::Rules { socket, .. } => {
                let mut key = key(cluster_ip);
                key.extend(u32::from(index).to_ne_bytes());
                let answer = look_up(socket, ENDPOINTS, &key)?;
                answer.map(|answer| endpoint_in(&answer)).transpose()
            }
            Source::Programs(maps) => {
                let key = bpf::BackendKey {
                    frontend: frontend(cluster_ip),
                    index: index.into(),
                };
                let backend = found(maps.backends.get(&key, 0))?;
                let ip = backend.map(|backend| match backend.address.into() {
                    IpAddr::V4(ip) => Ok(ip),
                    IpAddr::V6(ip) => bail!("{cluster_ip} leads to {ip}"),
                });
                ip.transpose()
            }
        }
    }
}

/// The key of TCP port 80 of an address in the maps of programs.
fn frontend(cluster_ip: Ipv4Addr) -> bpf::FrontendKey {
    bpf::FrontendKey {
        address: IpAddr::V4(cluster_ip).into(),
        port: 80_u16.to_be(),
        protocol: IPPROTO_TCP,
        kind: bpf::AT_ADDRESS,
    }
}

fn found<T>(entry: Result<T, MapError>) -> Result<Option<T>> {
    match entry {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The kernel's answer about an element, if there is one.
fn look_up(socket: &Socket, (table, map): (&str, &str), key: &[u8]) -> Result<Option<Vec<u8>>> {
    socket.send(&request(table, map, key), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let header = NetlinkBuffer::new_checked(&answer)?;
    match header.message_type() {
        NFT_MSG_NEWSETELEM => Ok(Some(answer)),
        NLMSG_ERROR => {
            let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
            let code = code.map(i32::from_ne_bytes);
            // So it is also where there is no such table.
            ensure!(code == Some(-ENOENT), "nf_tables answers {code:?}");
            Ok(None)
        }
        other => bail!("nf_tables answers with a message of type {other:#x}"),
    }
}

/// The endpoint in the kernel's answer about an element.
fn endpoint_in(answer: &[u8]) -> Result<Ipv4Addr> {
    let path = [
        NFTA_SET_ELEM_LIST_ELEMENTS,
        NFTA_LIST_ELEM,
        NFTA_SET_ELEM_DATA,
        NFTA_DATA_VALUE,
    ];
    let attributes = answer.get(HEADERS_BYTES..).unwrap_or_default();
    let value = path
        .iter()
        .try_fold(attributes, |bytes, kind| get(bytes, *kind));
    let octets: Option<[u8; 4]> = value.and_then(|value| value.get(..4)?.try_into().ok());
    Ok(octets.context("an element without data")?.into())
}

/// The key of TCP port 80 of an address: each part of a concatenation fills whole words.
fn key(cluster_ip: Ipv4Addr) -> Vec<u8> {
    let mut key = cluster_ip.octets().to_vec();
    key.extend([IPPROTO_TCP, 0, 0, 0]);
    key.extend([0, 80, 0, 0]);
    key
}

fn request(table: &str, map: &str, key: &[u8]) -> Vec<u8> {
    let nested = |kind: u16, value: &[u8]| {
        let mut attribute = Vec::new();
        put(&mut attribute, kind | NLA_F_NESTED, value);
        attribute
    };
    let mut value = Vec::new();
    put(&mut value, NFTA_DATA_VALUE, key);
    let element = nested(NFTA_LIST_ELEM, &nested(NFTA_SET_ELEM_KEY, &value));
    let mut buffer = vec![0; HEADERS_BYTES];
    buffer[16] = AF_INET;
    for (kind, name) in [
        (NFTA_SET_ELEM_LIST_TABLE, table),
        (NFTA_SET_ELEM_LIST_SET, map),
    ] {
        put(&mut buffer, kind, &[name.as_bytes(), &[0]].concat());
    }
    put(
        &mut buffer,
        NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED,
        &element,
    );
    let length = u32::try_from(buffer.len()).expect("a request is short");
    let mut header = NetlinkBuffer::new(&mut buffer);
    header.set_length(length);
    header.set_message_type(NFT_MSG_GETSETELEM);
    header.set_flags(NLM_F_REQUEST);
    buffer
}

/// The value of the first attribute of a kind.
fn get(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (length, rest) = bytes.split_first_chunk()?;
        let (found, _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes(*found) & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Appends an attribute.
pub(super) fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of both proxies, as far as they matter here.
    #[test]
    fn services_with_endpoints_are_found_in_either_map() {
        for (table, map) in MAPS {
            let netns = Netns::new().unwrap();
            let rules = format!(
                "table ip {table} {{
                    chain balance {{ }}
                    map {map} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
                }}
                add element ip {table} {map} {{ 10.96.0.1 . tcp . 80 : goto balance }}
                add element ip {table} {map} {{ 10.96.0.2 . udp . 80 : goto balance }}"
            );
            proxyd_tests::agent::nft(&netns, &["-f", "-"], &rules);
            let [known, other] = [1, 2].map(|last| Ipv4Addr::new(10, 96, 0, last));
            assert!(Kernel::find(&netns, other).is_err());
            let kernel = Kernel::find(&netns, known).unwrap();
            let Source::Rules { map: found, .. } = &kernel.0 else {
                panic!("it was looked for in rules");
            };
            assert_eq!(*found, (table, map));
            assert!(kernel.serves(known).unwrap());
            assert!(!kernel.serves(other).unwrap());
            let gone = format!("delete element ip {table} {map} {{ 10.96.0.1 . tcp . 80 }}");
            proxyd_tests::agent::nft(&netns, &["-f", "-"], &gone);
            assert!(!kernel.serves(known).unwrap());
        }
    }

    #[test]
    fn endpoints_are_looked_up_by_their_index() {
        let netns = Netns::new().unwrap();
        let rules = "table ip proxyd {
                chain balance { }
                map services { type ipv4_addr . inet_proto . inet_service : verdict; }
                map endpoints {
                    typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport
                }
            }
            add element ip proxyd services { 10.96.0.1 . tcp . 80 : goto balance }
            add element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 3 : 10.1.2.3 . 8080 }";
        proxyd_tests::agent::nft(&netns, &["-f", "-"], rules);
        let service = Ipv4Addr::new(10, 96, 0, 1);
        let kernel = Kernel::find(&netns, service).unwrap();
        let endpoint = Some(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(kernel.endpoint(service, 3).unwrap(), endpoint);
        assert_eq!(kernel.endpoint(service, 0).unwrap(), None);
    }
}
