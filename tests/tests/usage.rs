//! What the program says and how it ends when its input, its flags or the machine are not right.

use std::fs;
use std::process::Output;

use proxyd_tests::agent::{Agent, binary, nft, run_once};
use proxyd_tests::netns::Netns;
use proxyd_tests::objects::{Port, list, service};
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;
use serde_json::{Value, json};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bad_input_is_told_and_costs_only_itself() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let bad = "a: [\n---\napiVersion: v1\nkind: Service\nmetadata: {name: odd}\n\
               spec: {clusterIP: 10.96.0.3, ports: [{name: a, port: 0}, {name: b, port: 80}]}\n";
    fs::write(directory.path().join("bad.yaml"), bad).unwrap();
    let args = ["--dry-run", "--hostname-override", "n", "--manifests", path];
    let output = run_once(&netns, &args);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.contains("bad.yaml, document 1: not valid YAML"),
        "{said}"
    );
    assert!(
        said.contains("Service default/odd: spec.ports[0].port: 0 is not a port number"),
        "{said}"
    );
    let rules = String::from_utf8(output.stdout).unwrap();
    assert!(
        rules.contains("10.96.0.3 . tcp . 80"),
        "the good port is served"
    );
    nft(&netns, &["-c", "-f", "-"], &rules);

    let agent = Agent::start(&netns, &args[1..]);
    agent.wait_for_log("objects with a part that is not served: 1", PATIENCE);
    let (_, log) = agent.terminate();
    assert_eq!(
        log.iter()
            .filter(|line| line.contains("spec.ports[0].port"))
            .count(),
        1,
        "{log:?}"
    );
}

