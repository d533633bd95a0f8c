//! At which of the node's addresses NodePorts are (`--nodeport-addresses`).

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::Svc;
use serde_json::json;

use crate::truth::node;

/// One more address of node-1 in each family.
const SECOND: [&str; 2] = ["10.99.0.1", "fd00:99::1"];

fn check(args: &[&str], with_node_object: bool, table: &str) {
    let services = vec![
        Svc::new("web", json!({}), "here there"),
        Svc::new("none", json!({}), ""),
        Svc::new(
            "local",
            json!({ "externalTrafficPolicy": "Local" }),
            "here there",
        ),
    ];
    let args = [&["--cluster-cidr", CLUSTER_CIDR], args].concat();
    let mut scene = Scene::across(&args, services, table);
    scene.others.extend(with_node_object.then(node));
    scene.check_with(|cast: &mut Cast| {
        for address in SECOND {
            cast.add_node_address(address.parse().expect("an address"));
        }
    });
}

#[test]
fn primary_is_the_address_of_the_node_object() {
    let table = "
| from → to                                         | web      | none     | local    |
| ------------------------------------------------- | -------- | -------- | -------- |
| pod → NodePort                                    | all M    | refused  | all      |
| client → NodePort                                 | all M    | refused  | local    |
| node-1 → NodePort                                 | all M    | refused  | all M    |
| pod, node-1 → NodePort@10.99.0.1 or fd00:99::1    | unserved | unserved | unserved |
| node-1 → NodePort@127.0.0.1 or ::1                | unserved | unserved | unserved |
";
    check(&[], true, table);
    check(&["--nodeport-addresses", "primary"], true, table);
}

#[test]
fn without_a_node_object_they_are_at_every_address() {
    check(&[], false, EVERYWHERE);
}

#[test]
fn networks_of_everything_mean_every_address_but_loopback() {
    check(
        &["--nodeport-addresses", "0.0.0.0/0,::/0"],
        true,
        EVERYWHERE,
    );
}

const EVERYWHERE: &str = "
| from → to                                         | web      | none     | local    |
| ------------------------------------------------- | -------- | -------- | -------- |
| client → NodePort                                 | all M    | refused  | local    |
| pod → NodePort, NodePort@10.99.0.1 or fd00:99::1  | all M    | refused  | all      |
| node-1 → NodePort@10.99.0.1 or fd00:99::1         | all M    | refused  | all M    |
| node-1 → NodePort@127.0.0.1 or ::1                | unserved | unserved | unserved |
";

#[test]
fn networks_choose_among_the_addresses_of_the_machine() {
    let table = "
| from → to                                         | web      | none     | local    |
| ------------------------------------------------- | -------- | -------- | -------- |
| pod, client, node-1 → NodePort                    | unserved | unserved | unserved |
| pod → NodePort@10.99.0.1 or fd00:99::1            | all M    | refused  | all      |
| node-1 → NodePort@127.0.0.1 or ::1                | unserved | unserved | unserved |
";
    check(
        &["--nodeport-addresses", "10.99.0.0/16,fd00:99::/64"],
        true,
        table,
    );
}
