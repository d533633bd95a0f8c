//! Random API objects: nothing that an API server or a file can hold makes the agent's library panic.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proxyd::dataplane::ebpf::maglev::TableSize;
use proxyd::dataplane::nft::SkeletonConfig;
use proxyd::dry_run::{Settings, dry_run};
use proxyd::model::PerFamily;
use proxyd::plan::{NodePortAddresses, PlanConfig, PodNetworks};
use proxyd_tests::wild::{Choices, NODE, encodings, laws, objects, seeded};

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// See [`laws::check`] for what is asked of them.
    #[test]
    fn any_objects_are_translated_planned_and_printed(bytes in prop::collection::vec(any::<u8>(), 0..1_500)) {
        laws::check(&bytes);
    }

    /// See [`encodings::check`].
    #[test]
    fn json_and_protobuf_give_the_same_model(bytes in prop::collection::vec(any::<u8>(), 0..1_500)) {
        encodings::check(&bytes);
    }
}

/// Else the other tests would ask nothing.
#[test]
fn the_objects_come_to_every_kind_of_element_and_complaint() {
    let plan = PlanConfig {
        node_port_addresses: NodePortAddresses::primary(),
        pod_networks: PodNetworks::OfNode,
        masquerade_all: false,
        external_ips: true,
    };
    let skeleton = SkeletonConfig {
        detector: PerFamily::default(),
        masquerade_bit: 14,
        rejects_unused_ports: true,
    };
    let mut wanted: BTreeSet<String> = [
        "addressType",
        "endpoints[",
        "externalIPs",
        "has it: it was there first",
        "is a second",
        "timeoutSeconds",
        "Services without rules",
        "policy Local",
        "a client keeps its own",
        "refused",
        "CNAME",
        "DNS",
        "spec.cidrs[",
        "subsets[",
        "loadBalancerSourceRanges[",
    ]
    .map(str::to_owned)
    .into();
    for ip in ["ip", "ip6"] {
        for set in [
            "services",
            "node-ports",
            "endpoints",
            "node-port-endpoints",
            "no-endpoints",
            "no-endpoint-node-ports",
            "guarded",
            "allowed-sources",
            "cluster-ips",
            "outer-addresses",
            "service-networks",
            "node-port-addresses",
            "hairpin",
            "pod-networks",
        ] {
            wanted.insert(format!("add element {ip} proxyd {set} "));
        }
    }
    wanted.insert("add element ip proxyd affinities".to_owned());
    for seed in 0..200 {
        let bytes = seeded(seed, 2_000);
        let objects = laws::typed(&objects(&mut Choices::new(&bytes)));
        let settings = Settings {
            node_name: NODE,
            plan: &plan,
            skeleton: &skeleton,
            backend: proxyd::dataplane::Backend::Nftables,
            table_size: TableSize::DEFAULT,
            output: proxyd::dry_run::Output::Text,
            host_addresses: BTreeSet::new(),
            unread: 0,
            only: None,
        };
        let shown = dry_run(&objects, &settings);
        let notes = shown.notes.iter().map(ToString::to_string);
        let text = notes.fold(shown.text, |text, note| text + &note);
        wanted.retain(|part| !text.contains(part));
    }
    assert!(wanted.is_empty(), "never: {wanted:#?}");
}
