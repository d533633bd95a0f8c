//! The truth table: each kind of client and address under each policy, with each detector.

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::cast::{BRIDGE, Cast};
use proxyd_tests::flows::service::Svc;
use serde_json::{Value, json};

/// A Service of each policy, and for each one more whose only endpoint is the pod `here`.
fn services() -> Vec<Svc> {
    let cluster = json!({});
    let external = json!({ "externalTrafficPolicy": "Local" });
    let internal = json!({ "internalTrafficPolicy": "Local" });
    vec![
        Svc::new("cluster", cluster.clone(), "here there"),
        Svc::new("external-local", external.clone(), "here there there2"),
        Svc::new("internal-local", internal.clone(), "here here2 there"),
        Svc::new("cluster-self", cluster, "here"),
        Svc::new("external-local-self", external, "here"),
        Svc::new("internal-local-self", internal, "here"),
    ]
}

/// This node's Node object, without a zone.
pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "192.168.0.2" }, { "type": "InternalIP", "address": "fd00:168::2" },
        ] },
    })
}

#[track_caller]
fn check(args: &[&str], table: &str) {
    check_with(args, table, |_| {});
}

#[track_caller]
fn check_with(args: &[&str], table: &str, prepare: impl FnOnce(&mut Cast)) {
    check_scene(Scene::across(args, services(), table), prepare);
}

#[track_caller]
fn check_scene(mut scene: Scene<'_>, prepare: impl FnOnce(&mut Cast)) {
    scene.others.push(node());
    scene.check_with(|cast: &mut Cast| {
        prepare(cast);
        // What node-1 sends on with a source outside comes back by node-1.
        for outside in ["client", "pod-3"] {
            cast.cluster.return_by_node1(cast.host(outside));
        }
    });
}

/// What does not depend on what is known of pods.
const OUTSIDE: &str = "
| node-1 → NodePort, LB, external         | all M | all M | all M   | all M | all M | all M |
| client, node-2 → NodePort, LB, external | all M | local | all M   | all M | local | all M |
";

const HEAD: &str = "
| from → to | cluster | external-local | internal-local | cluster-self | external-local-self | internal-local-self |
";

/// Pods of this node are known, those of the other node are not.
fn of_this_node() -> String {
    HEAD.to_owned()
        + "
| pod → ClusterIP                         | all   | all   | local   | all   | all   | all   |
| here → ClusterIP                        | all   | all   | local   | all M | all M | all M |
| node-1, client, pod-3 → ClusterIP       | all M | all M | local M | all M | all M | all M |
| pod → NodePort, LB, external            | all M | all   | all M   | all M | all   | all M |
| here → NodePort, LB, external           | all M | all   | all M   | all M | all M | all M |
| pod-3 → NodePort, LB, external          | all M | local | all M   | all M | local | all M |
" + OUTSIDE
}

fn of_the_cluster() -> String {
    HEAD.to_owned()
        + "
| pod, pod-3 → ClusterIP                  | all   | all   | local   | all   | all   | all   |
| here → ClusterIP                        | all   | all   | local   | all M | all M | all M |
| node-1, client → ClusterIP              | all M | all M | local M | all M | all M | all M |
| pod, pod-3 → NodePort, LB, external     | all M | all   | all M   | all M | all   | all M |
| here → NodePort, LB, external           | all M | all   | all M   | all M | all M | all M |
" + OUTSIDE
}

#[test]
fn pods_of_the_cluster_are_known_by_cluster_cidr() {
    check(&["--cluster-cidr", CLUSTER_CIDR], &of_the_cluster());
}

#[test]
fn sctp_goes_by_rules_beside_programs() {
    let args = ["--cluster-cidr", CLUSTER_CIDR];
    let mut scene = Scene::across(&args, services(), &of_the_cluster());
    scene.sctp_beside = true;
    check_scene(scene, |_| {});
}

#[test]
fn pods_of_the_node_are_known_by_its_pod_cidrs() {
    check(&["--detect-local-mode", "NodeCIDR"], &of_this_node());
}

#[test]
fn pods_of_the_node_are_known_by_their_interfaces() {
    let prefix = [
        "--detect-local-mode",
        "InterfaceNamePrefix",
        "--pod-interface-name-prefix",
        "pod-",
    ];
    check(&prefix, &of_this_node());
}

#[test]
fn pods_of_the_node_are_known_by_one_interface() {
    // That of `pod`; the others' are strangers.
    let table = HEAD.to_owned()
        + "
| pod → ClusterIP                             | all   | all   | local   | all   | all   | all   |
| here, node-1, client, pod-3 → ClusterIP     | all M | all M | local M | all M | all M | all M |
| pod → NodePort, LB, external                | all M | all   | all M   | all M | all   | all M |
| here → NodePort, LB, external               | all M | local | all M   | all M | all M | all M |
| pod-3 → NodePort, LB, external              | all M | local | all M   | all M | local | all M |
" + OUTSIDE;
    check(
        &[
            "--detect-local-mode",
            "BridgeInterface",
            "--pod-bridge-interface",
            "pod-0",
        ],
        &table,
    );
}

#[test]
fn pods_of_the_node_are_known_by_the_bridge_that_they_are_on() {
    check_with(
        &[
            "--detect-local-mode",
            "BridgeInterface",
            "--pod-bridge-interface",
            BRIDGE,
        ],
        &of_this_node(),
        Cast::bridge_pods,
    );
}

#[test]
fn without_a_detector_only_the_hairpin_of_a_cluster_ip_is_masqueraded() {
    let table = HEAD.to_owned()
        + "
| pod, node-1, client, pod-3 → ClusterIP  | all   | all   | local   | all   | all   | all   |
| here → ClusterIP                        | all   | all   | local   | all M | all M | all M |
| pod, pod-3 → NodePort, LB, external     | all M | local | all M   | all M | local | all M |
| here → NodePort, LB, external           | all M | local | all M   | all M | all M | all M |
" + OUTSIDE;
    check(&[], &table);
}

/// With `masqueradeAll` every row to the ClusterIP is masqueraded; the others are as they were.
fn with_masquerade_all(args: &[&str], pods: &str, pod_3: &str) {
    let table = format!(
        "{HEAD}
| pod, here, node-1, client, pod-3 → ClusterIP | all M | all M | local M | all M | all M | all M |
| pod → NodePort, LB, external    | all M | {pods}  | all M   | all M | {pods}  | all M |
| pod-3 → NodePort, LB, external  | all M | {pod_3} | all M   | all M | {pod_3} | all M |
{OUTSIDE}"
    );
    check(&[args, &["--masquerade-all"]].concat(), &table);
}

#[test]
fn masquerade_all_with_cluster_cidr() {
    with_masquerade_all(&["--cluster-cidr", CLUSTER_CIDR], "all", "all");
}

#[test]
fn masquerade_all_with_node_cidr() {
    with_masquerade_all(&["--detect-local-mode", "NodeCIDR"], "all", "local");
}

#[test]
fn masquerade_all_with_interfaces() {
    let prefix = [
        "--detect-local-mode",
        "InterfaceNamePrefix",
        "--pod-interface-name-prefix",
        "pod-",
    ];
    with_masquerade_all(&prefix, "all", "local");
    let bridge = [
        "--detect-local-mode",
        "BridgeInterface",
        "--pod-bridge-interface",
        "pod-0",
    ];
    with_masquerade_all(&bridge, "all", "local");
}

#[test]
fn masquerade_all_without_a_detector() {
    with_masquerade_all(&[], "local", "local");
}
