//! The watchers of kube-rs, as proxyd runs them.

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, ResourceExt};
use proxyd_tests::apiserver::{ApiServer, Cut, LoggedRequest, Refusal, Resource, Verb};

use crate::tier::{Tier, in_time};

/// What a watcher says, in short.
#[derive(Debug, PartialEq)]
enum Said {
    Init,
    Listed(String),
    InitDone,
    Applied(String),
    Deleted(String),
    Failed,
}

struct Watcher(BoxStream<'static, watcher::Result<Event<Service>>>);

impl Watcher {
    fn start(tier: &Tier, config: Config) -> Self {
        let api = Api::<Service>::namespaced(tier.client.clone(), &tier.namespace);
        Self(watcher(api, config).boxed())
    }

    async fn next(&mut self) -> Said {
        match in_time(self.0.next()).await.expect("watchers have no end") {
            Ok(Event::Init) => Said::Init,
            Ok(Event::InitApply(object)) => Said::Listed(object.name_any()),
            Ok(Event::InitDone) => Said::InitDone,
            Ok(Event::Apply(object)) => Said::Applied(object.name_any()),
            Ok(Event::Delete(object)) => Said::Deleted(object.name_any()),
            Err(_) => Said::Failed,
        }
    }

    async fn expect(&mut self, expected: impl IntoIterator<Item = Said>) {
        for expected in expected {
            assert_eq!(self.next().await, expected);
        }
    }
}

fn listed(name: &str) -> Said {
    Said::Listed(name.to_owned())
}

fn applied(name: &str) -> Said {
    Said::Applied(name.to_owned())
}

fn deleted(name: &str) -> Said {
    Said::Deleted(name.to_owned())
}

/// The reads our server has seen.
fn reads(tier: &Tier) -> Vec<LoggedRequest> {
    let mut requests = tier
        .ours
        .as_ref()
        .map(ApiServer::requests)
        .unwrap_or_default();
    requests.retain(|request| matches!(request.verb, Some(Verb::List | Verb::Watch)));
    requests
}

pub(crate) async fn watcher_lists_in_pages_then_watches(tier: Tier) {
    for name in ["a", "b", "c"] {
        tier.create(name, "web").await;
    }
    let mut watcher = Watcher::start(&tier, Config::default().page_size(2));
    watcher
        .expect([
            Said::Init,
            listed("a"),
            listed("b"),
            listed("c"),
            Said::InitDone,
        ])
        .await;
    tier.label("b", "db").await;
    tier.delete("c").await;
    watcher.expect([applied("b"), deleted("c")]).await;
    if tier.ours.is_some() {
        let reads = reads(&tier);
        let verbs: Vec<_> = reads.iter().map(|request| request.verb.unwrap()).collect();
        assert_eq!(verbs, [Verb::List, Verb::List, Verb::Watch]);
        assert_eq!(reads[0].query["limit"], "2");
        assert!(reads[1].query.contains_key("continue"));
    }
}

pub(crate) async fn watcher_streams_the_list_then_watches(tier: Tier) {
    tier.create("a", "web").await;
    let mut watcher = Watcher::start(&tier, Config::default().streaming_lists());
    watcher
        .expect([Said::Init, listed("a"), Said::InitDone])
        .await;
    tier.create("b", "web").await;
    tier.delete("a").await;
    watcher.expect([applied("b"), deleted("a")]).await;
    if tier.ours.is_some() {
        assert_eq!(reads(&tier).len(), 1);
        assert_eq!(reads(&tier)[0].query["sendInitialEvents"], "true");
    }
}

pub(crate) async fn watcher_sees_an_object_leave_its_selector(tier: Tier) {
    tier.create("a", "web").await;
    let mut watcher = Watcher::start(&tier, Config::default().labels("app=web"));
    watcher
        .expect([Said::Init, listed("a"), Said::InitDone])
        .await;
    tier.label("a", "db").await;
    tier.label("a", "web").await;
    watcher.expect([deleted("a"), applied("a")]).await;
}

#[tokio::test]
async fn watcher_resumes_after_a_cut_without_a_list() {
    for config in [Config::default(), Config::default().streaming_lists()] {
        let tier = Tier::ours().await;
        tier.create("a", "web").await;
        let mut watcher = Watcher::start(&tier, config);
        watcher
            .expect([Said::Init, listed("a"), Said::InitDone])
            .await;
        let server = tier.server();
        for (cut, name) in [(Cut::Clean, "b"), (Cut::Broken, "c"), (Cut::HalfLine, "d")] {
            // The watcher must be attached before it can be cut, which it is once it tells of a change.
            tier.label("a", name).await;
            watcher.expect([applied("a")]).await;
            server.cut_watches(cut);
            server.clear_requests();
            tier.create(name, "web").await;
            let told = loop {
                match watcher.next().await {
                    // A broken connection may come as an error, after which the watcher goes on.
                    Said::Failed => {}
                    told => break told,
                }
            };
            assert_eq!(told, applied(name), "{cut:?}");
            assert!(
                reads(&tier)
                    .iter()
                    .all(|read| read.verb == Some(Verb::Watch)),
                "{cut:?}"
            );
        }
    }
}

#[tokio::test]
async fn watcher_lists_again_after_its_version_expired() {
    let tier = Tier::ours().await;
    tier.create("a", "web").await;
    let mut watcher = Watcher::start(&tier, Config::default());
    watcher
        .expect([Said::Init, listed("a"), Said::InitDone])
        .await;
    tier.label("a", "db").await;
    watcher.expect([applied("a")]).await;
    let server = tier.server();
    server.refuse(Refusal::with(503).on(Resource::Services).verb(Verb::Watch));
    server.cut_watches(Cut::Clean);
    watcher.expect([Said::Failed]).await;
    tier.delete("a").await;
    tier.create("b", "web").await;
    server.compact();
    watcher
        .expect([Said::Failed, Said::Init, listed("b"), Said::InitDone])
        .await;
}

#[tokio::test]
async fn watcher_lists_again_when_a_watch_is_expired_on_demand() {
    let tier = Tier::ours().await;
    let mut watcher = Watcher::start(&tier, Config::default());
    tier.server().expire_next_watches(1);
    watcher
        .expect([
            Said::Init,
            Said::InitDone,
            Said::Failed,
            Said::Init,
            Said::InitDone,
        ])
        .await;
}
