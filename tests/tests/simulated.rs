//! The source of events over hours of a virtual clock: the API server goes away, says no, says half, and comes back.
//!
//! The tests' API server answers in this process, without sockets, and tokio's clock stands still while anything can
//! go on, so that an hour takes a moment. What is asserted is what the engine would be told, and when the server
//! was asked.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use kube::Client;
use proxyd::event::Event;
use proxyd::model::{Parsed, Service};
use proxyd::source::kube::{Patience, watch};
use proxyd_tests::apiserver::{ApiServer, Cut, Encoding, Options, Refusal, Resource, Verb};
use proxyd_tests::in_both_encodings;
use proxyd_tests::objects::{Port, service};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tower::{ServiceExt as _, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The longest pause, and some.
const RETURN: Duration = Duration::from_secs(31);

/// The agent's source of events, and the API server that it asks.
struct Simulation {
    server: ApiServer,
    away: Arc<AtomicBool>,
    /// When it was asked for what, whether it answered or not.
    attempts: Arc<Mutex<Vec<(Instant, String)>>>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Simulation {
    /// With Services a, b, c and d, and a ServiceCIDR.
    async fn start(options: Options) -> Self {
        let simulation = Self {
            server: ApiServer::start_with(options),
            away: Arc::default(),
            attempts: Arc::default(),
            events: Arc::default(),
        };
        for name in ["a", "b", "c", "d"] {
            simulation.server.create(&web(name));
        }
        simulation.server.create(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "first" },
            "spec": { "cidrs": ["10.96.0.0/16"] },
        }));
        simulation
    }

    /// Begins to watch.
    fn watch(&self) {
        let events = Arc::clone(&self.events);
        let send = move |event| {
            events.lock().unwrap().push(event);
            true
        };
        let watch = watch(self.client(), "node-1".into(), Patience::default(), send);
        tokio::spawn(watch);
    }

    /// A client whose connections are refused while the server is away.
    fn client(&self) -> Client {
        let router = self.server.router();
        let (away, attempts) = (Arc::clone(&self.away), Arc::clone(&self.attempts));
        let service = service_fn(move |request: Request<kube::client::Body>| {
            let asked = (Instant::now(), request.uri().to_string());
            attempts.lock().unwrap().push(asked);
            let answer = router.clone().oneshot(request.map(Body::new));
            let is_away = away.load(Ordering::Relaxed);
            async move {
                match is_away {
                    true => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                    false => Ok(answer.await.unwrap()),
                }
            }
        });
        Client::new(service, "default")
    }

    /// The server goes, and every connection with it.
    fn leave(&self) {
        self.away.store(true, Ordering::Relaxed);
        self.server.cut_watches(Cut::Broken);
    }

    fn come_back(&self) {
        self.away.store(false, Ordering::Relaxed);
    }

    /// The cluster is another one: a is gone, e is new.
    fn change(&self) {
        self.server.delete(Resource::Services, "default", "a");
        self.server.create(&web("e"));
    }

    fn event_count(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// The Services that the engine knows of.
    fn services(&self) -> String {
        let mut known = BTreeSet::new();
        for event in self.events.lock().unwrap().iter() {
            match event {
                Event::ServicesListed(list) => {
                    known = list.iter().map(|parsed| parsed.name.clone()).collect();
                }
                Event::ServiceApplied(parsed) => {
                    known.insert(parsed.name.clone());
                }
                Event::ServiceDeleted(name) => {
                    known.remove(name);
                }
                _ => {}
            }
        }
        let names: Vec<_> = known.iter().map(|name| name.name().to_owned()).collect();
        names.join(" ")
    }

    /// What is wrong with a Service, as far as the engine was told last.
    fn complaints(&self, name: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut take = |parsed: &Parsed<Service>| {
            if parsed.name.name() == name {
                assert_eq!(parsed.object.is_some(), parsed.complaints.is_empty());
                complaints = parsed.complaints.iter().map(ToString::to_string).collect();
            }
        };
        for event in self.events.lock().unwrap().iter() {
            match event {
                Event::ServicesListed(list) => list.iter().for_each(&mut take),
                Event::ServiceApplied(parsed) => take(parsed),
                _ => {}
            }
        }
        complaints
    }

    /// How often ServiceCIDRs were listed, and how many there were each time.
    fn listed_service_cidrs(&self) -> Vec<usize> {
        let events = self.events.lock().unwrap();
        let lists = events.iter().filter_map(|event| match event {
            Event::ServiceCidrsListed(list) => Some(list.len()),
            _ => None,
        });
        lists.collect()
    }

    /// When Services were asked for since, and how.
    fn asked(&self, since: Instant) -> Vec<(Instant, String)> {
        let attempts = self.attempts.lock().unwrap();
        let of_kind = attempts
            .iter()
            .filter(|(at, uri)| *at >= since && uri.starts_with("/api/v1/services?"));
        of_kind.cloned().collect()
    }

    /// The pauses between these attempts.
    fn pauses(&self, since: Instant) -> Vec<Duration> {
        let asked = self.asked(since);
        asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }
}

