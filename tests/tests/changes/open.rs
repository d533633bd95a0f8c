//! Conversations that are open while a Service changes: only new ones are judged by what it says now.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proxyd_tests::flows::service::{Addresses, PORT, Svc, addresses};
use proxyd_tests::flows::{SILENCE, Stage};
use proxyd_tests::traffic::{Answer, Conversation, Failure, Protocol, ask, ask_many};
use proxyd_tests::wait::{eventually, poll};
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

use crate::{ENDPOINTS, changed, stage, step};

/// How often new connections are tried at a time: one of two endpoints is missed once in 30,000 times, and then again.
const QUESTIONS: usize = 16;

const STREAMS: [Protocol; 1] = [Protocol::Tcp];
const TCP_AND_UDP: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A conversation, and its first answer.
struct Open {
    what: String,
    conversation: Conversation,
    first: Answer,
}

impl Open {
    /// Opens one that this endpoint answers.
    #[track_caller]
    fn with(stage: &Stage, (from, protocol, to): Call, server: &str) -> Self {
        let what = format!("{from} → {to} {protocol}, open to {server}");
        let opened = poll(PATIENCE, || {
            let from = &stage.cast.host(from).netns;
            let mut conversation = Conversation::open(from, protocol, to, PATIENCE).ok()?;
            let first = conversation.ask().ok()?;
            (first.server == server).then_some((conversation, first))
        });
        let (conversation, first) = opened.unwrap_or_else(|| panic!("cannot have {what}"));
        Self {
            what,
            conversation,
            first,
        }
    }

    /// The same endpoint still answers, and sees the same source.
    #[track_caller]
    fn expect_alive(&mut self, when: &str) {
        let answer = self.conversation.ask();
        assert_eq!(answer.as_ref(), Ok(&self.first), "{when}: {}", self.what);
    }
}

