//! What is written can be read back, and a skeleton's version tells programs apart.

use netlink_packet_core::{Emitable, NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetElementList};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use proptest::prelude::*;

use super::*;
use crate::diff::{Change, Slot, Verdict};
use crate::model::{AffinityTimeout, Frontend, Protocol};
use crate::plan::{self, Detector, Member, PlanConfig, PodNetworks};
use crate::testing::{any_service, any_service_cidr, any_slice, backend, ip, plan_config, port};
use decode::Reading;
use elements::Set;

fn config(v4: Detector, masquerade_bit: u8) -> SkeletonConfig {
    SkeletonConfig {
        detector: PerFamily {
            v4,
            v6: Detector::None,
        },
        masquerade_bit,
    }
}

#[test]
fn a_version_changes_with_the_program_and_only_then() {
    let interface = |name: &str, prefix| Detector::Interface {
        name: name.to_owned(),
        prefix,
    };
    let configs = [
        config(Detector::None, 14),
        config(Detector::None, 15),
        config(Detector::Source, 14),
        config(interface("cbr0", false), 14),
        config(interface("cbr0", true), 14),
        config(interface("cbr1", true), 14),
    ];
    let versions = |family| -> BTreeSet<String> {
        let skeletons = configs.iter().map(|c| Skeleton::new(family, c));
        skeletons.map(|s| s.version().to_owned()).collect()
    };
    assert_eq!(versions(Family::V4).len(), configs.len());
    // The other family's detector has no part in it.
    assert_eq!(versions(Family::V6).len(), 2);
    assert!(versions(Family::V4).is_disjoint(&versions(Family::V6)));
    let again = Skeleton::new(Family::V4, &configs[0]);
    assert!(versions(Family::V4).contains(again.version()));
}

/// The message as the kernel would send it back.
fn answered(message: NfTablesMessage) -> decode::Answer {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let message = NetfilterMessage::new(header, message);
    let mut bytes = vec![0; Emitable::buffer_len(&message)];
    message.emit(&mut bytes);
    decode::Answer::deserialize(&NetlinkHeader::default(), &bytes).unwrap()
}

#[test]
fn more_changes_than_are_worth_asking_for_are_taken_for_any() {
    let change = |number: u32| notice::Meddling {
        keys: [(Set::Services, number.to_be_bytes().to_vec())].into(),
        ..notice::Meddling::default()
    };
    let mut meddling = notice::Meddling::default();
    (0..4_096).for_each(|number| meddling.add(change(number)));
    // One that is there already is not one more.
    meddling.add(change(0));
    assert_eq!((meddling.keys.len(), meddling.unheard), (4_096, false));
    meddling.add(change(4_096));
    assert_eq!(meddling, notice::Meddling::unheard());
    meddling.add(change(1));
    assert_eq!(meddling, notice::Meddling::unheard());
}

proptest! {
    #[test]
    fn what_is_written_can_be_read_back(
        services in prop::collection::vec(any_service(), 0..5),
        slices in prop::collection::vec(any_slice(), 0..6),
        cidrs in prop::collection::vec(any_service_cidr(), 0..3),
    ) {
        let mut snapshot = crate::model::Snapshot::default();
        services.into_iter().for_each(|service| snapshot.put_service(service));
        slices.into_iter().for_each(|slice| snapshot.put_slice(slice));
        // Networks that are neighbours: the one's end is the other's beginning.
        let pods = ["10.244.0.0/16", "10.245.0.0/24", "0.0.0.0/8", "255.0.0.0/8", "fd00:1::/32", "fd00:2::/31"];
        let pods = pods.map(|text| text.parse().unwrap());
        snapshot.set_service_cidrs(cidrs);
        let config = PlanConfig { pod_networks: PodNetworks::Fixed(pods.into()), ..plan_config() };
        for family in Family::ALL {
            let tables = plan::tables(&snapshot, &config, family, &Scope::All);
            let delta = diff(&Held::default(), &tables, &Scope::All);
            let mut written = Held::default();
            written.apply(&delta);

            let mut reading = Reading::new(family);
            for message in encode::additions(&elements(&delta).added) {
                let NfTablesMessage::NewSetElement(elements) = &message else {
                    panic!("an addition of elements was expected");
                };
                let is_for = |set: &Set| {
                    elements.attributes.contains(&SetElementList::Set(set.name().to_owned()))
                };
                let set = Set::ALL.into_iter().find(is_for).unwrap();
                let answer = answered(message);
                prop_assert_eq!(reading.note(set, &answer), Some(()));
            }
            prop_assert_eq!(reading.finish(), Some(written));
        }
    }
}

