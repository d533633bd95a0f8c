//! What is written can be read back, and a skeleton's version tells programs apart.

use netlink_packet_core::{Emitable, NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetElementList};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use proptest::prelude::*;

use super::*;
use crate::plan::{self, NodePortAddresses, PlanConfig};
use crate::testing::{any_service, any_slice};
use elements::Set;

fn config(pods: &[&str], masquerade_bit: u8) -> SkeletonConfig {
    let networks = |v4: bool| {
        let networks = pods
            .iter()
            .map(|text| text.parse::<ipnet::IpNet>().unwrap());
        networks
            .filter(|network| network.addr().is_ipv4() == v4)
            .collect()
    };
    SkeletonConfig {
        detector: PerFamily {
            v4: crate::dataplane::nft::Detector::Source,
            v6: crate::dataplane::nft::Detector::None,
        },
        pod_networks: PerFamily {
            v4: networks(true),
            v6: networks(false),
        },
        masquerade_bit,
    }
}

#[test]
fn a_version_changes_with_the_program_and_only_then() {
    let version = |config: &SkeletonConfig| Skeleton::new(Family::V4, config).version().to_owned();
    let plain = version(&config(&[], 14));
    assert_eq!(
        plain,
        version(&config(&["fd00::/48"], 14)),
        "the other family's networks have no part in it"
    );
    assert_ne!(plain, version(&config(&[], 15)));
    assert_ne!(plain, version(&config(&["10.0.0.0/8"], 14)));
    let halves = config(&["10.0.0.0/9", "10.128.0.0/9"], 14);
    assert_eq!(version(&config(&["10.0.0.0/8"], 14)), version(&halves));
    assert_ne!(plain, Skeleton::new(Family::V6, &config(&[], 14)).version());
}

#[test]
fn a_chain_of_any_shape_is_known_by_its_name() {
    for (_, at, masquerade) in Chain::SHAPES {
        for count in [1, 7, 32_768] {
            let chain = Chain::Balance {
                at,
                masquerade,
                count,
            };
            assert_eq!(Chain::parse(&chain.to_string()), Some(chain));
        }
    }
    assert_eq!(
        Chain::parse(&Chain::Reject.to_string()),
        Some(Chain::Reject)
    );
    for foreign in [
        "cluster-0",
        "cluster-",
        "cluster",
        "balance",
        "cluster-70000",
        "lb-1",
        "",
    ] {
        assert_eq!(Chain::parse(foreign), None, "{foreign}");
    }
}

/// The message as the kernel would send it back.
fn answered(message: NfTablesMessage) -> decode::Answer {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let message = NetfilterMessage::new(header, message);
    let mut bytes = vec![0; Emitable::buffer_len(&message)];
    message.emit(&mut bytes);
    decode::Answer::deserialize(&NetlinkHeader::default(), &bytes).unwrap()
}

proptest! {
    #[test]
    fn what_is_written_can_be_read_back(
        services in prop::collection::vec(any_service(), 0..5),
        slices in prop::collection::vec(any_slice(), 0..6),
    ) {
        let mut snapshot = crate::model::Snapshot::default();
        services.into_iter().for_each(|service| snapshot.put_service(service));
        slices.into_iter().for_each(|slice| snapshot.put_slice(slice));
        let plan_config = PlanConfig { node_port_addresses: NodePortAddresses::Primary, pod_networks: crate::plan::PodNetworks::Fixed(vec![]), masquerade_all: false };
        for family in Family::ALL {
            let tables = plan::tables(&snapshot, &plan_config, family, &Scope::All);
            let delta = diff(&Held::default(), &tables, &Scope::All);
            let mut written = Held::default();
            written.apply(&delta);

            let mut read = Held::default();
            for message in encode::additions(&elements(&delta).added) {
                let NfTablesMessage::NewSetElement(elements) = &message else {
                    panic!("an addition of elements was expected");
                };
                let is_for = |set: &Set| {
                    elements.attributes.contains(&SetElementList::Set(set.name().to_owned()))
                };
                let set = Set::ALL.into_iter().find(is_for).unwrap();
                let answer = answered(message);
                prop_assert_eq!(decode::note_elements(&mut read, set, family, &answer), Some(()));
            }
            prop_assert_eq!(written, read);
        }
    }
}
