//! What a snapshot comes to.

use proptest::prelude::*;

use std::collections::BTreeSet;

use super::*;
use crate::model::{Endpoint, Hints, Place, Port, Protocol, Service, Slice};
use crate::testing::{
    any_service, any_slice, backend, endpoint, ip, plan_config, port, service, slice,
};

fn snapshot(services: &[Service], slices: &[Slice]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    services
        .iter()
        .for_each(|service| snapshot.put_service(service.clone()));
    slices
        .iter()
        .for_each(|slice| snapshot.put_slice(slice.clone()));
    snapshot
}

fn address(text: &str, number: u16) -> Frontend {
    Frontend::Address {
        ip: ip(text),
        protocol: Protocol::Tcp,
        port: port(number),
    }
}

fn backends(snapshot: &Snapshot, frontend: Frontend) -> Vec<Backend> {
    match rule(snapshot, &plan_config(), frontend) {
        Some(Rule::Balance(balance)) => balance.backends,
        Some(Rule::Drop | Rule::Reject) => Vec::new(),
        None => panic!("no Service claims {frontend}"),
    }
}

#[test]
fn a_service_port_goes_to_the_slice_port_of_its_name() {
    let mut web = service("web", &["10.96.0.1"]);
    web.ports[0].name = "metrics".into();
    let snapshot = snapshot(&[web], &[slice("web-1", "web", &[endpoint("10.1.0.1")])]);
    assert_eq!(
        rule(&snapshot, &plan_config(), address("10.96.0.1", 80)),
        Some(Rule::Reject)
    );
}

#[test]
fn slices_of_a_service_add_up_and_an_address_counts_once() {
    let slices = [
        slice(
            "web-1",
            "web",
            &[endpoint("10.1.0.2"), endpoint("10.1.0.1")],
        ),
        slice(
            "web-2",
            "web",
            &[endpoint("10.1.0.1"), endpoint("10.1.0.3")],
        ),
        slice("other", "web2", &[endpoint("10.1.0.9")]),
    ];
    let snapshot = snapshot(&[service("web", &["10.96.0.1"])], &slices);
    let expected = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"].map(backend);
    assert_eq!(backends(&snapshot, address("10.96.0.1", 80)), expected);
}

#[test]
fn each_family_has_its_own_endpoints() {
    let slices = [
        slice("web-4", "web", &[endpoint("10.1.0.1")]),
        slice("web-6", "web", &[endpoint("fd00:1::1")]),
    ];
    let snapshot = snapshot(&[service("web", &["10.96.0.1", "fd00:96::1"])], &slices);
    assert_eq!(
        backends(&snapshot, address("10.96.0.1", 80)),
        [backend("10.1.0.1:8080")]
    );
    assert_eq!(
        backends(&snapshot, address("fd00:96::1", 80)),
        [backend("[fd00:1::1]:8080")]
    );
}

#[test]
fn a_terminating_endpoint_serves_only_while_none_is_ready() {
    let leaving = Endpoint {
        ready: false,
        terminating: true,
        ..endpoint("10.1.0.1")
    };
    let starting = Endpoint {
        ready: false,
        serving: false,
        ..endpoint("10.1.0.2")
    };
    let gone = Endpoint {
        ready: false,
        serving: false,
        terminating: true,
        ..endpoint("10.1.0.3")
    };
    let web = [service("web", &["10.96.0.1"])];
    let check = |endpoints: &[Endpoint], expected: &[&str]| {
        let snapshot = snapshot(&web, &[slice("web-1", "web", endpoints)]);
        let expected: Vec<Backend> = expected.iter().map(|text| backend(text)).collect();
        assert_eq!(backends(&snapshot, address("10.96.0.1", 80)), expected);
    };
    check(
        &[leaving.clone(), starting.clone(), gone.clone()],
        &["10.1.0.1:8080"],
    );
    check(
        &[
            leaving,
            starting.clone(),
            gone.clone(),
            endpoint("10.1.0.4"),
        ],
        &["10.1.0.4:8080"],
    );
    check(&[starting, gone], &[]);
}

/// An endpoint on this node in a state: as [`Endpoint`] has it, ready, serving, terminating.
fn here_in(address: &str, [ready, serving, terminating]: [bool; 3]) -> Endpoint {
    Endpoint {
        place: Place::Here,
        ready,
        serving,
        terminating,
        ..endpoint(address)
    }
}

