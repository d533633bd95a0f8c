//! A server that stays open and says nothing, over real HTTP, to a source of events that gives up early.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use proxyd::event::Event;
use proxyd::source::kube::{Patience, watch};
use proxyd_tests::apiserver::{ApiServer, Cut, Options, Resource};
use proxyd_tests::envtest::client;
use proxyd_tests::in_both_encodings;
use proxyd_tests::objects::{Port, service};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

fn services() -> impl Iterator<Item = Value> {
    (0..40).map(|host| {
        let ip = IpAddr::from([10, 96, 1, host]);
        service(&format!("web-{host}"), &[ip], &[Port::HTTP])
    })
}

/// A server with forty Services, whose watches hear from it often.
fn server(options: Options) -> ApiServer {
    let server = ApiServer::start_with(Options {
        bookmark_interval: Duration::from_millis(50),
        ..options
    });
    for service in services() {
        server.create(&service);
    }
    server
}

/// The events of a source that gives up early, for a server of this process.
fn watch_impatiently(server: &ApiServer, work: impl FnOnce(&mpsc::Receiver<Event>)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (sender, events) = mpsc::channel();
    let patience = Patience {
        silence: Duration::from_millis(300),
        settled: Duration::from_millis(50),
    };
    let kubeconfig = server.kubeconfig();
    runtime.spawn(async move {
        let send = move |event| sender.send(event).is_ok();
        watch(client(&kubeconfig).await, "node-1".into(), patience, send).await;
    });
    work(&events);
}

/// Waits for a list of Services, and returns their number.
#[track_caller]
fn next_list(events: &mpsc::Receiver<Event>) -> usize {
    loop {
        let event = events.recv_timeout(3 * PATIENCE).expect("a list comes");
        if let Event::ServicesListed(list) = event {
            return list.len();
        }
    }
}

in_both_encodings! {
    hung_watches_and_answers_are_given_up,
    versions_that_begin_anew_are_noticed_though_the_server_stays,
}

fn hung_watches_and_answers_are_given_up(options: Options) {
    let server = server(options);
    watch_impatiently(&server, |events| {
        assert_eq!(next_list(events), 40);
        server.hang_watches();
        server.delete(Resource::Services, "default", "web-0");
        server.clear_requests();
        let asked_for_all = || {
            let requests = server.requests();
            requests.iter().any(|request| {
                request.resource == Some(Resource::Services)
                    && request.query.contains_key("sendInitialEvents")
            })
        };
        eventually(
            "a watch that stays silent is a list",
            PATIENCE,
            asked_for_all,
        );
        server.clear_faults();
        assert_eq!(next_list(events), 39);

        // Not even a header comes.
        server.delay_responses(Duration::from_secs(3600));
        server.cut_watches(Cut::Broken);
        server.delete(Resource::Services, "default", "web-1");
        server.clear_requests();
        eventually("they are asked for again", 3 * PATIENCE, asked_for_all);
        server.clear_faults();
        assert_eq!(next_list(events), 38);
    });
}

fn versions_that_begin_anew_are_noticed_though_the_server_stays(options: Options) {
    let server = server(options);
    for _ in 0..2 {
        for mut service in services() {
            let version = server.resource_version().to_string();
            service["metadata"]["labels"] = json!({ "changed-at": version });
            server.update(&service);
        }
    }
    watch_impatiently(&server, |events| {
        assert_eq!(next_list(events), 40);
        server.reset_resource_versions();
        server.delete(Resource::Services, "default", "web-0");
        assert_eq!(next_list(events), 39);
    });
}
