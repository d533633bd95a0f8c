//! The API server is away, sick, or not the one that it was: real rules, real connections, real HTTP.
//!
//! What takes longer than a test may take is in `simulated.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use proxyd_tests::agent::{Agent, nft};
use proxyd_tests::apiserver::{ApiServer, Cut, Options, Refusal, Resource, Verb};
use proxyd_tests::cluster::{Cluster, Host, Pod};
use proxyd_tests::generation::Generation;
use proxyd_tests::http::get;
use proxyd_tests::in_both_encodings;
use proxyd_tests::objects::{Port, service};
use proxyd_tests::served::Served;
use proxyd_tests::traffic::{Conversation, Protocol};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::{PATIENCE, expect_answers, http, wait_for_answers};
use serde_json::{Value, json};
use tempfile::TempDir;

const KINDS: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// A cluster with an API server on node-1, and agents there.
struct Site {
    cluster: Cluster,
    server: ApiServer,
    directory: TempDir,
    client: Pod,
    pods: [Pod; 2],
}

impl Site {
    /// Service `web` at 10.96.0.1 has the first pod.
    fn new(options: Options) -> Self {
        let cluster = Cluster::new();
        let client = cluster.node1.pod("client");
        let pods = ["a", "b"].map(|name| cluster.node2.pod(name).serving(8080));
        let listener = cluster.node1.enter(|| TcpListener::bind("127.0.0.1:0"));
        let server = ApiServer::serve_on(listener.unwrap(), options);
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("kubeconfig"), server.kubeconfig()).unwrap();
        server.create(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        }));
        let site = Self {
            cluster,
            server,
            directory,
            client,
            pods,
        };
        for object in site.web("web", "10.96.0.1", 0) {
            site.server.create(&object);
        }
        site
    }

    fn web(&self, name: &str, ip: &str, pod: usize) -> [Value; 2] {
        http(name, ip, &[(&self.pods[pod], "node-2")])
    }

    fn start_agent(&self) -> Agent {
        let kubeconfig = self.directory.path().join("kubeconfig");
        let kubeconfig = kubeconfig.to_str().unwrap();
        let args = [
            "-v4",
            "--hostname-override=node-1",
            "--kubeconfig",
            kubeconfig,
        ];
        Agent::start(&self.node().netns, &args)
    }

    fn node(&self) -> &Host {
        &self.cluster.node1.host
    }

    /// The server's process is there again.
    fn resume(&self) {
        let address = self.server.address();
        let listener = self.node().enter(|| TcpListener::bind(address));
        self.server.resume_on(listener.unwrap());
    }

    /// A connection to a Service is answered by this pod.
    fn expect(&self, to: &str, pod: usize) {
        let source = self.client.host.v4;
        let pods = [&self.pods[pod]];
        expect_answers(&self.client.host, Protocol::Tcp, at(to), &pods, source);
    }

    fn wait_for(&self, to: &str, pod: usize) {
        let pods = [&self.pods[pod]];
        wait_for_answers(&self.client.host, Protocol::Tcp, at(to), &pods);
    }

    /// Waits for a new Service. Nobody asks it earlier: the connections that failed would be remembered, by pods that
    /// routers told of a shorter way, and untranslated by the node for all who get their ports.
    fn wait_for_rules(&self, ip: &str) {
        eventually("the Service has rules", 3 * PATIENCE, || {
            let args = ["list", "map", "ip", "proxyd", "services"];
            nft(&self.node().netns, &args, "").contains(&format!("{ip} "))
        });
    }

    fn codes(&self) -> [u16; 2] {
        ["/healthz", "/livez"].map(|path| {
            let address = at("127.0.0.1:10256");
            get(&self.node().netns, address, path).map_or(0, |answer| answer.code)
        })
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn count(log: &[String], text: &str) -> usize {
    log.iter().filter(|line| line.contains(text)).count()
}

in_both_encodings! {
    rules_of_an_earlier_agent_serve_while_the_server_is_away_at_the_start,
    an_outage_in_the_middle_breaks_no_connection_and_is_said_once,
    half_a_list_deletes_no_rule,
    a_cluster_out_of_a_backup_is_taken_for_what_it_is,
    events_by_halves_and_watches_that_expire_lose_nothing,
    one_kind_that_is_refused_holds_up_no_other,
}

fn rules_of_an_earlier_agent_serve_while_the_server_is_away_at_the_start(options: Options) {
    let site = Site::new(options);
    let agent = site.start_agent();
    agent.wait_for_log("in sync", PATIENCE);
    site.expect("10.96.0.1:80", 0);
    agent.terminate();
    site.server.stop();
    let generation = Generation::of(&site.node().netns).unwrap();
    let before = generation.get().unwrap();

    let agent = site.start_agent();
    // What is wrong with the server is said once, and not once for each kind, with its address.
    let away = "WARN no answer from the API server";
    let said = agent.wait_for_log(away, PATIENCE);
    assert!(
        said.contains("; trying again at http://127.0.0.1:"),
        "{said}"
    );
    eventually("only /livez is content", PATIENCE, || {
        site.codes() == [503, 200]
    });
    site.expect("10.96.0.1:80", 0);
    assert_eq!(generation.get().unwrap(), before, "nothing is written");

    // Meanwhile the cluster goes on.
    site.server.update(&site.web("web", "10.96.0.1", 1)[1]);
    for object in site.web("api", "10.96.0.2", 0) {
        site.server.create(&object);
    }
    site.resume();
    site.wait_for("10.96.0.1:80", 1);
    site.wait_for_rules("10.96.0.2");
    site.wait_for("10.96.0.2:80", 0);
    eventually("both are content", PATIENCE, || site.codes() == [200, 200]);
    agent.wait_for_log("answers again", PATIENCE);
    let (_, log) = agent.terminate();
    assert_eq!(
        (count(&log, away), count(&log, "answers again")),
        (1, 1),
        "{log:#?}"
    );
}

fn an_outage_in_the_middle_breaks_no_connection_and_is_said_once(options: Options) {
    let site = Site::new(options);
    let agent = site.start_agent();
    agent.wait_for_log("in sync", PATIENCE);
    site.expect("10.96.0.1:80", 0);
    let (from, to) = (&site.client.host.netns, at("10.96.0.1:80"));
    let mut conversation = Conversation::open(from, Protocol::Tcp, to, PATIENCE).unwrap();
    assert_eq!(conversation.ask().unwrap().server, "a");

    site.server.refuse(Refusal::with(500).times(usize::MAX));
    site.server.cut_watches(Cut::Broken);
    site.server.clear_requests();
    eventually("each kind was asked for three times", 3 * PATIENCE, || {
        let requests = site.server.requests();
        [
            Resource::Services,
            Resource::EndpointSlices,
            Resource::Nodes,
            Resource::ServiceCidrs,
        ]
        .into_iter()
        .all(|kind| requests.iter().filter(|r| r.resource == Some(kind)).count() >= 3)
    });
    assert_eq!(site.codes(), [200, 200], "the rules are in sync");
    site.expect("10.96.0.1:80", 0);
    assert_eq!(conversation.ask().unwrap().server, "a");

    site.server.update(&site.web("web", "10.96.0.1", 1)[1]);
    site.server.clear_faults();
    for kind in KINDS {
        agent.wait_for_log(&format!("watching {kind} again"), 3 * PATIENCE);
    }
    site.wait_for("10.96.0.1:80", 1);
    assert_eq!(conversation.ask().unwrap().server, "a");
    let (_, log) = agent.terminate();
    for kind in KINDS {
        // The end of the watches, soon after the start, may be said too.
        let failed = count(
            &log,
            &format!("watching {kind}: the API server answered 500"),
        );
        let again = count(&log, &format!("watching {kind} again"));
        assert_eq!((failed, again), (1, 1), "{kind}: {log:#?}");
    }
}

/// So many Services that half of them are many.
fn services() -> impl Iterator<Item = Value> {
    (0..40).map(|host| {
        let ip = IpAddr::from([10, 96, 1, host]);
        service(&format!("web-{host}"), &[ip], &[Port::HTTP])
    })
}

/// How many of them have rules: without endpoints, they refuse.
fn served(fixture: &Served) -> usize {
    let args = ["list", "map", "ip", "proxyd", "no-endpoints"];
    nft(&fixture.node, &args, "").matches(" 10.96.1.").count()
}

/// The server comes back without history, or the agent is started anew, and no list comes to its end for a while.
/// That nothing is written is asserted.
fn break_off_lists(fixture: &Served, agent: Agent, cut: Cut, is_restarted: bool) -> Agent {
    let server = &fixture.server;
    let generation = Generation::of(&fixture.node).unwrap();
    let before = generation.get().unwrap();
    server.cut_next_lists(cut, usize::MAX);
    // A version that no watch knows.
    let name = format!("{cut:?}").to_lowercase();
    server.create(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }));
    server.compact();
    server.clear_requests();
    let agent = if is_restarted {
        agent.terminate();
        fixture.start(&[])
    } else {
        server.cut_watches(Cut::Broken);
        agent
    };
    eventually("Services were listed in vain twice", 3 * PATIENCE, || {
        let requests = server.requests();
        let lists = requests.iter().filter(|request| {
            request.resource == Some(Resource::Services)
                && (request.verb == Some(Verb::List)
                    || request.query.contains_key("sendInitialEvents"))
        });
        lists.count() >= 3
    });
    assert_eq!(served(fixture), 40, "{cut:?}");
    assert_eq!(generation.get().unwrap(), before, "{cut:?}");
    server.clear_faults();
    agent.wait_for_log("watching services again", 3 * PATIENCE);
    agent
}