/// Faults that a new user makes: each is named once, with what was probably meant.
#[test]
fn a_dry_run_names_what_was_meant_otherwise() {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let slice = |name: &str, label: &str, service: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: {name}, labels: {{{label}: {service}}}}}\n\
             ports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.1.0.1]}}]\n"
        )
    };
    let service = |kind: &str, name: &str, spec: &str| {
        format!("---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let text = [
        service(
            "Service",
            "api",
            "clusterIP: 10.96.0.1, ports: [{port: 80}]",
        ),
        slice("api-1", "kubernetes.io/service-nam", "api"),
        service("Service", "db", "clusterIP: 10.96.0.2, ports: [{port: 80}]"),
        slice("db-1", "kubernetes.io/service-name", "bd"),
        service(
            "service",
            "small",
            "clusterIP: 10.96.0.3, ports: [{port: 80}]",
        ),
        service("Service", "head", "clusterIP: None"),
        service("Service", "later", "ports: [{port: 80}]"),
    ]
    .concat();
    fs::write(file("all.yaml"), text).unwrap();
    fs::create_dir(file("more")).unwrap();
    fs::write(file("more/web.yaml"), service("Service", "web", "")).unwrap();
    // As a ConfigMap's files are kept: nobody means these by themselves.
    fs::create_dir(file("..2026_11_28")).unwrap();
    fs::write(file("..2026_11_28/web.yaml"), "").unwrap();
    let path = directory.path().to_str().unwrap();
    let args = ["--dry-run", "-o", "summary", "--hostname-override", "n"];
    let output = run_once(&netns, &[&args[..], &["--manifests", path]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = text_without(&output, path);
    assert_eq!(
        said,
        [
            "error: all.yaml, document 5, service small: kind: \"service\" is not known; write Service",
            "warning: more: a directory in a directory is not read; give it by a --manifests of its own",
            "warning: EndpointSlice default/api-1: metadata.labels[kubernetes.io/service-name]: missing; \
             the label \"kubernetes.io/service-nam\" is like it; the slice belongs to no Service",
            "warning: EndpointSlice default/db-1: metadata.labels[kubernetes.io/service-name]: there is no \
             Service default/bd; the nearest is default/db",
        ]
    );
    let shown = String::from_utf8(output.stdout).unwrap();
    let counts = "4 Services: 2 with rules, 1 headless or ExternalName, 1 without an address. \
                  Not read: 1 document or object (standard error says why).";
    assert!(shown.contains(counts), "{shown}");
}

/// The sorted lines of standard error, without the directory that they name.
fn text_without(output: &Output, directory: &str) -> Vec<String> {
    let text = text(output).replace(&format!("{directory}/"), "");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_by_key(|line| (line.starts_with("warning"), line.contains("EndpointSlice")));
    lines
}

#[test]
fn where_nothing_usable_was_read_no_rules_are_printed() {
    let netns = Netns::new().unwrap();
    let args = ["--dry-run", "--hostname-override", "n", "--manifests", "-"];
    let check = |stdin: &str, expected: Option<&str>| {
        let output = netns.run(&binary(), &args, stdin).unwrap();
        let said = text(&output);
        let Some(expected) = expected else {
            assert!(
                output.status.success() && !output.stdout.is_empty(),
                "{said}"
            );
            return;
        };
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    };
    let none = "error: no Service was read, so there are no rules: ";
    let none = |why: &str| format!("{none}{why}");
    check("", Some(&none("there is no document in it")));
    check("a: [", Some(&none("documents or objects refused: 1")));
    check(
        "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: v1\nkind: Pod\n",
        Some(&none("objects of other kinds (Deployment, Pod): 2")),
    );
    check(&list(&[]), None);
}

#[test]
fn maps_are_printed_as_json_and_bad_objects_told_beside() {
    let netns = Netns::new().unwrap();
    let base = [
        "--dry-run",
        "--hostname-override",
        "node-1",
        "--backend",
        "ebpf",
        "--manifests",
    ];
    let run = |more: &[&str], stdin: &str| {
        let output = netns.run(&binary(), &[&base[..], more].concat(), stdin);
        let output = output.unwrap();
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        (output.status.code(), text(&output), stdout)
    };
    let (status, said, printed) = run(&[EXAMPLES, "-o", "json"], "");
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert_eq!(run(&[EXAMPLES, "--output=json"], "").2, printed);
    let document: Value = serde_json::from_str(&printed).unwrap();
    let (_, _, rules) = run(&[EXAMPLES, "-o", "text"], "");
    assert_eq!(run(&[EXAMPLES], "").2, rules);
    let has = |line: String| assert!(rules.lines().any(|l| l == line), "{line:?} in {rules}");
    let mut count = 0;
    for frontend in document["families"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|family| family["frontends"].as_array().unwrap())
    {
        for backend in frontend["backends"].as_array().unwrap() {
            let ip = backend["address"].as_str().unwrap().parse().unwrap();
            let port = backend["port"].as_u64().unwrap().try_into().unwrap();
            let to = std::net::SocketAddr::new(ip, port);
            has(format!("#     {} → {to}", backend["index"]));
            count += 1;
        }
    }
    assert!(count > 5, "{printed}");

    let odd = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "odd" },
        "spec": { "clusterIP": "10.96.0.3", "ports": [{ "name": "a", "port": 0 }] },
    });
    let (status, said, printed) = run(&["-", "-o", "json"], &odd.to_string());
    assert_eq!(status, Some(1));
    assert!(
        said.contains("error: Service default/odd: spec.ports[0].port: 0 is not a port number"),
        "{said}"
    );
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["node"], "node-1");
}