fn web(name: &str) -> serde_json::Value {
    let host = name.as_bytes()[0];
    service(name, &[IpAddr::from([10, 96, 0, host])], &[Port::HTTP])
}

/// Lets virtual time pass.
async fn pass(time: Duration) {
    sleep_until(Instant::now() + time).await;
}

/// The same, of an older release.
fn older(options: &Options) -> Options {
    Options {
        streaming_lists: false,
        ..options.clone()
    }
}

in_both_encodings! {
    async
    an_hour_away_costs_few_attempts_and_no_rule,
    nothing_is_said_before_the_server_is_there,
    half_a_list_says_nothing,
    watches_that_end_at_once_keep_nobody_busy,
    a_server_is_left_alone_for_as_long_as_it_says,
    a_version_that_is_gone_is_not_asked_for_again,
    an_event_that_comes_by_halves_is_not_lost,
    a_hung_watch_is_given_up,
    versions_that_begin_anew_are_noticed,
    service_cidrs_are_not_forgotten_by_a_server_that_hides_them_for_a_while,
    an_object_that_cannot_be_decoded_costs_itself_alone,
    a_server_that_refuses_to_choose_is_asked_for_json,
}

async fn an_hour_away_costs_few_attempts_and_no_rule(options: Options) {
    for options in [options.clone(), older(&options)] {
        let simulation = Simulation::start(options).await;
        simulation.watch();
        pass(MINUTE).await;
        assert_eq!(simulation.services(), "a b c d");
        let (known, left) = (simulation.event_count(), Instant::now());
        simulation.leave();
        pass(HOUR).await;
        assert_eq!(simulation.event_count(), known, "nothing is said");
        let pauses = simulation.pauses(left);
        assert!((115..260).contains(&pauses.len()), "{}", pauses.len());
        let longest = pauses.iter().max().unwrap();
        assert!(*longest <= 30 * SECOND, "{longest:?}");
        let steady: BTreeSet<_> = pauses[10..].iter().collect();
        assert!(steady.len() > 100, "agents would come back in step");

        simulation.change();
        simulation.server.compact();
        simulation.come_back();
        pass(RETURN).await;
        assert_eq!(simulation.services(), "b c d e");
        // And it is followed again.
        simulation.server.create(&web("f"));
        pass(SECOND).await;
        assert_eq!(simulation.services(), "b c d e f");
    }
}

async fn nothing_is_said_before_the_server_is_there(options: Options) {
    let simulation = Simulation::start(options).await;
    simulation.leave();
    simulation.watch();
    pass(10 * MINUTE).await;
    assert_eq!(simulation.event_count(), 0);
    simulation.come_back();
    pass(RETURN).await;
    assert_eq!(simulation.services(), "a b c d");
}

async fn half_a_list_says_nothing(options: Options) {
    for options in [options.clone(), older(&options)] {
        for cut in [Cut::Clean, Cut::Broken, Cut::HalfLine] {
            let what = format!("{cut:?}, streaming lists: {}", options.streaming_lists);
            let simulation = Simulation::start(options.clone()).await;
            simulation.watch();
            pass(MINUTE).await;
            let known = simulation.event_count();
            // Everything has to be listed anew, and no list comes to its end.
            let left = Instant::now();
            simulation.leave();
            simulation.server.cut_next_lists(cut, usize::MAX);
            simulation.change();
            simulation.server.compact();
            pass(SECOND).await;
            simulation.come_back();
            pass(HOUR).await;
            assert_eq!(simulation.event_count(), known, "{what}");
            let attempts = simulation.asked(left).len();
            assert!((115..260).contains(&attempts), "{what}: {attempts}");
            simulation.server.clear_faults();
            pass(RETURN).await;
            assert_eq!(simulation.services(), "b c d e", "{what}");
        }
    }
}

