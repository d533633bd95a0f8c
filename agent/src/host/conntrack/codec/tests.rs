//! Messages as the kernel writes them, and what they are taken for.

use proptest::prelude::*;

use super::*;

const NESTED: u16 = NLA_F_NESTED;

/// A list of attributes.
fn list(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut buffer = Vec::new();
    for (kind, value) in attributes {
        put(&mut buffer, *kind, value);
    }
    buffer
}

fn tuple(protocol: u8, source: &str, destination: &str) -> Vec<u8> {
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let [source, destination]: [SocketAddr; 2] =
        [source, destination].map(|text| text.parse().unwrap());
    let kinds = if source.is_ipv4() {
        [CTA_IP_V4_SRC, CTA_IP_V4_DST]
    } else {
        [CTA_IP_V6_SRC, CTA_IP_V6_DST]
    };
    list(&[
        (
            CTA_TUPLE_IP | NESTED,
            &list(&[
                (kinds[0], &bytes(source.ip())),
                (kinds[1], &bytes(destination.ip())),
            ]),
        ),
        (
            CTA_TUPLE_PROTO | NESTED,
            &list(&[
                (CTA_PROTO_NUM, &[protocol]),
                (CTA_PROTO_SRC_PORT, &source.port().to_be_bytes()),
                (CTA_PROTO_DST_PORT, &destination.port().to_be_bytes()),
            ]),
        ),
    ])
}

/// A message about a flow, with an attribute that is of no interest and an ID.
fn flow_message(buffer: &mut Vec<u8>, family: u8, original: &[u8], reply: &[u8]) {
    flow_message_in(buffer, family, [original, reply], &[0, 0, 1, 0x8e], None);
}

/// The same with a status, and a state of TCP.
fn flow_message_in(
    buffer: &mut Vec<u8>,
    family: u8,
    [original, reply]: [&[u8]; 2],
    status: &[u8],
    tcp: Option<u8>,
) {
    message(buffer, (IPCTNL_MSG_CT_GET, 0), family, 7, |attributes| {
        put(attributes, CTA_TUPLE_ORIG | NESTED, original);
        put(attributes, CTA_TUPLE_REPLY | NESTED, reply);
        put(attributes, CTA_STATUS, status);
        if let Some(state) = tcp {
            let tcp = list(&[(CTA_PROTOINFO_TCP_STATE, &[state]), (2, &[7])]);
            let of_protocol = list(&[(CTA_PROTOINFO_TCP | NESTED, &tcp)]);
            put(attributes, CTA_PROTOINFO | NESTED, &of_protocol);
        }
        put(attributes, CTA_ID, &[1, 2, 3, 4]);
    });
}

fn end(buffer: &mut Vec<u8>, kind: u16, number: i32) {
    let start = buffer.len();
    buffer.resize(start + NETLINK_HEADER_LENGTH, 0);
    buffer.extend(number.to_ne_bytes());
    let mut header = NetlinkBuffer::new(&mut buffer[start..]);
    header.set_length(20);
    header.set_message_type(kind);
    header.set_sequence_number(7);
}

const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const V4: u8 = 2;
const V6: u8 = 10;

#[test]
fn flows_of_services_protocols_are_found_among_others() {
    let mut received = Vec::new();
    let udp = tuple(UDP, "10.244.1.5:4000", "10.96.0.10:53");
    let back = tuple(UDP, "10.244.2.2:5353", "192.168.0.2:61000");
    flow_message(&mut received, V4, &udp, &back);
    let tcp = tuple(TCP, "10.244.1.5:4000", "10.96.0.10:53");
    flow_message(&mut received, V4, &tcp, &tcp);
    let icmp = tuple(ICMP, "10.244.1.5:0", "10.96.0.10:0");
    flow_message(&mut received, V4, &icmp, &icmp);
    let udp6 = tuple(UDP, "[fd00::5]:4000", "[fd00:96::10]:53");
    let back6 = tuple(UDP, "[fd00::2]:5353", "[fd00::5]:4000");
    flow_message(&mut received, V6, &udp6, &back6);
    end(&mut received, NLMSG_DONE, 0);

    let entry = |family, protocol, original, destination: &str, reply_source: &str| {
        Answer::Flow(Entry {
            flow: Flow {
                protocol,
                answered: true,
                destination: destination.parse().unwrap(),
                reply_source: reply_source.parse().unwrap(),
            },
            family,
            original,
            id: Some(&[1, 2, 3, 4]),
            zone: None,
        })
    };
    let found: Vec<_> = answers(&received).collect();
    let expected = [
        entry(V4, Protocol::Udp, &udp, "10.96.0.10:53", "10.244.2.2:5353"),
        entry(V4, Protocol::Tcp, &tcp, "10.96.0.10:53", "10.244.1.5:4000"),
        Answer::Other,
        entry(
            V6,
            Protocol::Udp,
            &udp6,
            "[fd00:96::10]:53",
            "[fd00::2]:5353",
        ),
        Answer::End(0),
    ];
    assert_eq!(found, expected.map(|answer| (7, answer)));
}