#[test]
fn of_an_address_that_is_there_twice_the_better_entry_counts_in_any_order() {
    let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
    web.external_policy = TrafficPolicy::Local;
    web.ports[0].node_port = Some(port(30080));
    let [ready, draining, starting, gone, serving] = [
        [true, true, false],
        [false, true, true],
        [false, false, false],
        [false, false, true],
        [false, true, false],
    ];
    let check = |states: [[bool; 3]; 2], serves: bool, answers: bool| {
        for (address, called) in [("10.1.0.1", "10.96.0.1"), ("fd00:1::1", "fd00:96::1")] {
            for [first, second] in [states, [states[1], states[0]]] {
                let slices = [
                    slice("web-1", "web", &[here_in(address, first)]),
                    slice("web-2", "web", &[here_in(address, second)]),
                ];
                let snapshot = snapshot(std::slice::from_ref(&web), &slices);
                let candidates =
                    Candidates::of(slices.iter(), &web.ports[0], Family::of(ip(address)));
                let expected = |is: bool| usize::from(is);
                let found = backends(&snapshot, self::address(called, 80)).len();
                assert_eq!(found, expected(serves), "{first:?} {second:?}");
                assert_eq!(candidates.here().len(), expected(serves));
                assert_eq!(candidates.answering().count(), expected(answers));
                assert_eq!(candidates.all().count(), 1);
            }
        }
    };
    check([ready, draining], true, true);
    check([ready, starting], true, true);
    check([ready, gone], true, true);
    check([draining, starting], true, true);
    check([draining, gone], true, true);
    check([draining, serving], true, true);
    check([serving, starting], false, true);
    check([starting, gone], false, false);
}

#[test]
fn hints_of_an_entry_that_does_not_count_have_no_say() {
    let zones = |zone: &str| {
        Some(Box::new(Hints {
            zones: [zone.into()].into(),
            ..Hints::default()
        }))
    };
    let other = |hints| Endpoint {
        hints,
        ..endpoint("10.1.0.1")
    };
    let near = Endpoint {
        hints: zones("a"),
        ..endpoint("10.1.0.2")
    };
    let starting = Endpoint {
        ready: false,
        serving: false,
        ..other(zones("a"))
    };
    for names in [["web-1", "web-2"], ["web-2", "web-1"]] {
        let slices = [
            slice(names[0], "web", &[other(zones("b")), near.clone()]),
            slice(names[1], "web", std::slice::from_ref(&starting)),
        ];
        let mut snapshot = snapshot(&[service("web", &["10.96.0.1"])], &slices);
        snapshot.set_node(Some(crate::model::Node {
            zone: Some("a".into()),
            ..crate::model::Node::default()
        }));
        let found = backends(&snapshot, address("10.96.0.1", 80));
        assert_eq!(found, [backend("10.1.0.2:8080")], "{names:?}");
    }
}

#[test]
fn the_oldest_service_has_a_contested_front_end() {
    let mut young = service("a", &["10.96.0.1"]);
    young.created = 7;
    let old = service("b", &["10.96.0.1"]);
    let slices = [
        slice("a-1", "a", &[endpoint("10.1.0.1")]),
        slice("b-1", "b", &[endpoint("10.1.0.2")]),
    ];
    let mut snapshot = snapshot(&[young, old], &slices);
    assert_eq!(
        backends(&snapshot, address("10.96.0.1", 80)),
        [backend("10.1.0.2:8080")]
    );
    snapshot.remove_service(&crate::testing::name("b"));
    assert_eq!(
        backends(&snapshot, address("10.96.0.1", 80)),
        [backend("10.1.0.1:8080")]
    );
}

#[test]
fn node_ports_are_at_the_addresses_that_the_flag_names() {
    let mut snapshot = Snapshot::default();
    snapshot.set_host_addresses(["192.168.0.2", "10.9.0.1", "fd00::2"].map(ip).into());
    let planned = |snapshot: &Snapshot, config: NodePortAddresses| {
        let config = PlanConfig {
            node_port_addresses: config,
            ..plan_config()
        };
        Family::ALL.map(|family| members::node_port_addresses(snapshot, &config, family))
    };
    let inside = NodePortAddresses::within(vec!["192.168.0.0/16".parse().unwrap()]);
    let everywhere = [
        ["10.9.0.1", "192.168.0.2"].map(ip).to_vec(),
        vec![ip("fd00::2")],
    ];
    assert_eq!(planned(&snapshot, NodePortAddresses::primary()), everywhere);
    assert_eq!(
        planned(&snapshot, inside.clone()),
        [vec![ip("192.168.0.2")], vec![]]
    );

    let addresses = ["192.168.0.2", "192.168.0.3", "fd00::7"].map(ip).into();
    snapshot.set_node(Some(crate::model::Node {
        name: "node-1".into(),
        addresses,
        ..crate::model::Node::default()
    }));
    let primary = [vec![ip("192.168.0.2")], vec![ip("fd00::7")]];
    let beside = NodePortAddresses {
        primary: true,
        ..NodePortAddresses::within(vec!["10.0.0.0/8".parse().unwrap()])
    };
    let both = ["10.9.0.1", "192.168.0.2"].map(ip).to_vec();
    assert_eq!(planned(&snapshot, beside), [both, vec![ip("fd00::7")]]);
    assert_eq!(planned(&snapshot, NodePortAddresses::primary()), primary);
    assert_eq!(
        planned(&snapshot, inside),
        [vec![ip("192.168.0.2")], vec![]]
    );
}

