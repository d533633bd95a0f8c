//! What the kernel holds of a Service: single elements and chains of nftables, or entries of BPF maps.
//!
//! A lookup costs microseconds, whatever the number of Services, and holds no transaction up (see [`netlink`]). Where
//! one looks depends on the proxy: proxyd has a map from ClusterIP, protocol and port of a Service that has endpoints
//! to the chain that balances, and one of single endpoints. So has kube-proxy's mode nftables for Services, but its
//! endpoints are in an anonymous map of the Service's chain. In its mode iptables, Services and endpoints are chains (and
//! endpoints are in older versions of the other one): those count that something leads to.

pub(super) mod netlink;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use proxyd_ebpf_common as bpf;
use proxyd_tests::netns::Netns;
use proxyd_tests::sockets::Sockets;

use super::peer::PeerMode;
use super::workload::Service;
use netlink::NfTables;

const IPPROTO_TCP: u8 = 6;

/// proxyd's table of family `ip`.
const TABLE: &str = "proxyd";

/// Looks Services up where a proxy keeps them.
pub(super) enum Kernel {
    /// In proxyd's rules.
    Rules(NfTables),
    /// In the maps of its programs.
    Programs(Box<Maps>),
    /// In a peer's rules.
    Peer(NfTables, PeerMode),
}

/// The maps of programs.
pub(super) struct Maps {
    frontends: HashMap<MapData, bpf::FrontendKey, bpf::Frontend>,
    backends: HashMap<MapData, bpf::BackendKey, bpf::Destination>,
}

impl Kernel {
    /// Looks in the rules of proxyd in a namespace.
    pub(super) fn of_rules(netns: &Netns) -> Result<Self> {
        Ok(Self::Rules(NfTables::of(netns)?))
    }

    /// Looks in the rules of a peer in a namespace.
    pub(super) fn of_peer(netns: &Netns, mode: PeerMode) -> Result<Self> {
        Ok(Self::Peer(NfTables::of(netns)?, mode))
    }

    /// Opens the maps of programs.
    pub(super) fn of_programs(programs: &Sockets) -> Result<Self> {
        let open = |name| Map::from_map_data(MapData::from_pin(programs.map(name))?);
        let maps = Maps {
            frontends: open("frontends")?.try_into()?,
            backends: open("backends")?.try_into()?,
        };
        Ok(Self::Programs(Box::new(maps)))
    }

    /// Whether TCP connections to port 80 of a Service are balanced: it is there, and has endpoints.
    pub(super) fn serves(&self, service: Service) -> Result<bool> {
        let key = key(service.cluster_ip);
        match self {
            Self::Rules(tables) => Ok(tables.element(TABLE, "services", &key)?.is_some()),
            Self::Programs(maps) => {
                Ok(found(maps.frontends.get(&frontend(service.cluster_ip), 0))?.is_some())
            }
            Self::Peer(tables, mode @ PeerMode::Nftables) => {
                Ok(tables.element(mode.table(), "service-ips", &key)?.is_some())
            }
            Self::Peer(tables, mode @ PeerMode::Iptables) => {
                tables.is_used(mode.table(), &mode.service_chain(service))
            }
        }
    }

