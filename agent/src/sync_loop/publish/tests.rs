//! What is told of events and syncs.

use jiff::SignedDuration;

use super::*;
use crate::dataplane::recording::Recording;
use crate::http::metrics::{Exposition, Format};
use crate::model::{Node, ObjectName, Trigger};
use crate::testing::{endpoint, good, ip, name, node_facts, plan_config, port, service, slice};

/// A publisher, and the engine whose doings it tells.
struct Fixture {
    publisher: Publisher,
    engine: Engine,
    dataplane: Recording,
}

impl Fixture {
    fn new(eligible_without_node: bool) -> Self {
        Self {
            publisher: Publisher::new(
                Clock::new(Instant::now()),
                eligible_without_node,
                PerFamily::default(),
                Arc::default(),
            ),
            engine: Engine::new(plan_config()),
            dataplane: Recording::default(),
        }
    }

    fn handle(&mut self, event: Event) {
        self.publisher.event(&event, self.engine.snapshot());
        self.engine.handle(event);
        self.publisher.node(self.engine.snapshot());
    }

    fn sync(&mut self) {
        for family in Family::ALL {
            if self.engine.is_due(family) {
                let synced = self.engine.sync(family, &mut self.dataplane).unwrap();
                self.publisher
                    .synced(family, &synced, Duration::ZERO, &self.engine);
            }
        }
        self.publisher.all_synced(&mut self.engine);
    }

    /// The value of a series.
    #[track_caller]
    fn value(&self, series: &str) -> String {
        let text = Exposition::new(self.publisher.metrics().clone()).text(Format::Plain);
        let series = format!("kubeproxy_{series} ");
        let found = text.lines().find_map(|line| line.strip_prefix(&series));
        found
            .unwrap_or_else(|| panic!("{series}: {text}"))
            .to_owned()
    }

    #[track_caller]
    fn check(&self, expected: &[(&str, &str)]) {
        for (series, value) in expected {
            assert_eq!(self.value(series), *value, "{series}");
        }
    }
}

/// In sync with one Service and its slice.
fn started() -> Fixture {
    let mut fixture = Fixture::new(true);
    let web = service("web", &["10.96.0.1"]);
    let slices = slice("web-1", "web", &[endpoint("10.1.0.1")]);
    fixture.handle(Event::ServicesListed(vec![good(&web, &web.name)]));
    fixture.handle(Event::SlicesListed(vec![good(&slices, &slices.name)]));
    node_facts()
        .into_iter()
        .for_each(|event| fixture.handle(event));
    fixture.sync();
    fixture
}

fn triggered(slice: &Slice, at: Timestamp) -> Parsed<Slice> {
    Parsed {
        trigger: Some(Trigger {
            family: Family::V4,
            at,
        }),
        ..good(slice, &slice.name)
    }
}

#[test]
fn objects_are_counted_and_pending_until_both_families_have_them() {
    let mut fixture = started();
    let of = |kind: &str, what: &str| format!("sync_proxy_rules_{kind}_changes_{what}");
    fixture.check(&[
        (&of("service", "total"), "1"),
        (&of("service", "pending"), "0"),
        (&of("endpoint", "total"), "1"),
        (
            "sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
            "1",
        ),
    ]);
    let two: Vec<_> = ["a", "b"].map(|n| service(n, &["10.96.0.9"])).into();
    let listed = two.iter().map(|s| good(s, &s.name)).collect();
    fixture.handle(Event::ServicesListed(listed));
    fixture.handle(Event::ServiceDeleted(name("a")));
    fixture.handle(Event::SliceDeleted(name("web-1")));
    fixture.check(&[
        (&of("service", "total"), "4"),
        (&of("service", "pending"), "3"),
        (&of("endpoint", "pending"), "1"),
    ]);
    fixture.sync();
    fixture.check(&[
        (&of("service", "pending"), "0"),
        (&of("endpoint", "pending"), "0"),
        (
            "sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
            "1",
        ),
        (
            "sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
            "0",
        ),
    ]);
}

#[test]
fn a_latency_is_counted_for_a_change_since_the_start_once_it_is_in_the_kernel() {
    let mut fixture = started();
    let count = "network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    let now = Timestamp::now();
    let grown = |hosts: &[&str]| {
        let endpoints: Vec<_> = hosts.iter().map(|host| endpoint(host)).collect();
        slice("web-1", "web", &endpoints)
    };
    let old = now.checked_sub(SignedDuration::from_hours(1)).unwrap();
    fixture.handle(Event::SliceApplied(triggered(&grown(&["10.1.0.2"]), old)));
    fixture.sync();
    fixture.check(&[(count, "0")]);

    let changed = triggered(&grown(&["10.1.0.3"]), now);
    fixture.handle(Event::SliceApplied(changed.clone()));
    fixture.check(&[(count, "0")]);
    fixture.sync();
    fixture.check(&[(count, "1")]);

    // A list after a broken watch brings everything again.
    fixture.handle(Event::SlicesListed(vec![changed]));
    fixture.sync();
    fixture.check(&[(count, "1")]);
    fixture.handle(Event::SliceApplied(good(&grown(&[]), &name("web-1"))));
    fixture.sync();
    fixture.check(&[
        (count, "1"),
        (
            "network_programming_duration_seconds_count{ip_family=\"IPv6\"}",
            "0",
        ),
    ]);
}

#[test]
fn who_has_no_node_object_is_eligible_only_without_an_api_server() {
    let leaving = |leaving| {
        Event::NodeChanged(Some(Node {
            leaving,
            ..Node::default()
        }))
    };
    for without_node in [true, false] {
        let mut fixture = Fixture::new(without_node);
        let status = fixture.publisher.status();
        let mut check = |event, expected| {
            fixture.handle(event);
            assert_eq!(status.borrow().node_eligible, expected);
        };
        check(Event::NodeChanged(None), without_node);
        check(leaving(false), true);
        check(leaving(true), false);
        check(leaving(false), true);
        check(Event::NodeChanged(None), without_node);
    }
}

#[test]
fn health_checks_are_told_when_they_change_and_the_rules_are_written() {
    let mut fixture = started();
    let mut told = fixture.publisher.health_checks();
    let ports = |checks: &HealthChecks| -> Vec<(ObjectName, u16)> {
        let services = checks.services.iter();
        services
            .map(|(name, health)| (name.clone(), health.port.get()))
            .collect()
    };
    let mut web = service("web", &["10.96.0.1"]);
    web.health_check_port = Some(port(31_000));
    fixture.handle(Event::ServiceApplied(good(&web, &web.name)));
    assert!(!told.has_changed().unwrap());
    fixture.sync();
    assert!(told.has_changed().unwrap());
    assert_eq!(ports(&told.borrow_and_update()), [(name("web"), 31_000)]);

    // One that nobody asks load balancers about.
    let other = service("other", &["10.96.0.2"]);
    fixture.handle(Event::ServiceApplied(good(&other, &other.name)));
    fixture.sync();
    assert!(!told.has_changed().unwrap());

    let node = Node {
        addresses: vec![ip("192.168.0.2")],
        ..Node::default()
    };
    fixture.handle(Event::NodeChanged(Some(node)));
    fixture.sync();
    assert!(
        told.borrow_and_update()
            .addresses
            .contains(&ip("192.168.0.2"))
    );
    fixture.handle(Event::ServiceDeleted(web.name));
    fixture.sync();
    assert_eq!(ports(&told.borrow_and_update()), []);
}