fn half_a_list_deletes_no_rule(options: Options) {
    for streaming_lists in [true, false] {
        let fixture = Served::new(Options {
            streaming_lists,
            ..options.clone()
        });
        services().for_each(|service| fixture.create(&[service]));
        let mut agent = fixture.start_in_sync(&[]);
        assert_eq!(served(&fixture), 40);
        agent = break_off_lists(&fixture, agent, Cut::Broken, false);
        let cut = if streaming_lists {
            Cut::Clean
        } else {
            Cut::HalfLine
        };
        agent = break_off_lists(&fixture, agent, cut, true);
        fixture
            .server
            .delete(Resource::Services, "default", "web-0");
        eventually("what is really gone goes", PATIENCE, || {
            served(&fixture) == 39
        });
        agent.terminate();
    }
}

fn a_cluster_out_of_a_backup_is_taken_for_what_it_is(options: Options) {
    let fixture = Served::new(options);
    services().for_each(|service| fixture.create(&[service]));
    let agent = fixture.start_in_sync(&[]);
    assert_eq!(served(&fixture), 40);
    fixture.server.stop();
    // Each kind is told of for those who debug.
    agent.wait_for_log("watching services: no answer from the API server", PATIENCE);
    fixture
        .server
        .delete(Resource::Services, "default", "web-0");
    fixture
        .server
        .delete(Resource::Services, "default", "web-1");
    fixture.server.reset_resource_versions();
    let address = fixture.server.address();
    let listener = fixture.node.enter(|| TcpListener::bind(address));
    fixture.server.resume_on(listener.unwrap());
    eventually("the rules are those of the backup", 3 * PATIENCE, || {
        served(&fixture) == 38
    });
    agent.terminate();
}