#[test]
fn a_flow_is_deleted_by_what_named_it() {
    let original = tuple(UDP, "10.244.1.5:4000", "10.96.0.10:53");
    let mut received = Vec::new();
    message(&mut received, (IPCTNL_MSG_CT_GET, 0), V4, 7, |attributes| {
        put(attributes, CTA_TUPLE_ORIG | NESTED, &original);
        put(attributes, CTA_TUPLE_REPLY | NESTED, &original);
        put(attributes, CTA_ZONE, &[0, 9]);
        put(attributes, CTA_ID, &[1, 2, 3, 4]);
    });
    let Some((_, Answer::Flow(entry))) = answers(&received).next() else {
        panic!("a flow");
    };
    let mut request = b"before".to_vec();
    delete(&mut request, &entry, 11);
    let request = NetlinkBuffer::new_checked(&request[6..]).unwrap();
    assert_eq!(request.sequence_number(), 11);
    assert_eq!(request.message_type(), 0x0102);
    assert_eq!(request.flags(), NLM_F_REQUEST | NLM_F_ACK);
    let expected = list(&[
        (CTA_TUPLE_ORIG | NESTED, &original),
        (CTA_ID, &[1, 2, 3, 4]),
        (CTA_ZONE, &[0, 9]),
    ]);
    assert_eq!(
        request.payload(),
        [&[V4, 0, 0, 0], expected.as_slice()].concat()
    );
}

#[test]
fn errors_end_an_answer() {
    let mut received = Vec::new();
    end(&mut received, NLMSG_ERROR, -2);
    end(&mut received, NLMSG_DONE, -4);
    let found: Vec<_> = answers(&received).map(|(_, answer)| answer).collect();
    assert_eq!(found, [Answer::End(-2), Answer::End(-4)]);
}

proptest! {
    /// What is cut off, or changed in one place, is not taken for another flow, and nothing breaks.
    #[test]
    fn broken_messages_break_nothing(at in 0..200_usize, byte in any::<u8>(), length in 0..200_usize) {
        let original = tuple(UDP, "10.244.1.5:4000", "10.96.0.10:53");
        let mut received = Vec::new();
        flow_message(&mut received, V4, &original, &original);
        let whole = received.clone();
        if let Some(place) = received.get_mut(at) {
            *place = byte;
        }
        prop_assert!(answers(&received).count() <= whole.len() / NETLINK_HEADER_LENGTH);
        let cut = answers(&whole[..length.min(whole.len())]).count();
        prop_assert_eq!(cut, usize::from(length >= whole.len()));
    }
}

#[test]
fn only_a_connection_that_has_not_come_further_than_its_first_packet_is_unanswered() {
    const SCTP: u8 = 132;
    const NONE_SEEN: [u8; 4] = [0, 0, 1, 0x88];
    const SEEN: [u8; 4] = [0, 0, 1, 0x8a];
    let check = |protocol, status: &[u8], tcp, expected| {
        let original = tuple(protocol, "10.244.1.5:4000", "203.0.113.80:80");
        let mut received = Vec::new();
        flow_message_in(&mut received, V4, [&original, &original], status, tcp);
        let Some((_, Answer::Flow(entry))) = answers(&received).next() else {
            panic!("a flow");
        };
        assert_eq!(
            entry.flow.answered, expected,
            "{protocol} {status:?} {tcp:?}"
        );
    };
    check(TCP, &NONE_SEEN, Some(1), false);
    // Established, and so taken from the middle: the answers go another way.
    check(TCP, &NONE_SEEN, Some(3), true);
    check(TCP, &SEEN, Some(2), true);
    check(TCP, &NONE_SEEN, None, true);
    check(UDP, &NONE_SEEN, None, false);
    check(UDP, &SEEN, None, true);
    check(SCTP, &NONE_SEEN, None, false);
    check(SCTP, &SEEN, None, true);
    check(SCTP, &[0, 0], None, true);
}
