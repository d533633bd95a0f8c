//! Session affinity is of a Service port: a client has one endpoint at all of its addresses, with rules and with programs.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::net::SocketAddr;

use proxyd_tests::agent::nft;
use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Stage;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::{PORT, Svc, addresses, objects, remove_sctp};
use proxyd_tests::sockets::Sockets;
use proxyd_tests::traffic::{Protocol, ask};
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];
const FAMILIES: [usize; 2] = [0, 1];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const CLIENTS: [&str; 6] = ["pod", "client", "node-1", "here", "here2", "pod-3"];

/// A Service whose clients keep their endpoint, with more fields in its `spec`.
fn sticky(endpoints: &str, more: &Value) -> Svc {
    let mut spec = json!({ "sessionAffinity": "ClientIP" });
    let fields = more.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(fields);
    Svc::new("sticky", spec, endpoints)
}

/// With an agent that has the objects without SCTP, which would have rules balance beside programs.
fn stage(services: &[Svc], args: &[&str]) -> Stage {
    let cast = Cast::new();
    for outside in ["client", "pod-3"] {
        cast.cluster.return_by_node1(cast.host(outside));
    }
    let mut objects = objects(services, &cast);
    remove_sctp(&mut objects);
    Stage::new(cast, &objects, &[ARGS, args].concat())
}

/// Checks what rules do, and then what programs do: at sockets of node-1, and at devices for those elsewhere.
fn on_both(services: &[Svc], check: impl Fn(&Stage, &str)) {
    let stage = stage(services, &[]);
    check(&stage, "nftables");
    stage.cast.cluster.node1.host.netns.forget_connections();
    let sockets = Sockets::of(&stage.cast.namespaces_here());
    let stage = stage.restart(&[ARGS, &sockets.args()].concat());
    check(&stage, "ebpf");
    stage.agent.terminate();
}

/// The addresses of the Service, its ClusterIP first.
fn kinds(stage: &Stage, family: usize) -> [SocketAddr; 4] {
    let addresses = addresses(1, family);
    let node = stage.cast.address("node-1", family);
    [
        SocketAddr::new(addresses.cluster, PORT),
        SocketAddr::new(addresses.load_balancer, PORT),
        SocketAddr::new(addresses.external, PORT),
        SocketAddr::new(node, addresses.node_port),
    ]
}

/// Who answers.
#[track_caller]
fn server(stage: &Stage, from: &str, protocol: Protocol, to: SocketAddr) -> String {
    let answer = ask(&stage.cast.host(from).netns, protocol, to, PATIENCE);
    answer
        .unwrap_or_else(|failure| panic!("{from} → {to} {protocol}: {failure}"))
        .server
}

/// Each client in each family and protocol.
fn each_client() -> impl Iterator<Item = (&'static str, usize, Protocol)> {
    let ways = FAMILIES.into_iter();
    let ways = ways.flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)));
    ways.flat_map(|(family, protocol)| CLIENTS.map(|from| (from, family, protocol)))
}

/// Those who do not get the same endpoint at every address, of all who were asked.
fn who_differs(stage: &Stage) -> Vec<String> {
    let differs = each_client().filter_map(|(from, family, protocol)| {
        // Each begins elsewhere: whatever is called first decides.
        let mut kinds = kinds(stage, family);
        let first = from.len() % kinds.len();
        kinds.rotate_left(first);
        let servers = kinds.map(|to| server(stage, from, protocol, to));
        let is_same = servers.iter().all(|server| *server == servers[0]);
        (!is_same).then(|| format!("{from} {protocol} {family}: {servers:?}"))
    });
    differs.collect()
}

#[test]
fn a_client_has_one_endpoint_at_every_address() {
    on_both(
        &[sticky("here here2 there there2", &json!({}))],
        |stage, by| {
            let differ = who_differs(stage);
            let all = each_client().count();
            println!("{by}: {} of {all} clients differ", differ.len());
            assert!(differ.is_empty(), "{by}: {differ:#?}");
        },
    );
}

