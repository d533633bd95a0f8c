//! What is written can be read back, and a skeleton's version tells programs apart.

use netlink_packet_core::{Emitable, NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetElementList};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use proptest::prelude::*;

use super::*;
use crate::diff::{Change, Slot, Verdict};
use crate::model::{AffinityTimeout, Frontend, Protocol};
use crate::plan::{self, Affinity, Detector, Member, PlanConfig, PodNetworks};
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
        rejects_unused_ports: true,
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
        SkeletonConfig {
            rejects_unused_ports: false,
            ..config(Detector::None, 14)
        },
    ];
    let versions = |family| -> BTreeSet<String> {
        let skeletons = configs.iter().map(|c| Skeleton::new(family, c));
        skeletons.map(|s| s.version().to_owned()).collect()
    };
    assert_eq!(versions(Family::V4).len(), configs.len());
    // The other family's detector has no part in it.
    assert_eq!(versions(Family::V6).len(), 3);
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

/// A Service port with a front end at its ClusterIP and a NodePort, which keep their clients, and what is remembered of one of those.
struct Sticky {
    held: Held,
    cluster_ip: Frontend,
    node_port: Frontend,
}

const NODE: &str = "192.168.0.2";

fn sticky(is_mixed: bool) -> Sticky {
    let cluster_ip = Frontend::Address {
        ip: ip("10.96.0.1"),
        protocol: Protocol::Tcp,
        port: port(80),
    };
    let node_port = Frontend::NodePort {
        family: Family::V4,
        protocol: Protocol::Tcp,
        port: port(30_080),
    };
    let mut held = Held::default();
    for frontend in [cluster_ip, node_port] {
        held.set_verdict(
            frontend,
            Some(verdict(2, affinity(cluster_ip, is_mixed, 60))),
        );
        let backends = ["10.1.0.1:80", "10.1.0.2:80"].map(backend);
        for (index, backend) in (0..).zip(backends) {
            held.set_backend(Slot { frontend, index }, Some(backend));
        }
    }
    held.members.insert(Member::NodePortAddress(ip(NODE)));
    Sticky {
        held,
        cluster_ip,
        node_port,
    }
}

/// A client that was sent somewhere, by the address and port under which it is remembered.
fn choice(called: &str, to: &str) -> decode::Choice {
    let called: std::net::SocketAddr = called.parse().unwrap();
    decode::Choice {
        key: Vec::new(),
        client: ip("10.9.0.9"),
        called: called.ip(),
        protocol: Protocol::Tcp,
        port: port(called.port()),
        backend: backend(to),
        left: std::time::Duration::from_secs(60),
    }
}

fn affinity(key: Frontend, is_mixed: bool, seconds: u32) -> Option<Affinity> {
    Some(Affinity {
        timeout: AffinityTimeout::new(seconds)?,
        key,
        is_mixed,
    })
}

fn verdict(count: u16, affinity: Option<Affinity>) -> Verdict {
    Verdict::Balance {
        policy: plan::Policy::Cluster,
        count,
        local: 0,
        affinity,
    }
}

/// The second back end of a front end takes the place of the first, which leaves.
fn first_leaves(frontend: Frontend) -> Vec<Change<Slot, plan::Backend>> {
    let change = |index, from, to: Option<&str>| Change {
        key: Slot { frontend, index },
        from: Some(backend(from)),
        to: to.map(backend),
    };
    vec![
        change(0, "10.1.0.1:80", Some("10.1.0.2:80")),
        change(1, "10.1.0.2:80", None),
    ]
}

#[test]
fn a_client_is_forgotten_when_its_back_end_leaves() {
    let Sticky {
        held,
        cluster_ip,
        node_port,
    } = sticky(false);
    let delta = Delta {
        backends: [first_leaves(cluster_ip), first_leaves(node_port)].concat(),
        ..Delta::default()
    };
    let forgotten = Forgotten::by(&held, &delta);
    assert!(forgotten.contains(&choice("10.96.0.1:80", "10.1.0.1:80")));
    assert!(!forgotten.contains(&choice("10.96.0.1:80", "10.1.0.2:80")));
    assert!(!forgotten.contains(&choice("10.96.0.2:80", "10.1.0.1:80")));
    let another = Delta {
        backends: vec![Change {
            key: Slot {
                frontend: cluster_ip,
                index: 2,
            },
            from: None,
            to: Some(backend("10.1.0.3:80")),
        }],
        ..Delta::default()
    };
    assert!(Forgotten::by(&held, &another).is_empty());
}