    /// Whether a Service has an endpoint, with any of so many indexes.
    pub(super) fn has_endpoint(
        &self,
        service: Service,
        count: usize,
        endpoint: Ipv4Addr,
    ) -> Result<bool> {
        if let Self::Peer(tables, mode) = self {
            let chain = mode.endpoint_chain(service, endpoint);
            let is_used = tables.is_used(mode.table(), &chain)?;
            if is_used || *mode == PeerMode::Iptables {
                return Ok(is_used);
            }
            // An address and a port, each of which fills whole words.
            let value = [&endpoint.octets()[..], &[0x1f, 0x90, 0, 0]].concat();
            return tables.maps_to(mode.table(), &mode.service_chain(service), &value);
        }
        for index in 0..u16::try_from(count)? {
            if self.endpoint(service.cluster_ip, index)? == Some(endpoint) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The endpoint with this index of the Service at port 80 of a ClusterIP. Only proxyd's have one.
    pub(super) fn endpoint(&self, cluster_ip: Ipv4Addr, index: u16) -> Result<Option<Ipv4Addr>> {
        match self {
            Self::Rules(tables) => {
                let mut key = key(cluster_ip);
                key.extend(u32::from(index).to_ne_bytes());
                let answer = tables.element(TABLE, "endpoints", &key)?;
                answer.map(|answer| endpoint_in(&answer)).transpose()
            }
            Self::Programs(maps) => {
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
            Self::Peer(..) => bail!("a peer's endpoints have no index"),
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

/// The endpoint in the kernel's answer about an element.
fn endpoint_in(answer: &[u8]) -> Result<Ipv4Addr> {
    let octets: Option<[u8; 4]> =
        netlink::data(answer).and_then(|value| value.get(..4)?.try_into().ok());
    Ok(octets.context("an element without data")?.into())
}

/// The key of TCP port 80 of an address: each part of a concatenation fills whole words.
fn key(cluster_ip: Ipv4Addr) -> Vec<u8> {
    let mut key = cluster_ip.octets().to_vec();
    key.extend([IPPROTO_TCP, 0, 0, 0]);
    key.extend([0, 80, 0, 0]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service {
        number: 7,
        cluster_ip: Ipv4Addr::new(10, 96, 0, 1),
    };
    const OTHER: Service = Service {
        number: 8,
        cluster_ip: Ipv4Addr::new(10, 96, 0, 2),
    };
    const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);

    fn load(netns: &Netns, rules: &str) {
        proxyd_tests::agent::nft(netns, &["-f", "-"], rules);
    }

    /// The maps of both proxies, as far as they matter here.
    #[test]
    fn services_with_endpoints_are_found_in_maps() {
        for (table, map) in [(TABLE, "services"), ("kube-proxy", "service-ips")] {
            let netns = Netns::new().unwrap();
            let kernel = match table {
                TABLE => Kernel::of_rules(&netns).unwrap(),
                _ => Kernel::of_peer(&netns, PeerMode::Nftables).unwrap(),
            };
            assert!(!kernel.serves(SERVICE).unwrap(), "there is no table");
            load(
                &netns,
                &format!(
                    "table ip {table} {{
                        chain balance {{ }}
                        map {map} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
                    }}
                    add element ip {table} {map} {{ 10.96.0.1 . tcp . 80 : goto balance }}
                    add element ip {table} {map} {{ 10.96.0.2 . udp . 80 : goto balance }}"
                ),
            );
            assert!(kernel.serves(SERVICE).unwrap());
            assert!(!kernel.serves(OTHER).unwrap());
            let gone = format!("delete element ip {table} {map} {{ 10.96.0.1 . tcp . 80 }}");
            load(&netns, &gone);
            assert!(!kernel.serves(SERVICE).unwrap());
        }
    }

    #[test]
    fn endpoints_are_looked_up_by_their_index() {
        let netns = Netns::new().unwrap();
        let rules = "table ip proxyd {
                map endpoints {
                    typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport
                }
            }
            add element ip proxyd endpoints { 10.96.0.1 . tcp . 80 . 3 : 10.1.2.3 . 8080 }";
        load(&netns, rules);
        let kernel = Kernel::of_rules(&netns).unwrap();
        let at = |index| kernel.endpoint(SERVICE.cluster_ip, index).unwrap();
        assert_eq!((at(3), at(0)), (Some(ENDPOINT), None));
        assert!(kernel.has_endpoint(SERVICE, 4, ENDPOINT).unwrap());
        assert!(!kernel.has_endpoint(SERVICE, 3, ENDPOINT).unwrap());
    }

    #[test]
    fn endpoints_of_a_peer_are_found_in_the_map_of_the_chain_of_a_service() {
        let mode = PeerMode::Nftables;
        let chain = mode.service_chain(SERVICE);
        let netns = Netns::new().unwrap();
        let rules = format!(
            "table ip kube-proxy {{
                chain {chain} {{
                    meta l4proto tcp dnat ip to numgen random mod 2 map {{ 0 : 10.1.2.2 . 8080, 1 : {ENDPOINT} . 8080 }}
                }}
            }}"
        );
        load(&netns, &rules);
        let kernel = Kernel::of_peer(&netns, mode).unwrap();
        let has = |service, endpoint| kernel.has_endpoint(service, 0, endpoint).unwrap();
        assert!(has(SERVICE, ENDPOINT));
        assert!(!has(SERVICE, Ipv4Addr::new(10, 1, 2, 4)));
        assert!(!has(OTHER, ENDPOINT));
        load(&netns, &format!("flush chain ip kube-proxy {chain}"));
        assert!(!has(SERVICE, ENDPOINT));
    }

    /// Chains that are left over have rules, and nothing leads to them.
    #[test]
    fn chains_of_a_peer_count_while_something_leads_to_them() {
        let service = "KUBE-SVC-TQ6DFFBKXAVMKV6V";
        for mode in [PeerMode::Iptables, PeerMode::Nftables] {
            let netns = Netns::new().unwrap();
            let kernel = Kernel::of_peer(&netns, mode).unwrap();
            let has_endpoint = || kernel.has_endpoint(SERVICE, 1, ENDPOINT).unwrap();
            assert!(!has_endpoint(), "there is no table");
            let table = mode.table();
            let (chain, endpoint) = match mode {
                PeerMode::Iptables => (service, mode.endpoint_chain(SERVICE, ENDPOINT)),
                PeerMode::Nftables => ("balance", mode.endpoint_chain(SERVICE, ENDPOINT)),
            };
            load(
                &netns,
                &format!(
                    "table ip {table} {{
                        chain {endpoint} {{ counter; accept; }}
                        chain {chain} {{ counter; }}
                        chain services {{ }}
                    }}"
                ),
            );
            assert!(!has_endpoint());
            let way = match mode {
                PeerMode::Iptables => format!("jump {endpoint}"),
                PeerMode::Nftables => {
                    format!("numgen random mod 1 vmap {{ 0 : goto {endpoint} }}")
                }
            };
            load(&netns, &format!("add rule ip {table} {chain} {way}"));
            assert!(has_endpoint());
            assert!(!kernel.has_endpoint(OTHER, 1, ENDPOINT).unwrap());
            load(&netns, &format!("flush chain ip {table} {chain}"));
            assert!(!has_endpoint());
            if mode == PeerMode::Iptables {
                assert!(!kernel.serves(SERVICE).unwrap());
                load(
                    &netns,
                    &format!("add rule ip nat services ip daddr 10.96.0.1 jump {chain}"),
                );
                assert!(kernel.serves(SERVICE).unwrap());
            }
        }
    }
}