fn events_by_halves_and_watches_that_expire_lose_nothing(options: Options) {
    let fixture = Served::new(options);
    services().for_each(|service| fixture.create(&[service]));
    let agent = fixture.start_in_sync(&[]);
    let delete = |name| fixture.server.delete(Resource::Services, "default", name);
    fixture.server.garble_next_events(1);
    delete("web-0");
    eventually("half a line is asked for again", PATIENCE, || {
        served(&fixture) == 39
    });
    fixture.server.refuse(Refusal::with(410).times(4));
    fixture.server.cut_watches(Cut::Broken);
    delete("web-1");
    eventually("a watch goes on after 410", PATIENCE, || {
        served(&fixture) == 38
    });
    let (_, log) = agent.terminate();
    assert_eq!(count(&log, "panicked"), 0, "{log:#?}");
}

fn one_kind_that_is_refused_holds_up_no_other(options: Options) {
    let site = Site::new(options);
    let agent = site.start_agent();
    agent.wait_for_log("in sync", PATIENCE);
    site.expect("10.96.0.1:80", 0);
    let refused = Refusal::with(429).times(usize::MAX).on(Resource::Services);
    site.server
        .refuse(refused.retry_after(Duration::from_secs(1)));
    site.server.cut_watches(Cut::Clean);
    site.server.update(&site.web("web", "10.96.0.1", 1)[1]);
    site.wait_for("10.96.0.1:80", 1);
    agent.wait_for_log("watching services: the API server answered 429", PATIENCE);
    for object in site.web("api", "10.96.0.2", 0) {
        site.server.create(&object);
    }
    site.server.clear_faults();
    site.wait_for_rules("10.96.0.2");
    site.expect("10.96.0.2:80", 0);
    agent.terminate();
}