async fn watches_that_end_at_once_keep_nobody_busy(options: Options) {
    let simulation = Simulation::start(options).await;
    simulation.watch();
    pass(MINUTE).await;
    simulation.server.limit_watches(Duration::ZERO);
    simulation.server.cut_watches(Cut::Clean);
    let began = Instant::now();
    pass(HOUR).await;
    let attempts = simulation.asked(began).len();
    assert!((115..260).contains(&attempts), "{attempts}");
    simulation.change();
    pass(RETURN).await;
    assert_eq!(simulation.services(), "b c d e");

    // Those that end after some seconds are made anew at once: no change waits.
    simulation.server.limit_watches(10 * SECOND);
    pass(RETURN).await;
    let began = Instant::now();
    pass(HOUR).await;
    let attempts = simulation.asked(began).len();
    assert!((355..=361).contains(&attempts), "{attempts}");
    let lists = simulation.asked(began);
    let lists = lists
        .iter()
        .filter(|(_, uri)| uri.contains("sendInitialEvents"));
    assert_eq!(lists.count(), 0, "each goes on where the last one ended");
}

async fn a_server_is_left_alone_for_as_long_as_it_says(options: Options) {
    for (wish, least, most) in [(60, 60, 65), (1_000_000, 120, 125)] {
        let simulation = Simulation::start(options.clone()).await;
        let refusal = Refusal::with(429).times(3).on(Resource::Services);
        simulation.server.refuse(refusal.retry_after(wish * SECOND));
        let began = Instant::now();
        simulation.watch();
        pass(SECOND).await;
        assert_eq!(simulation.listed_service_cidrs(), [1], "others go on");
        pass(10 * MINUTE).await;
        let pauses = simulation.pauses(began);
        assert!(pauses.len() >= 3, "{pauses:?}");
        for pause in &pauses[..3] {
            assert!((least..most).contains(&pause.as_secs()), "{pauses:?}");
        }
        assert_eq!(simulation.services(), "a b c d");
    }
}

async fn a_version_that_is_gone_is_not_asked_for_again(options: Options) {
    let simulation = Simulation::start(options).await;
    simulation.watch();
    pass(MINUTE).await;
    for by_status in [true, false] {
        let gone = Refusal::with(410).on(Resource::Services).verb(Verb::Watch);
        match by_status {
            true => simulation.server.refuse(gone),
            false => simulation.server.expire_next_watches(4),
        }
        let began = Instant::now();
        simulation.server.cut_watches(Cut::Clean);
        pass(MINUTE).await;
        let asked = simulation.asked(began);
        let [(_, first), (_, second)] = asked.as_slice() else {
            panic!("{asked:?}");
        };
        assert!(!first.contains("sendInitialEvents"), "{first}");
        assert!(second.contains("sendInitialEvents"), "{second}");
    }
    assert_eq!(simulation.services(), "a b c d");

    // A server that always says so is not asked all the time.
    let gone = Refusal::with(410).times(usize::MAX);
    simulation.server.refuse(gone);
    simulation.server.cut_watches(Cut::Clean);
    let began = Instant::now();
    pass(HOUR).await;
    let attempts = simulation.asked(began).len();
    assert!((115..260).contains(&attempts), "{attempts}");
}

async fn an_event_that_comes_by_halves_is_not_lost(options: Options) {
    let simulation = Simulation::start(options).await;
    simulation.watch();
    pass(MINUTE).await;
    simulation.server.garble_next_events(1);
    simulation.change();
    pass(SECOND).await;
    assert_eq!(simulation.services(), "b c d e");
}

async fn a_hung_watch_is_given_up(options: Options) {
    let simulation = Simulation::start(options).await;
    simulation.watch();
    pass(MINUTE).await;
    let (known, began) = (simulation.event_count(), Instant::now());
    simulation.server.hang_watches();
    simulation.change();
    pass(HOUR).await;
    assert_eq!(simulation.event_count(), known);
    let attempts = simulation.asked(began).len();
    assert!((20..=40).contains(&attempts), "every 90 s: {attempts}");
    simulation.server.clear_faults();
    pass(2 * MINUTE).await;
    assert_eq!(simulation.services(), "b c d e");
}

