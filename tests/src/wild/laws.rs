//! What must hold of any API objects on their way from the API to the data plane's tables.
//!
//! Uses the agent as a library; nothing is loaded anywhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxyd::dataplane::ebpf::maglev::TableSize;
use proxyd::dataplane::nft::SkeletonConfig;
use proxyd::diff::{Held, diff};
use proxyd::dry_run::{Settings, dry_run};
use proxyd::model::translate::Objects;
use proxyd::model::{Family, Parsed, PerFamily, Scope, Snapshot};
use proxyd::plan::{
    self, Detector, MAX_BACKENDS, Member, NodePortAddresses, PlanConfig, PodNetworks, Rule,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Choices, NODE, objects};

/// Makes two worlds of bytes and takes one to the other as the agent would, from the API's JSON to what a data plane
/// holds.
///
/// # Panics
/// If the agent's library does, or if a law is broken.
pub fn check(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let config = plan_config(&mut choices);
    let skeleton = skeleton_config(&mut choices);
    let mut snapshot = Snapshot::default();
    let mut held: PerFamily<Held> = PerFamily::default();
    for _ in 0..2 {
        let json = objects(&mut choices);
        let typed = typed(&json);
        let host_addresses = host_addresses(&mut choices);
        fill(&mut snapshot, &typed, host_addresses.clone());
        for family in Family::ALL {
            follow(&mut snapshot, &config, family, held.get_mut(family));
        }
        let mut fresh = Snapshot::default();
        fill(&mut fresh, &typed, host_addresses.clone());
        for family in Family::ALL {
            let planned = plan::tables(&snapshot, &config, family, &Scope::All);
            let afresh = plan::tables(&fresh, &config, family, &Scope::All);
            assert_eq!(
                planned, afresh,
                "what came before must not matter: {json:#?}"
            );
            let rest = diff(held.get(family), &planned, &Scope::All);
            assert!(rest.is_empty(), "{family}: {rest:?} of {json:#?}");
        }
        let settings = Settings {
            node_name: NODE,
            plan: &config,
            skeleton: &skeleton,
            backend: proxyd::dataplane::Backend::Nftables,
            table_size: TableSize::DEFAULT,
            output: proxyd::dry_run::Output::Text,
            host_addresses,
            unread: 0,
            only: None,
        };
        check_dry_run(&typed, &json, &settings);
    }
}

/// The objects that the API's types can hold. No API server would send the others; manifests report and skip them.
pub fn typed(objects: &[Value]) -> Objects {
    let mut typed = Objects::default();
    for object in objects {
        match object["kind"].as_str() {
            Some("Service") => typed.services.extend(read(object)),
            Some("EndpointSlice") => typed.slices.extend(read(object)),
            Some("Endpoints") => typed.endpoints.extend(read(object)),
            Some("Node") => typed.nodes.extend(read(object)),
            Some("ServiceCIDR") => typed.service_cidrs.extend(read(object)),
            _ => {}
        }
    }
    typed
}

fn read<T: DeserializeOwned>(object: &Value) -> Option<T> {
    T::deserialize(object).ok()
}

fn plan_config(choices: &mut Choices<'_>) -> PlanConfig {
    let network = |text: &str| text.parse().expect("a network");
    PlanConfig {
        node_port_addresses: if choices.one_in(2) {
            NodePortAddresses::within(vec![network("192.168.0.0/16"), network("::/0")])
        } else {
            NodePortAddresses::primary()
        },
        pod_networks: if choices.one_in(2) {
            PodNetworks::OfNode
        } else {
            PodNetworks::Fixed(vec![network("10.244.0.0/16"), network("10.244.1.0/24")])
        },
        masquerade_all: choices.one_in(4),
        external_ips: !choices.one_in(8),
    }
}

fn skeleton_config(choices: &mut Choices<'_>) -> SkeletonConfig {
    SkeletonConfig {
        detector: PerFamily::from_fn(|_| {
            if choices.one_in(3) {
                Detector::None
            } else {
                Detector::Source
            }
        }),
        masquerade_bit: 14,
        rejects_unused_ports: choices.one_in(2),
    }
}