#[test]
fn external_ips_are_not_served_where_the_gate_is_off() {
    let parsed = || {
        let mut web = service("web", &["10.96.0.1"]);
        web.external_ips = ["192.0.2.1", "192.0.2.2"].map(ip).into();
        web.load_balancer_ips = [ip("192.0.2.3")].into();
        crate::testing::good(&web, &web.name)
    };
    assert_eq!(plan_config().admit(parsed()), parsed());
    let config = PlanConfig {
        external_ips: false,
        ..plan_config()
    };
    let admitted = config.admit(parsed());
    let web = admitted.object.unwrap();
    assert!(web.external_ips.is_empty());
    assert_eq!(*web.load_balancer_ips, [ip("192.0.2.3")]);
    let said: Vec<_> = admitted
        .complaints
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "spec.externalIPs: 192.0.2.1, 192.0.2.2 not served, since the feature gate AllowServiceExternalIPs is false"
        ]
    );
    assert_eq!(config.admit(parsed().clone()).name, parsed().name);
    let without = crate::testing::good(&web, &web.name);
    assert_eq!(config.admit(without.clone()), without);
}

#[test]
fn a_node_port_claims_each_family_of_its_service() {
    let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
    web.ports[0].node_port = Some(port(30080));
    let snapshot = snapshot(&[web], &[slice("web-1", "web", &[endpoint("10.1.0.1")])]);
    let node_port = |family, port: Port| Frontend::NodePort {
        family,
        protocol: Protocol::Tcp,
        port,
    };
    assert_eq!(
        rule(
            &snapshot,
            &plan_config(),
            node_port(Family::V4, port(30080))
        ),
        Some(Rule::Balance(Balance {
            policy: Policy::External,
            backends: vec![backend("10.1.0.1:8080")],
            local: vec![],
            affinity: None,
        }))
    );
    assert_eq!(
        rule(
            &snapshot,
            &plan_config(),
            node_port(Family::V6, port(30080))
        ),
        Some(Rule::Reject)
    );
    assert_eq!(
        rule(
            &snapshot,
            &plan_config(),
            node_port(Family::V4, port(30081))
        ),
        None
    );
}

proptest! {
    #[test]
    fn the_order_of_input_does_not_matter(
        (services, shuffled_services) in prop::collection::vec(any_service(), 0..6).prop_flat_map(shuffled),
        (slices, shuffled_slices) in prop::collection::vec(any_slice(), 0..8).prop_flat_map(shuffled),
    ) {
        let config = plan_config();
        let mut other = Snapshot::default();
        shuffled_slices.into_iter().for_each(|slice| other.put_slice(slice));
        shuffled_services.into_iter().for_each(|service| other.put_service(service));
        let one = snapshot(&services, &slices);
        for family in Family::ALL {
            let planned = |snapshot: &Snapshot| tables(snapshot, &config, family, &Scope::All);
            prop_assert_eq!(planned(&one), planned(&other));
        }
    }
}

/// Objects of different names, as they are and in another order.
fn shuffled<T: Named + Clone + std::fmt::Debug + 'static>(
    objects: Vec<T>,
) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
    let mut seen = BTreeSet::new();
    let objects: Vec<T> = objects
        .into_iter()
        .filter(|object| seen.insert(object.name()))
        .collect();
    (Just(objects.clone()), Just(objects).prop_shuffle())
}

trait Named {
    fn name(&self) -> crate::model::ObjectName;
}

impl Named for Service {
    fn name(&self) -> crate::model::ObjectName {
        self.name.clone()
    }
}

impl Named for Slice {
    fn name(&self) -> crate::model::ObjectName {
        self.name.clone()
    }
}