/// Who calls, how, and whom.
type Call = (&'static str, Protocol, SocketAddr);

/// Calls of the Service that changes, in both families.
fn calls(stage: &Stage, protocols: &[Protocol], kinds: &[(&'static str, Kind)]) -> Vec<Call> {
    let families = [0, 1].into_iter();
    let calls = families.flat_map(|family| {
        kinds.iter().flat_map(move |(from, kind)| {
            let to = kind(stage, addresses(1, family));
            protocols.iter().map(move |protocol| (*from, *protocol, to))
        })
    });
    calls.collect()
}

/// One of a Service's addresses.
type Kind = fn(&Stage, Addresses) -> SocketAddr;

fn cluster_ip(_: &Stage, addresses: Addresses) -> SocketAddr {
    SocketAddr::new(addresses.cluster, PORT)
}

fn load_balancer(_: &Stage, addresses: Addresses) -> SocketAddr {
    SocketAddr::new(addresses.load_balancer, PORT)
}

fn node_port(stage: &Stage, addresses: Addresses) -> SocketAddr {
    let family = usize::from(addresses.cluster.is_ipv6());
    SocketAddr::new(stage.cast.address("node-1", family), addresses.node_port)
}

/// Waits until new connections reach these endpoints, which all see this source.
#[track_caller]
fn wait_for_new(stage: &Stage, (from, protocol, to): Call, servers: &[&str], source: IpAddr) {
    let what = format!("{from} → {to} {protocol} reaches {servers:?} from {source}");
    eventually(&what, PATIENCE, || {
        let from = &stage.cast.host(from).netns;
        let tally = ask_many(from, protocol, to, PATIENCE, QUESTIONS);
        tally.failures.is_empty()
            && tally.servers.keys().eq(servers)
            && tally.seen == BTreeSet::from([source])
    });
}

/// Waits until new connections fail like this.
#[track_caller]
fn wait_for_failure(stage: &Stage, (from, protocol, to): Call, failure: Failure) {
    let what = format!("{from} → {to} {protocol}: {failure}");
    eventually(&what, PATIENCE, || {
        ask(&stage.cast.host(from).netns, protocol, to, SILENCE) == Err(failure)
    });
}

/// Open conversations of each call: one with the endpoint on the node, one with that on the other.
fn open_to_both(stage: &Stage, calls: &[Call]) -> Vec<Open> {
    calls
        .iter()
        .flat_map(|call| ["here", "there"].map(|server| Open::with(stage, *call, server)))
        .collect()
}

fn policies(policy: &str) -> Value {
    json!({ "externalTrafficPolicy": policy, "internalTrafficPolicy": policy })
}

#[test]
fn policies_switch_under_open_conversations() {
    let stage = stage(changed(policies("Cluster")));
    let kinds: [(_, Kind); 3] = [
        ("pod", cluster_ip),
        ("client", load_balancer),
        ("client", node_port),
    ];
    let calls = calls(&stage, &TCP_AND_UDP, &kinds);
    let mut open = open_to_both(&stage, &calls);
    for (when, policy, servers) in [
        ("Local", "Local", &["here"][..]),
        ("Cluster again", "Cluster", &["here", "there"]),
        ("Local again", "Local", &["here"]),
    ] {
        stage.write(&step(changed(policies(policy))));
        for call in &calls {
            let (from, _, to) = *call;
            let family = usize::from(to.is_ipv6());
            let masqueraded = from == "client" && policy == "Cluster";
            let seen = if masqueraded { "node-1" } else { from };
            wait_for_new(&stage, *call, servers, stage.cast.address(seen, family));
        }
        open.iter_mut().for_each(|open| open.expect_alive(when));
        // These too go on under the next policy.
        open.extend(calls.iter().map(|call| Open::with(&stage, *call, "here")));
    }
}

#[test]
fn a_source_that_is_no_longer_in_a_range_keeps_what_is_open() {
    let stage = stage(changed(json!({})));
    let kinds: [(_, Kind); 2] = [("client", load_balancer), ("pod", load_balancer)];
    let calls = calls(&stage, &TCP_AND_UDP, &kinds);
    let mut open = open_to_both(&stage, &calls);
    let ranges = json!({ "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8:ffff::/48"] });
    stage.write(&step(changed(ranges)));
    for call in &calls {
        wait_for_failure(&stage, *call, Failure::TimedOut);
    }
    open.iter_mut()
        .for_each(|open| open.expect_alive("out of range"));
}

#[test]
fn connections_go_on_when_their_service_has_no_endpoints_left() {
    let stage = stage(changed(json!({})));
    let kinds: [(_, Kind); 5] = [
        ("pod", cluster_ip),
        ("node-1", cluster_ip),
        ("client", cluster_ip),
        ("client", load_balancer),
        ("client", node_port),
    ];
    let calls = calls(&stage, &STREAMS, &kinds);
    let mut open = open_to_both(&stage, &calls);
    stage.write(&step(Svc::new("changed", json!({}), "")));
    for call in &calls {
        wait_for_failure(&stage, *call, Failure::Refused);
    }
    open.iter_mut()
        .for_each(|open| open.expect_alive("without endpoints"));
}

#[test]
fn connections_go_on_when_no_endpoint_is_left_on_this_node() {
    let local = || policies("Local");
    let stage = stage(Svc::new("changed", local(), ENDPOINTS));
    let kinds: [(_, Kind); 4] = [
        ("pod", cluster_ip),
        ("client", cluster_ip),
        ("client", load_balancer),
        ("client", node_port),
    ];
    let calls = calls(&stage, &STREAMS, &kinds);
    let mut open: Vec<_> = calls
        .iter()
        .map(|call| Open::with(&stage, *call, "here"))
        .collect();
    stage.write(&step(Svc::new("changed", local(), "there")));
    for call in &calls {
        wait_for_failure(&stage, *call, Failure::TimedOut);
    }
    open.iter_mut()
        .for_each(|open| open.expect_alive("without local endpoints"));
}
