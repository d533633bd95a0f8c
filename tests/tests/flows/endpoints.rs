//! Which endpoints take connections: readiness, termination, topology, several slices and ports.

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::service::Svc;
use serde_json::{Value, json};

use crate::truth::node;

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];

/// This node, in zone `a` or in none.
fn zoned(zone: Option<&str>) -> Value {
    let mut node = node();
    if let Some(zone) = zone {
        node["metadata"]["labels"] = json!({ "topology.kubernetes.io/zone": zone });
    }
    node
}

#[track_caller]
fn check(spec: &Value, zone: Option<&str>, table: &str) {
    let mut scene = Scene::down(ARGS, spec, table);
    scene.others.push(zoned(zone));
    scene.check();
}

#[test]
fn endpoints_that_terminate_serve_while_none_is_ready() {
    check(&json!({}), None, "
| endpoints                                      | pod → ClusterIP | client → NodePort, LB, external |
| ---------------------------------------------- | --------------- | ------------------------------- |
| here there                                     | here there      | here there M                    |
| here there(terminating)                        | here            | here M                          |
| here(terminating) there                        | there           | there M                         |
| here(terminating) there(terminating)           | here there      | here there M                    |
| here(terminating) there(gone)                  | here            | here M                          |
| here(terminating) there(unready)               | here            | here M                          |
| here(gone) there(terminating)                  | there           | there M                         |
| here(gone) there(gone)                         | refused         | refused                         |
| here(unready) there(unready)                   | refused         | refused                         |
| here here2(terminating) there(gone)            | here            | here M                          |
");
}

#[test]
fn with_external_policy_local_the_local_ones_are_chosen_among_themselves() {
    check(&json!({ "externalTrafficPolicy": "Local" }), None, "
| endpoints                                | pod → ClusterIP | pod → LB   | node-1 → LB  | client → NodePort, LB, external |
| ---------------------------------------- | --------------- | ---------- | ------------ | ------------------------------- |
| here there                               | here there      | here there | here there M | here                            |
| here(terminating) there                  | there           | there      | there M      | here                            |
| here(terminating) there(terminating)     | here there      | here there | here there M | here                            |
| here here2(terminating) there            | here there      | here there | here there M | here                            |
| here(terminating) here2(unready) there   | there           | there      | there M      | here                            |
| here(gone) there                         | there           | there      | there M      | dropped                         |
| here(unready) there(terminating)         | there           | there      | there M      | dropped                         |
| here(gone) there(gone)                   | refused         | refused    | refused      | refused                         |
| here(terminating) there(gone)            | here            | here       | here M       | here                            |
");
}

#[test]
fn with_internal_policy_local_the_local_ones_are_chosen_among_themselves() {
    check(
        &json!({ "internalTrafficPolicy": "Local" }),
        None,
        "
| endpoints                                | pod → ClusterIP | node-1 → ClusterIP | client → LB  |
| ---------------------------------------- | --------------- | ------------------ | ------------ |
| here there                               | here            | here M             | here there M |
| here(terminating) there                  | here            | here M             | there M      |
| here here2(terminating) there            | here            | here M             | here there M |
| here(gone) there                         | dropped         | dropped            | there M      |
| here(terminating) there(terminating)     | here            | here M             | here there M |
| here(unready) there(terminating)         | dropped         | dropped            | there M      |
| here(gone) there(unready)                | refused         | refused            | refused      |
",
    );
}

#[test]
fn endpoints_that_are_published_though_not_ready_are_as_good_as_ready() {
    // What slices say of a Service with publishNotReadyAddresses.
    let table = "
| endpoints                                   | pod → ClusterIP | client → NodePort, LB, external |
| ------------------------------------------- | --------------- | ------------------------------- |
| here(published) there                       | here there      | here there M                    |
| here(published) there(published)            | here there      | here there M                    |
| here(published) there(unready)              | here            | here M                          |
| here(published-terminating) there           | here there      | here there M                    |
| here(published-gone) there                  | here there      | here there M                    |
| here(published-gone) there(terminating)     | here            | here M                          |
| here(terminating) there(published)          | there           | there M                         |
| here(published-gone) there(published-gone)  | here there      | here there M                    |
";
    check(&json!({ "publishNotReadyAddresses": true }), None, table);
    let local = json!({
        "publishNotReadyAddresses": true, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
    });
    let table = "
| endpoints                                   | pod → ClusterIP | pod → LB   | client → NodePort, LB, external |
| ------------------------------------------- | --------------- | ---------- | ------------------------------- |
| here(published) there                       | here            | here there | here                            |
| here(published-terminating) there           | here            | here there | here                            |
| here(published-gone) there                  | here            | here there | here                            |
| here(published-gone) here2                  | here here2      | here here2 | here here2                      |
| here(published-gone) here2(terminating)     | here            | here       | here                            |
| here(terminating) there(published)          | here            | there      | here                            |
| here(unready) there(published)              | dropped         | there      | dropped                         |
| here(published-gone)|there(published)       | here            | here there | here                            |
";
    check(&local, None, table);
}

/// Hints count only if every ready endpoint has them and one is for this node, or else for its zone.
const HINTS: &str = "
| endpoints                                                                  | pod → ClusterIP | client → LB    |
| -------------------------------------------------------------------------- | --------------- | -------------- |
| here there                                                                 | here there      | here there M   |
| here(zone=a) there(zone=a)                                                 | here there      | here there M   |
| here(zone=a) there(zone=b)                                                 | here            | here M         |
| here(zone=b) there(zone=a)                                                 | there           | there M        |
| here(zone=b) there(zone=b)                                                 | here there      | here there M   |
| here(zone=a) there                                                         | here there      | here there M   |
| here there(zone=a)                                                         | here there      | here there M   |
| here(zone=a,zone=b) there(zone=b)                                          | here            | here M         |
| here(zone=b) there(zone=c,zone=a)                                          | there           | there M        |
| here(zone=a) there(zone=b) there2(zone=a)                                  | here there2     | here there2 M  |
| here(zone=b,unready) there(zone=a)                                         | there           | there M        |
| here(unready) there(zone=b) there2(zone=a)                                 | there2          | there2 M       |
| here(zone=a,unready) there(zone=b)                                         | there           | there M        |
| here(zone=a,terminating) there(zone=b)                                     | there           | there M        |
| here(zone=a,terminating) there(zone=b,terminating)                         | here there      | here there M   |
| here(zone=a,gone) there(zone=b,terminating)                                | there           | there M        |
| here(node=node-1) there(node=node-2)                                       | here            | here M         |
| here(node=node-2) there(node=node-1)                                       | there           | there M        |
| here(node=node-2) there(node=node-2)                                       | here there      | here there M   |
| here(node=node-1) there                                                    | here there      | here there M   |
| here(node=node-1,unready) there(node=node-2)                               | there           | there M        |
| here(node=node-1,terminating) there(node=node-2)                           | there           | there M        |
| here(node=node-1,zone=a) there(node=node-2,zone=a)                         | here            | here M         |
| here(node=node-1,zone=b) there(node=node-2,zone=a)                         | here            | here M         |
| here(node=node-2,zone=a) there(node=node-2,zone=b)                         | here            | here M         |
| here(node=node-2,zone=b) there(node=node-2,zone=a)                         | there           | there M        |
| here(node=node-1,zone=a) there(zone=a)                                     | here there      | here there M   |
| here(node=node-1,zone=a) there(zone=b)                                     | here            | here M         |
| here(node=node-1,zone=a) there(node=node-2)                                | here            | here M         |
| here(node=node-1,node=node-2) there(node=node-2)                           | here            | here M         |
| here(zone=b,node=node-2,unready) there(zone=a,node=node-2)                 | there           | there M        |
| here here2(zone=a) there(zone=b)                                           | here here2 there | here here2 there M |
";

#[test]
fn hints_of_zones_and_nodes_choose_among_the_ready() {
    check(
        &json!({ "trafficDistribution": "PreferSameNode" }),
        Some("a"),
        HINTS,
    );
}

#[test]
fn a_node_without_a_zone_has_only_the_hints_of_nodes() {
    check(
        &json!({}),
        None,
        "
| endpoints                                           | pod → ClusterIP | client → LB  |
| --------------------------------------------------- | --------------- | ------------ |
| here(zone=a) there(zone=b)                          | here there      | here there M |
| here(node=node-1,zone=a) there(node=node-2,zone=b)  | here            | here M       |
",
    );
}

#[test]
fn hints_do_not_count_for_policies_local() {
    let spec = json!({ "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" });
    check(
        &spec,
        Some("a"),
        "
| endpoints                                       | pod → ClusterIP | pod → LB | client → LB |
| ----------------------------------------------- | --------------- | -------- | ----------- |
| here(zone=b) there(zone=a)                      | here            | there    | here        |
| here(node=node-2) there(node=node-1)            | here            | there    | here        |
| here(zone=b) here2(zone=a) there(zone=a)        | here here2      | here2 there | here here2 |
",
    );
}

#[test]
fn slices_of_a_service_add_up_and_a_doubled_endpoint_counts_once() {
    check(
        &json!({}),
        None,
        "
| endpoints                                        | pod → ClusterIP | client → LB    |
| ------------------------------------------------ | --------------- | -------------- |
| here|there                                       | here there      | here there M   |
| here there|there there2|here                     | here there there2 | here there there2 M |
| |here                                            | here            | here M         |
",
    );
}

#[test]
fn of_an_address_in_two_slices_the_better_entry_counts_whatever_the_slices_are_named() {
    // As while a pod at its node's own address is replaced, and while a controller moves an endpoint between slices.
    let table = "
| endpoints                                              | pod → ClusterIP | client → NodePort, LB, external |
| ------------------------------------------------------ | --------------- | ------------------------------- |
| here(terminating)|here                                 | here            | here M                          |
| here|here(terminating)                                 | here            | here M                          |
| here|here(unready)                                     | here            | here M                          |
| here(unready)|here                                     | here            | here M                          |
| here(gone)|here there(unready)                         | here            | here M                          |
| here(terminating)|here(unready)                        | here            | here M                          |
| here(unready)|here(terminating)                        | here            | here M                          |
| here(gone)|here(terminating)                           | here            | here M                          |
| here(terminating) here(unready)                        | here            | here M                          |
| here(unready)|here(terminating) there(terminating)     | here there      | here there M                    |
| here(terminating)|here(unready) there                  | there           | there M                         |
| here(unready)|here(gone)                               | refused         | refused                         |
| here(published-gone)|here(terminating) there(terminating) | here         | here M                          |
| here(zone=b)|here(zone=a,unready) there(zone=a)        | there           | there M                         |
| here(zone=a,unready)|here(zone=b) there(zone=a)        | there           | there M                         |
| here(zone=a)|here(unready) there(zone=b)               | here            | here M                          |
";
    check(&json!({}), Some("a"), table);
    let local = json!({ "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" });
    let table = "
| endpoints                                              | pod → ClusterIP | pod → LB | client → NodePort, LB, external |
| ------------------------------------------------------ | --------------- | -------- | ------------------------------- |
| here(unready)|here there                               | here            | here there | here                          |
| here|here(terminating) there                           | here            | here there | here                          |
| here(terminating)|here(unready) there                  | here            | there    | here                            |
| here(unready)|here(terminating) there                  | here            | there    | here                            |
| here(gone)|here(unready) there                         | dropped         | there    | dropped                         |
";
    check(&local, Some("a"), table);
}

#[test]
fn an_endpoint_may_be_the_node_itself() {
    // What comes in and stays here is not masqueraded: it passes no hook where it could be.
    let services = vec![
        Svc::new("host", json!({}), "node-1"),
        Svc::new(
            "host-local",
            json!({ "externalTrafficPolicy": "Local" }),
            "node-1 there",
        ),
    ];
    let table = "
| from → to                              | host     | host-local   |
| -------------------------------------- | -------- | ------------ |
| pod, client → ClusterIP                | node-1   | -            |
| pod, client → NodePort, LB, external   | node-1   | -            |
| node-1 → ClusterIP, LB                 | node-1 M | node-1 there M |
| client → LB, external, NodePort        | -        | node-1       |
";
    Scene::across(ARGS, services, table).check();
}

#[test]
fn two_services_may_have_the_same_endpoints_under_different_policies() {
    let services = vec![
        Svc::new("one", json!({}), "here there"),
        Svc::new(
            "other",
            json!({ "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" }),
            "here there",
        ),
    ];
    let table = "
| from → to                       | one   | other |
| ------------------------------- | ----- | ----- |
| pod → ClusterIP                 | all   | local |
| client → LB, NodePort, external | all M | local |
| pod → LB                        | all M | all   |
";
    Scene::across(ARGS, services, table).check();
}