#[test]
fn clients_are_spread_over_the_endpoints() {
    on_both(
        &[sticky("here here2 there there2", &json!({}))],
        |stage, by| {
            let servers = each_client().map(|(from, family, protocol)| {
                let [cluster_ip, ..] = kinds(stage, family);
                server(stage, from, protocol, cluster_ip)
            });
            let mut servers: Vec<String> = servers.collect();
            servers.sort();
            servers.dedup();
            assert!(servers.len() > 1, "{by}: 24 clients have {servers:?}");
        },
    );
}

#[test]
fn where_a_policy_is_local_no_address_uses_an_endpoint_that_is_not_its_own() {
    for (policy, local) in [
        ("externalTrafficPolicy", [false, true, true, true]),
        ("internalTrafficPolicy", [true, false, false, false]),
    ] {
        let service = sticky("here there there2", &json!({ policy: "Local" }));
        on_both(&[service], |stage, by| {
            for family in FAMILIES {
                for protocol in PROTOCOLS {
                    for from in ["client", "node-2"] {
                        for (to, local) in kinds(stage, family).into_iter().zip(local) {
                            let first = server(stage, from, protocol, to);
                            let again = server(stage, from, protocol, to);
                            assert_eq!(again, first, "{by} {policy} {from} {to} {protocol}");
                            if local {
                                assert_eq!(first, "here", "{by} {policy} {from} {to} {protocol}");
                            }
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn a_restart_forgets_nobody_at_any_address() {
    let services = [sticky("here here2 there there2", &json!({}))];
    let check = |stage: Stage, args: &[&str]| {
        let ask = |stage: &Stage, place: usize| -> Vec<String> {
            let servers = each_client().map(|(from, family, protocol)| {
                server(stage, from, protocol, kinds(stage, family)[place])
            });
            servers.collect()
        };
        let before = ask(&stage, 3);
        let stage = stage.restart(args);
        assert_eq!(ask(&stage, 1), before, "{args:?}");
        stage
    };
    let by_rules = check(stage(&services, &[]), ARGS);
    by_rules.cast.cluster.node1.host.netns.forget_connections();
    let sockets = Sockets::of(&by_rules.cast.namespaces_here());
    let args = [ARGS, &sockets.args()].concat();
    let by_programs = check(by_rules.restart(&args), &args);
    by_programs.agent.terminate();
}

#[test]
fn an_upgrade_of_the_rules_forgets_nobody() {
    let stage = stage(&[sticky("here here2 there there2", &json!({}))], &[]);
    let ask = |stage: &Stage, place: usize| -> Vec<String> {
        let servers = each_client().map(|(from, family, protocol)| {
            server(stage, from, protocol, kinds(stage, family)[place])
        });
        servers.collect()
    };
    let before = ask(&stage, 0);
    // Rules of another version are replaced.
    let other = [ARGS, &["--reject-unused-service-ports=false"]].concat();
    let stage = stage.restart(&other);
    let log = stage.agent.log();
    assert!(
        log.iter().any(|line| line.contains("of another version")),
        "{log:#?}"
    );
    assert_eq!(ask(&stage, 3), before);
}

#[test]
fn clients_of_an_earlier_version_keep_their_endpoints_for_the_time_that_is_left() {
    let stage = stage(&[sticky("here here2 there there2", &json!({}))], &[]);
    let Stage { cast, .. } = &stage;
    let own = |name: &str, family| cast.address(name, family).to_string();
    // It remembered clients by what they called: here a NodePort, and an endpoint that is gone.
    let mut tables = String::new();
    for (family, ip) in FAMILIES.into_iter().zip(["ip", "ip6"]) {
        let of = addresses(1, family);
        let nobody = ["10.244.9.9", "fd00:10:244:9::9"][family];
        tables += &format!(
            "delete table {ip} proxyd
             table {ip} proxyd {{
                 comment \"proxyd of old\"
                 map affinity {{
                     typeof {ip} saddr . {ip} daddr . meta l4proto . th dport : {ip} daddr . th dport
                     size 131072
                     flags dynamic,timeout
                     elements = {{
                         {client} . {node} . tcp . {port} timeout 10800s expires 5000s : {there} . 8080,
                         {pod} . {cluster} . tcp . 80 timeout 10800s expires 4000s : {here} . 8080,
                         {pod} . {node} . tcp . {port} timeout 10800s expires 9000s : {there} . 8080,
                         {pod3} . {node} . tcp . {port} timeout 10800s expires 9000s : {nobody} . 8080
                     }}
                 }}
             }}\n",
            client = own("client", family),
            pod = own("pod", family),
            pod3 = own("pod-3", family),
            node = own("node-1", family),
            here = own("here", family),
            there = own("there", family),
            cluster = of.cluster,
            port = of.node_port,
        );
    }
    // The agent would put its own tables back.
    let load = |cast: &Cast| drop(nft(&cast.host("node-1").netns, &["-f", "-"], &tables));
    let stage = stage.restart_after(load, ARGS);
    for (family, ip) in FAMILIES.into_iter().zip(["ip", "ip6"]) {
        let of = addresses(1, family);
        let listed = nft(
            &stage.cast.host("node-1").netns,
            &["list", "map", ip, "proxyd", "affinity"],
            "",
        );
        for (client, endpoint, from, to) in
            [("client", "there", 4900, 5000), ("pod", "here", 3900, 4000)]
        {
            let [client, endpoint] =
                [client, endpoint].map(|name| stage.cast.address(name, family));
            let entry = format!("{client} . {} . tcp . 80", of.cluster);
            let line = listed.lines().find(|line| line.contains(&entry));
            let line = line.unwrap_or_else(|| panic!("{entry} is not in {listed}"));
            assert!(line.contains(&format!(": {endpoint} . 8080")), "{line}");
            assert!((from..=to).contains(&seconds_left(line)), "{line}");
        }
        assert_eq!(listed.matches("expires").count(), 2, "{listed}");
        for to in kinds(&stage, family) {
            assert_eq!(server(&stage, "client", Protocol::Tcp, to), "there");
            assert_eq!(server(&stage, "pod", Protocol::Tcp, to), "here");
        }
    }
}

/// What nft says of the time that an element has left: `expires 1h23m19s996ms`.
fn seconds_left(line: &str) -> u64 {
    let (_, rest) = line.split_once("expires ").unwrap();
    let text = rest.split_whitespace().next().unwrap();
    let mut seconds = 0;
    let mut number = 0;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            digit if digit.is_ascii_digit() => {
                number = number * 10 + u64::from(digit.to_digit(10).unwrap());
                continue;
            }
            'h' => seconds += number * 3600,
            'm' if letters.peek() == Some(&'s') => break,
            'm' => seconds += number * 60,
            's' => seconds += number,
            other => panic!("{other} in {text}"),
        }
        number = 0;
    }
    seconds
}

#[test]
fn nft_lists_the_rules_that_it_cannot_load() {
    let mixed = json!({ "externalTrafficPolicy": "Local" });
    let mut services = [
        sticky("here there", &json!({})),
        sticky("here there", &mixed),
    ];
    services[1].name = "mixed".to_owned();
    let stage = stage(&services, &[]);
    let node = &stage.cast.host("node-1").netns;
    for family in ["ip", "ip6"] {
        let text = nft(node, &["list", "table", family, "proxyd"], "");
        for chain in [
            "external-2-shared",
            "external-local-2-1-by-address",
            "cluster-2-by-address",
        ] {
            assert!(
                text.contains(&format!("chain {chain} {{")),
                "{chain} is not in {text}"
            );
        }
        let json = nft(node, &["-j", "list", "table", family, "proxyd"], "");
        assert!(json.contains("external-2-shared"), "{json}");
    }
}