#[test]
fn wrong_usage_ends_with_2_and_a_failure_with_1() {
    let netns = Netns::new().unwrap();
    let check = |args: &[&str], status: i32, expected: &str| {
        let output = run_once(&netns, args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    };
    check(
        &["--no-such-flag"],
        2,
        "unexpected argument '--no-such-flag'",
    );
    check(
        &["--cluster-cidr", "10.0.0.0"],
        2,
        "--cluster-cidr: not a network",
    );
    check(
        &["--config", "/nowhere/x"],
        2,
        "--config /nowhere/x: cannot be read",
    );
    check(
        &["--detect-local-mode", "BridgeInterface"],
        2,
        "give --pod-bridge-interface",
    );
    check(
        &["--manifests", "x", "--kubeconfig", "y"],
        2,
        "cannot be used with",
    );
    check(
        &["--output", "json", "--backend", "ebpf"],
        2,
        "required arguments were not provided:\n  --dry-run",
    );
    check(
        &["--dry-run", "-o", "json"],
        2,
        "invalid value \"json\" for --output: it shows the BPF maps, and --backend nftables has none",
    );
    check(
        &["--maglev-table-size", "16384"],
        2,
        "invalid value '16384' for '--maglev-table-size <PRIME>': not a prime number; the next one is 16411",
    );
    check(
        &["--dry-run", "-o", "yaml"],
        2,
        "[possible values: text, summary, json]",
    );
    check(
        &["--dry-run", "--manifests", "/nowhere/manifests"],
        1,
        "--manifests /nowhere/manifests: cannot be read: No such file",
    );
    check(&["--manifests", "/nowhere/manifests"], 1, "cannot be read");
    check(
        &["--dry-run", "--manifests", EXAMPLES, "stray"],
        2,
        "unexpected argument 'stray'",
    );
    check(
        &["--service", "web", "--manifests", EXAMPLES],
        2,
        "required arguments were not provided:\n  --dry-run",
    );
    check(
        &["--dry-run", "--manifests", EXAMPLES, "--service", "whoamy"],
        1,
        "error: there is no Service default/whoamy; the nearest is default/whoami",
    );
    check(
        &["--kubeconfig", "/nowhere/config"],
        1,
        "error: --kubeconfig: /nowhere/config: cannot be read: No such file",
    );
    check(&["--master", "not a url"], 2, "--master: not a URL");
    check(
        &["--dry-run"],
        1,
        "no cluster to watch: give --kubeconfig FILE",
    );
    check(&[], 1, "no cluster to watch");
}

#[test]
fn without_privileges_the_agent_says_what_it_needs() {
    let netns = Netns::new().unwrap();
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let manifest = tempfile::tempdir().unwrap();
    fs::set_permissions(
        manifest.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    // The built program may lie where nobody else can read it.
    let program = manifest.path().join("proxyd");
    fs::copy(binary(), &program).unwrap();
    fs::write(manifest.path().join("list.json"), list(&[])).unwrap();
    let manifests = [
        "--manifests",
        manifest.path().to_str().unwrap(),
        "--hostname-override",
        "n",
    ];
    let run = |args: &[&str]| {
        let args = [
            &nobody[..],
            &["--", program.to_str().unwrap()],
            &manifests,
            args,
        ]
        .concat();
        netns.run("setpriv", &args, "").unwrap()
    };
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused).contains(
            "run proxyd as root, or with CAP_NET_ADMIN (in Kubernetes: securityContext.runAsUser: 0"
        ),
        "{}",
        text(&refused)
    );
    // Wrong usage comes first: nobody wants to be given capabilities to hear of it.
    let usage = netns.run(
        "setpriv",
        &[&nobody[..], &["--", program.to_str().unwrap()]].concat(),
        "",
    );
    let usage = text(&usage.unwrap());
    assert!(
        usage.contains("no cluster to watch") && !usage.contains("CAP_NET_ADMIN"),
        "{usage}"
    );
    let dry_run = run(&["--dry-run"]);
    assert!(
        dry_run.status.success(),
        "a dry run needs no privileges: {}",
        text(&dry_run)
    );
}

/// It needs no other program: not to make its tables, nor to change, mend, replace and remove them.
#[test]
fn the_agent_starts_no_program() {
    let netns = Netns::new().unwrap();
    let run = |args: &[&str]| {
        let own = ["-i", "PATH=/nowhere", &binary(), "--manifests", EXAMPLES];
        Agent::start_binary("env", &netns, &[&own[..], args].concat())
    };
    for args in [&[][..], &["--cluster-cidr", "10.244.0.0/16"]] {
        let agent = run(args);
        agent.wait_for_log("in sync", PATIENCE);
        nft(&netns, &["flush", "ruleset"], "");
        eventually("the tables are made again", PATIENCE, || {
            nft(&netns, &["list", "tables"], "") == "table ip proxyd\ntable ip6 proxyd\n"
        });
        let (status, log) = agent.terminate();
        assert!(status.success(), "{log:#?}");
        let trouble = log.iter().find(|line| line.contains("not in sync"));
        assert_eq!(trouble, None);
    }
    let cleanup = run_once(&netns, &["--cleanup"]);
    assert!(cleanup.status.success(), "{}", text(&cleanup));
    assert_eq!(nft(&netns, &["list", "tables"], ""), "");
}

#[test]
fn standard_input_is_a_manifest_too() {
    let netns = Netns::new().unwrap();
    let objects = list(&[service(
        "web",
        &["10.96.0.1".parse().unwrap()],
        &[Port::HTTP],
    )]);
    let args = ["--dry-run", "--hostname-override", "n", "--manifests", "-"];
    let output = netns.run(&binary(), &args, &objects).unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("no-endpoints { 10.96.0.1 . tcp . 80")
    );
    let broken = netns
        .run(&binary(), &args, &json!({ "kind": 1 }).to_string())
        .unwrap();
    assert!(
        text(&broken).contains("standard input, document 1"),
        "{}",
        text(&broken)
    );
}