/// A front end that keeps its clients, and what is remembered of one of them.
fn sticky() -> (Held, Frontend, impl Fn(&str, &str) -> decode::Choice) {
    let frontend = Frontend::Address {
        ip: ip("10.96.0.1"),
        protocol: Protocol::Tcp,
        port: port(80),
    };
    let mut held = Held::default();
    held.set_verdict(frontend, Some(verdict(2, AffinityTimeout::new(60))));
    let backends = ["10.1.0.1:80", "10.1.0.2:80"].map(backend);
    for (index, backend) in (0..).zip(backends) {
        held.set_backend(Slot { frontend, index }, Some(backend));
    }
    let choice = |called: &str, to: &str| decode::Choice {
        key: Vec::new(),
        called: ip(called),
        protocol: Protocol::Tcp,
        port: port(80),
        backend: backend(to),
        left: std::time::Duration::from_secs(60),
    };
    (held, frontend, choice)
}

fn verdict(count: u16, affinity: Option<AffinityTimeout>) -> Verdict {
    Verdict::Balance {
        policy: plan::Policy::Cluster,
        count,
        local: 0,
        affinity,
    }
}

#[test]
fn a_client_is_forgotten_when_its_back_end_leaves() {
    let (held, frontend, choice) = sticky();
    let change = |index, from: Option<&str>, to: Option<&str>| Change {
        key: Slot { frontend, index },
        from: from.map(backend),
        to: to.map(backend),
    };
    // The second back end takes the place of the first, which leaves.
    let delta = Delta {
        backends: vec![
            change(0, Some("10.1.0.1:80"), Some("10.1.0.2:80")),
            change(1, Some("10.1.0.2:80"), None),
        ],
        ..Delta::default()
    };
    let forgotten = Forgotten::by(&held, &delta);
    assert!(forgotten.contains(&choice("10.96.0.1", "10.1.0.1:80")));
    assert!(!forgotten.contains(&choice("10.96.0.1", "10.1.0.2:80")));
    assert!(!forgotten.contains(&choice("10.96.0.2", "10.1.0.1:80")));
    let another = Delta {
        backends: vec![change(2, None, Some("10.1.0.3:80"))],
        ..Delta::default()
    };
    assert!(Forgotten::by(&held, &another).is_empty());
}

#[test]
fn all_clients_are_forgotten_when_affinity_ends() {
    let (held, frontend, choice) = sticky();
    let with = AffinityTimeout::new(60);
    let becomes = |to| {
        let from = Some(verdict(2, with));
        let rules = vec![Change {
            key: frontend,
            from,
            to,
        }];
        let delta = Delta {
            rules,
            ..Delta::default()
        };
        Forgotten::by(&held, &delta).contains(&choice("10.96.0.1", "10.1.0.2:80"))
    };
    assert!(becomes(Some(verdict(2, None))));
    assert!(becomes(Some(Verdict::Reject)));
    assert!(becomes(None));
    assert!(!becomes(Some(verdict(3, with))), "one more back end");
    assert!(!becomes(Some(verdict(2, AffinityTimeout::new(61)))));
}

#[test]
fn what_is_remembered_is_known_by_its_front_end_and_back_end() {
    let (mut held, frontend, choice) = sticky();
    let known =
        |held: &Held, called, to| !Forgotten::unknown_to(held).contains(&choice(called, to));
    assert!(known(&held, "10.96.0.1", "10.1.0.1:80"));
    assert!(!known(&held, "10.96.0.1", "10.1.0.3:80"));
    assert!(!known(&held, "192.168.0.2", "10.1.0.1:80"));
    let node_port = Frontend::NodePort {
        family: Family::V4,
        protocol: Protocol::Tcp,
        port: port(80),
    };
    let entry = held.entries[&frontend].clone();
    held.entries.insert(node_port, entry);
    assert!(!known(&held, "192.168.0.2", "10.1.0.1:80"));
    held.members
        .insert(Member::NodePortAddress(ip("192.168.0.2")));
    assert!(known(&held, "192.168.0.2", "10.1.0.1:80"));
    held.set_verdict(frontend, Some(verdict(2, None)));
    assert!(!known(&held, "10.96.0.1", "10.1.0.1:80"));
}