fn host_addresses(choices: &mut Choices<'_>) -> BTreeSet<IpAddr> {
    let all = [[192, 168, 0, 2], [192, 168, 0, 3], [10, 96, 0, 3]];
    let count = choices.below(4);
    let v4 = all.iter().take(count).map(|octets| IpAddr::from(*octets));
    v4.chain(["fd00::2".parse().expect("an address")]).collect()
}

/// Puts a world in the place of what a snapshot knows.
fn fill(snapshot: &mut Snapshot, objects: &Objects, host_addresses: BTreeSet<IpAddr>) {
    snapshot.set_services(kept(objects.parsed_services()));
    snapshot.set_slices(kept(objects.parsed_slices(NODE)));
    snapshot.set_service_cidrs(kept(objects.parsed_service_cidrs()));
    snapshot.set_node(objects.own_node(NODE));
    snapshot.set_host_addresses(host_addresses);
}

/// The part that can be served. What cannot must have a reason.
fn kept<T>(list: Vec<Parsed<T>>) -> Vec<T> {
    for parsed in &list {
        for complaint in &parsed.complaints {
            assert!(
                !complaint.field.is_empty() && !complaint.reason.is_empty(),
                "{complaint:?}"
            );
        }
    }
    list.into_iter()
        .filter_map(|parsed| parsed.object)
        .collect()
}

/// Plans what a change touched, as the agent does, and commits it to what is held.
fn follow(snapshot: &mut Snapshot, config: &PlanConfig, family: Family, held: &mut Held) {
    let touched = snapshot.take_touched(family);
    let scope = if touched.everything {
        Scope::All
    } else {
        Scope::Touched(touched)
    };
    let planned = plan::tables(snapshot, config, family, &scope);
    let again = plan::tables(snapshot, config, family, &scope);
    assert_eq!(planned, again, "the same must be planned twice");
    check_tables(&planned, family);
    let delta = diff(held, &planned, &scope);
    held.apply(&delta);
}

/// What every data plane relies on.
fn check_tables(tables: &plan::Tables, family: Family) {
    for (frontend, rule) in &tables.rules {
        assert_eq!(frontend.family(), family);
        let Rule::Balance(balance) = rule else {
            continue;
        };
        assert!(!balance.backends.is_empty(), "{frontend}");
        for list in [&balance.backends, &balance.local] {
            assert!(list.len() <= MAX_BACKENDS && list.is_sorted(), "{frontend}");
            assert!(
                list.windows(2).all(|pair| pair[0] != pair[1]),
                "{frontend}: {list:?}"
            );
            let fits =
                |ip: IpAddr| Family::of(ip) == family && !ip.is_loopback() && !ip.is_unspecified();
            assert!(
                list.iter().all(|backend| fits(backend.ip)),
                "{frontend}: {list:?}"
            );
        }
    }
    let networks: Vec<_> = tables
        .members
        .iter()
        .filter_map(|member| match member {
            Member::AllowedSource(frontend, network) => Some((0, Some(*frontend), *network)),
            Member::ServiceNetwork(network) => Some((1, None, *network)),
            Member::PodNetwork(network) => Some((2, None, *network)),
            _ => None,
        })
        .collect();
    for (i, (set, frontend, one)) in networks.iter().enumerate() {
        for (_, _, other) in networks[i + 1..]
            .iter()
            .filter(|other| other.0 == *set && other.1 == *frontend)
        {
            assert!(
                !one.contains(other) && !other.contains(one),
                "{one} and {other} overlap"
            );
        }
    }
}

/// The text says the same whatever order the objects came in, and no text of theirs is a command of nft.
fn check_dry_run(objects: &Objects, json: &[Value], settings: &Settings<'_>) {
    let shown = dry_run(objects, settings);
    let again = dry_run(objects, settings);
    assert_eq!(shown.text, again.text);
    let mut names = BTreeSet::new();
    let is_double = json
        .iter()
        .any(|object| !names.insert((object["kind"].to_string(), name_of(object))));
    if !is_double {
        let reversed: Vec<Value> = json.iter().rev().cloned().collect();
        assert_eq!(shown.text, dry_run(&typed(&reversed), settings).text);
    }
    let commands = shown.text.lines().filter(|line| !line.starts_with('#'));
    let mut commands = commands.filter(|line| line.contains("evil"));
    assert_eq!(
        commands.next(),
        None,
        "a text of the objects became a command"
    );
}

/// What tells objects of a kind apart, as the agent sees it.
fn name_of(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}