async fn versions_that_begin_anew_are_noticed(options: Options) {
    let simulation = Simulation::start(options).await;
    for name in ["b", "c", "d"] {
        let mut object = web(name);
        object["metadata"]["labels"] = json!({ "some": "label" });
        simulation.server.update(&object);
    }
    simulation.watch();
    pass(MINUTE).await;
    // The server stays, and so the watch goes on where it was: at a version that is yet to come.
    simulation.server.reset_resource_versions();
    simulation.server.delete(Resource::Services, "default", "a");
    assert_eq!(simulation.services(), "a b c d");
    pass(5 * MINUTE).await;
    assert_eq!(simulation.services(), "b c d");

    // If nobody answered meanwhile, it is noticed at once.
    let mut object = web("b");
    object["metadata"]["labels"] = json!({ "other": "label" });
    simulation.server.update(&object);
    pass(MINUTE).await;
    simulation.leave();
    pass(SECOND).await;
    simulation.server.reset_resource_versions();
    simulation.server.delete(Resource::Services, "default", "b");
    simulation.come_back();
    pass(5 * SECOND).await;
    assert_eq!(simulation.services(), "c d");
}

async fn service_cidrs_are_not_forgotten_by_a_server_that_hides_them_for_a_while(options: Options) {
    let simulation = Simulation::start(options).await;
    let hidden = Refusal::with(403).on(Resource::ServiceCidrs);
    simulation.server.refuse(hidden.clone());
    simulation.watch();
    pass(MINUTE).await;
    assert_eq!(simulation.listed_service_cidrs(), [0], "done without");
    pass(5 * MINUTE).await;
    assert_eq!(simulation.listed_service_cidrs(), [0, 1], "granted later");
    // As an API server does that has just been started, and does not know yet who may do what.
    simulation.server.refuse(hidden.times(3));
    simulation.leave();
    pass(SECOND).await;
    simulation.come_back();
    pass(5 * MINUTE).await;
    assert_eq!(simulation.listed_service_cidrs(), [0, 1, 1]);
}

/// No API server of today sends one; one of tomorrow may, and a proxy before it that breaks things.
async fn an_object_that_cannot_be_decoded_costs_itself_alone(options: Options) {
    let broken = |name| {
        let mut object = web(name);
        object["spec"]["ports"][0]["port"] = json!("http");
        object
    };
    for options in [options.clone(), older(&options)] {
        let simulation = Simulation::start(options).await;
        simulation.server.update(&broken("b"));
        let began = Instant::now();
        simulation.watch();
        pass(MINUTE).await;
        let asked = simulation.asked(began).len();
        assert_eq!(simulation.services(), "a b c d");
        let [said] = &simulation.complaints("b")[..] else {
            panic!("{:?}", simulation.complaints("b"));
        };
        assert!(said.starts_with("spec.ports[0].port: "), "{said}");
        assert!(said.ends_with("; the object is skipped"), "{said}");
        // One that is mended, one that breaks, and one that goes while it is broken.
        simulation.server.update(&web("b"));
        simulation.server.update(&broken("c"));
        simulation.server.update(&broken("d"));
        simulation.server.delete(Resource::Services, "default", "d");
        simulation.server.create(&web("e"));
        pass(SECOND).await;
        assert_eq!(simulation.services(), "a b c e");
        assert_eq!(simulation.complaints("b"), [""; 0]);
        assert_eq!(simulation.complaints("c"), [said.as_str()]);
        assert_eq!(simulation.asked(began).len(), asked, "the watch goes on");
    }
}

async fn a_server_that_refuses_to_choose_is_asked_for_json(options: Options) {
    for code in [406, 415] {
        let simulation = Simulation::start(options.clone()).await;
        let refusal = Refusal::with(code).on(Resource::Services);
        simulation.server.refuse(refusal);
        simulation.watch();
        pass(SECOND).await;
        assert_eq!(simulation.services(), "a b c d", "{code}: at once");
        let requests = simulation.server.requests();
        let of_kind = requests
            .iter()
            .filter(|request| request.resource == Some(Resource::Services));
        let encodings: Vec<_> = of_kind.map(|request| request.encoding).collect();
        assert_eq!(encodings[1..], [Some(Encoding::Json)], "{code}");
    }
}
