//! Fills the connection tracking table of the calling thread's network namespace, by netlink.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use netlink_packet_core::{
    NLA_F_NESTED, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use super::super::kernel::netlink::put;
use super::super::workload::Workload;

// Defined in Linux: include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTNETLINK_NEW: u16 = 0x0100;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

/// Seen reply, assured, confirmed.
const STATUS: u32 = 2 | 4 | 8;

/// Long enough for the bench.
const TIMEOUT_SECONDS: u32 = 3600;

const IPPROTO_UDP: u8 = 17;
const AF_INET: u8 = 2;

/// How many requests are sent at once: their answers have to fit the socket's buffer.
const BATCH: u32 = 128;

/// Source ports of one client.
const PORTS: u32 = 50_000;

/// Adds flows of many clients to the Services of a cluster, each answered by one of the first endpoints there.
pub(super) fn fill(cluster: Workload, flows: u32) -> Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_cap_ack(true)?;
    let ends: Vec<_> = (0..cluster.services)
        .map(|number| ends(cluster, number))
        .collect::<Option<_>>()
        .context("a Service of the cluster has no address")?;
    let mut next = 0;
    while next < flows {
        let batch = next..flows.min(next + BATCH);
        let mut requests = Vec::new();
        for flow in batch.clone() {
            let number = flow as usize;
            let (service, endpoints) = &ends[number % ends.len()];
            let endpoint = endpoints[number / ends.len() % endpoints.len()];
            request(&mut requests, flow, *service, endpoint);
        }
        socket.send(&requests, 0)?;
        answers(&socket, batch.len())?;
        next = batch.end;
    }
    Ok(())
}

/// The ClusterIP of a Service, and its endpoints.
fn ends(cluster: Workload, number: usize) -> Option<(Ipv4Addr, Vec<Ipv4Addr>)> {
    let service = cluster.service(number)["spec"]["clusterIP"]
        .as_str()?
        .parse();
    let slice = cluster.slice(number, 0);
    let endpoints = slice["endpoints"].as_array()?.iter();
    let endpoints = endpoints.map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok());
    Some((service.ok()?, endpoints.collect::<Option<_>>()?))
}

/// Appends a request to add the flow with this number.
fn request(buffer: &mut Vec<u8>, flow: u32, service: Ipv4Addr, endpoint: Ipv4Addr) {
    let client = Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 1).to_bits() + flow / PORTS);
    let port = u16::try_from(10_000 + flow % PORTS).expect("at most 60,000");
    let start = buffer.len();
    buffer.resize(start + 16, 0);
    buffer.extend([AF_INET, 0, 0, 0]);
    let original = tuple((client, port), (service, 80));
    put(buffer, CTA_TUPLE_ORIG | NLA_F_NESTED, &original);
    let reply = tuple((endpoint, 8080), (client, port));
    put(buffer, CTA_TUPLE_REPLY | NLA_F_NESTED, &reply);
    put(buffer, CTA_STATUS, &STATUS.to_be_bytes());
    put(buffer, CTA_TIMEOUT, &TIMEOUT_SECONDS.to_be_bytes());
    let length = u32::try_from(buffer.len() - start).expect("a request is short");
    let mut header = NetlinkBuffer::new(&mut buffer[start..]);
    header.set_length(length);
    header.set_message_type(CTNETLINK_NEW);
    header.set_flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
    header.set_sequence_number(flow);
}

fn tuple(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Vec<u8> {
    let (mut ips, mut ports, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
    put(&mut ips, 1, &source.0.octets());
    put(&mut ips, 2, &destination.0.octets());
    put(&mut ports, 1, &[IPPROTO_UDP]);
    put(&mut ports, 2, &source.1.to_be_bytes());
    put(&mut ports, 3, &destination.1.to_be_bytes());
    put(&mut tuple, CTA_TUPLE_IP | NLA_F_NESTED, &ips);
    put(&mut tuple, CTA_TUPLE_PROTO | NLA_F_NESTED, &ports);
    tuple
}

/// Reads the answers to so many requests; an error if one was refused.
fn answers(socket: &Socket, count: usize) -> Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut answered = 0;
    while answered < count {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let number = message.payload().first_chunk().copied();
            let number = i32::from_ne_bytes(number.context("an answer without a number")?);
            ensure!(
                number == 0,
                "the kernel takes no more flows: {}",
                std::io::Error::from_raw_os_error(-number)
            );
            answered += 1;
            let length = message.length() as usize;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(())
}
