//! Which Service ports have no endpoint, change by change, and what is said of them.

use proptest::prelude::*;

use super::*;
use crate::model::Endpoint;
use crate::plan;
use crate::testing::{any_service, any_slice, endpoint, name, plan_config, port, service, slice};

/// What a sync of both families does.
fn sync(outages: &mut Outages, snapshot: &mut Snapshot, all: bool) {
    for family in Family::ALL {
        let touched = snapshot.take_touched(family);
        let scope = if all {
            Scope::All
        } else {
            Scope::Touched(touched)
        };
        let planned = plan::tables(snapshot, &plan_config(), family, &scope);
        outages.update(family, snapshot, &planned, &scope);
    }
}

/// Each port without endpoints in some family, and why.
fn all(outages: &Outages) -> Vec<String> {
    let of = |family: Family| {
        let ports = outages.families.get(family).ports.iter();
        ports.map(move |(port, (_, lack))| format!("{family} {port}: {lack}"))
    };
    Family::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn a_port_is_without_endpoints_once_for_all_its_addresses_and_says_why() {
    let mut snapshot = Snapshot::default();
    let mut outages = Outages::default();
    let mut web = service("web", &["10.96.0.1"]);
    web.ports[0].node_port = Some(port(30_000));
    snapshot.put_service(web.clone());
    let check = |outages: &mut Outages, snapshot: &mut Snapshot, expected: Option<&str>| {
        sync(outages, snapshot, false);
        let expected: Vec<String> = expected
            .map(|why| format!("IPv4 default/web port 80 tcp: {why}"))
            .into_iter()
            .collect();
        assert_eq!(all(outages), expected);
        assert_eq!(outages.count(Family::V4), expected.len());
    };
    let (outages, snapshot) = (&mut outages, &mut snapshot);
    check(outages, snapshot, Some("it has no EndpointSlice"));
    let starting = Endpoint {
        ready: false,
        serving: false,
        ..endpoint("10.1.0.1")
    };
    let leaving = Endpoint {
        terminating: true,
        ..starting.clone()
    };
    snapshot.put_slice(slice("web-1", "web", std::slice::from_ref(&starting)));
    check(outages, snapshot, Some("its only endpoint is not ready"));
    snapshot.put_slice(slice("web-1", "web", std::slice::from_ref(&leaving)));
    check(outages, snapshot, Some("its only endpoint is terminating"));
    // One address twice is one endpoint.
    snapshot.put_slice(slice("web-1", "web", &[leaving.clone(), starting.clone()]));
    check(outages, snapshot, Some("its only endpoint is not ready"));
    let third = Endpoint {
        address: crate::testing::ip("10.1.0.3"),
        ..leaving
    };
    snapshot.put_slice(slice("web-1", "web", &[starting, third]));
    let why = "none of its 2 endpoints is ready, 1 of them terminating";
    check(outages, snapshot, Some(why));
    snapshot.put_slice(slice("web-1", "web", &[endpoint("fd00::1")]));
    let why = "its EndpointSlices have no IPv4 endpoint";
    check(outages, snapshot, Some(why));
    snapshot.put_slice(slice("web-1", "web", &[endpoint("10.1.0.1")]));
    check(outages, snapshot, None);
    web.ports[0].name = "web".into();
    snapshot.put_service(web);
    let why = "its EndpointSlices have \"http\" tcp, not \"web\" tcp";
    check(outages, snapshot, Some(why));
    snapshot.remove_service(&name("web"));
    check(outages, snapshot, None);
    let of_v4 = &outages.families.v4;
    assert!(of_v4.frontends.is_empty() && of_v4.ports.is_empty());
}

#[test]
fn what_is_as_it_was_told_is_no_news() {
    let mut snapshot = Snapshot::default();
    let mut outages = Outages::default();
    snapshot.put_service(service("web", &["10.96.0.1"]));
    sync(&mut outages, &mut snapshot, false);
    assert!(outages.has_news());
    outages.tell(&snapshot);
    assert!(!outages.has_news());
    let told = |outages: &Outages| outages.telling.told_count();
    assert_eq!(told(&outages), 1);
    snapshot.put_slice(slice("web-1", "web", &[endpoint("10.1.0.1")]));
    sync(&mut outages, &mut snapshot, false);
    snapshot.remove_slice(&name("web-1"));
    sync(&mut outages, &mut snapshot, false);
    outages.tell(&snapshot);
    assert_eq!(told(&outages), 1);
    snapshot.put_slice(slice("web-1", "web", &[endpoint("10.1.0.1")]));
    sync(&mut outages, &mut snapshot, false);
    outages.tell(&snapshot);
    assert_eq!(told(&outages), 0);
}

proptest! {
    /// Change by change gives what looking at everything gives.
    #[test]
    fn incremental_equals_full(
        steps in prop::collection::vec((any_service(), any_slice(), 0..4_u8), 1..20),
    ) {
        let mut snapshot = Snapshot::default();
        let mut outages = Outages::default();
        for (service, slice, gone) in steps {
            snapshot.put_service(service);
            snapshot.put_slice(slice);
            snapshot.remove_service(&name(&format!("s{gone}")));
            sync(&mut outages, &mut snapshot, false);
            let mut afresh = Outages::default();
            sync(&mut afresh, &mut snapshot, true);
            prop_assert_eq!(all(&outages), all(&afresh));
        }
    }
}