#[test]
fn front_ends_with_other_back_ends_are_remembered_by_themselves() {
    let Sticky {
        held,
        cluster_ip,
        node_port,
    } = sticky(true);
    let of = |frontend| Delta {
        backends: first_leaves(frontend),
        ..Delta::default()
    };
    let at_node_port = choice(&format!("{NODE}:30080"), "10.1.0.1:80");
    let at_cluster_ip = choice("10.96.0.1:80", "10.1.0.1:80");
    let left_node_port = Forgotten::by(&held, &of(node_port));
    assert!(left_node_port.contains(&at_node_port));
    assert!(!left_node_port.contains(&at_cluster_ip));
    let left_cluster_ip = Forgotten::by(&held, &of(cluster_ip));
    assert!(!left_cluster_ip.contains(&at_node_port));
    assert!(left_cluster_ip.contains(&at_cluster_ip));
    let kept = forget::kept(&[at_node_port, at_cluster_ip], &held);
    assert_eq!(kept.len(), 2);
}

#[test]
fn all_clients_are_forgotten_when_affinity_ends() {
    let Sticky {
        held,
        cluster_ip,
        node_port,
    } = sticky(false);
    let with = |seconds| affinity(cluster_ip, false, seconds);
    let becomes = |frontends: &[Frontend], to| {
        let rules = frontends.iter().map(|key| Change {
            key: *key,
            from: Some(verdict(2, with(60))),
            to,
        });
        let delta = Delta {
            rules: rules.collect(),
            ..Delta::default()
        };
        Forgotten::by(&held, &delta).contains(&choice("10.96.0.1:80", "10.1.0.2:80"))
    };
    let both = [cluster_ip, node_port];
    assert!(becomes(&both, Some(verdict(2, None))));
    assert!(becomes(&both, Some(Verdict::Reject)));
    assert!(becomes(&both, None));
    assert!(!becomes(&[node_port], None), "only the NodePort is gone");
    assert!(
        !becomes(&both, Some(verdict(3, with(60)))),
        "one more back end"
    );
    assert!(!becomes(&both, Some(verdict(2, with(61)))));
}

#[test]
fn what_is_remembered_is_known_by_its_key_and_back_end() {
    let Sticky {
        mut held,
        cluster_ip,
        node_port,
    } = sticky(false);
    let known =
        |held: &Held, called, to| !Forgotten::unknown_to(held).contains(&choice(called, to));
    assert!(known(&held, "10.96.0.1:80", "10.1.0.1:80"));
    assert!(!known(&held, "10.96.0.1:80", "10.1.0.3:80"));
    assert!(!known(&held, "192.168.0.2:30080", "10.1.0.1:80"));
    held.set_verdict(cluster_ip, Some(verdict(2, None)));
    assert!(
        known(&held, "10.96.0.1:80", "10.1.0.1:80"),
        "by the NodePort"
    );
    held.set_verdict(node_port, Some(verdict(2, None)));
    assert!(!known(&held, "10.96.0.1:80", "10.1.0.1:80"));
}

#[test]
fn clients_of_another_table_are_kept_by_the_key_of_their_service_port() {
    let Sticky {
        held, cluster_ip, ..
    } = sticky(false);
    let at_node_port = format!("{NODE}:30080");
    let kept = |choices: &[decode::Choice]| -> Vec<plan::Backend> {
        let kept = forget::kept(choices, &held);
        assert!(kept.iter().all(|kept| kept.key == cluster_ip));
        kept.into_iter().map(|kept| kept.backend).collect()
    };
    let mut old = choice(&at_node_port, "10.1.0.1:80");
    assert_eq!(kept(&[old.clone()]), [backend("10.1.0.1:80")]);
    // What the shared key has counts more, and else what was chosen last.
    let shared = choice("10.96.0.1:80", "10.1.0.2:80");
    assert_eq!(kept(&[old.clone(), shared]), [backend("10.1.0.2:80")]);
    old.left /= 2;
    let later = choice(&at_node_port, "10.1.0.2:80");
    assert_eq!(kept(&[later, old]), [backend("10.1.0.2:80")]);
    let none = ["10.96.0.1:81", "10.9.9.9:30080"].map(|called| choice(called, "10.1.0.1:80"));
    assert_eq!(kept(&none), []);
    assert_eq!(
        kept(&[choice("10.96.0.1:80", "10.1.0.9:80")]),
        [],
        "it is gone"
    );
    // None stays longer than a new connection would have it remembered.
    let mut ancient = choice("10.96.0.1:80", "10.1.0.1:80");
    ancient.left *= 100;
    let left = forget::kept(&[ancient], &held)[0].left;
    assert_eq!(left, std::time::Duration::from_secs(60));
}
