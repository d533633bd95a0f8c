//! Who is refused, who is dropped, and what no rule touches.

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::service::{PORT, Svc, port};
use proxyd_tests::traffic::Protocol;
use serde_json::json;

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];

#[test]
fn nobody_answers_for_a_service_without_endpoints() {
    let external = json!({ "externalTrafficPolicy": "Local" });
    let internal = json!({ "internalTrafficPolicy": "Local" });
    let services = vec![
        Svc::new("none", json!({}), ""),
        Svc::new("none-external", external, ""),
        Svc::new("none-internal", internal, ""),
        Svc::new("unready", json!({}), "here(unready) there(gone)"),
        Svc::new("affine", json!({ "sessionAffinity": "ClientIP" }), ""),
    ];
    let table = "
| from → to                                                      | none    | none-external | none-internal | unready | affine  |
| -------------------------------------------------------------- | ------- | ------------- | ------------- | ------- | ------- |
| pod, node-1, client, pod-3 → ClusterIP, NodePort, LB, external | refused | refused       | refused       | refused | refused |
";
    Scene::across(ARGS, services, table).check();
}

#[test]
fn a_policy_local_drops_where_this_node_has_no_endpoint() {
    let services = vec![
        Svc::new(
            "external",
            json!({ "externalTrafficPolicy": "Local" }),
            "there",
        ),
        Svc::new(
            "internal",
            json!({ "internalTrafficPolicy": "Local" }),
            "there",
        ),
        Svc::new(
            "both",
            json!({ "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local" }),
            "there here(unready)",
        ),
        Svc::new(
            "affine",
            json!({ "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP" }),
            "there",
        ),
    ];
    let table = "
| from → to                              | external | internal | both    | affine       |
| -------------------------------------- | -------- | -------- | ------- | ------------ |
| pod → ClusterIP                        | all      | dropped  | dropped | one of all   |
| node-1, client → ClusterIP             | all M    | dropped  | dropped | one of all M |
| pod → NodePort, LB, external           | all      | all M    | there   | one of all   |
| node-1 → NodePort, LB, external        | all M    | all M    | there M | one of all M |
| client → NodePort, LB, external        | dropped  | all M    | dropped | dropped      |
";
    Scene::across(ARGS, services, table).check();
}

#[test]
fn a_port_that_a_service_has_not_is_refused_at_its_addresses() {
    let services = vec![
        Svc::new("web", json!({}), "here there"),
        Svc::new("none", json!({}), ""),
    ];
    let table = "
| from → to                                      | web      | none     |
| ---------------------------------------------- | -------- | -------- |
| pod, node-1, client, pod-3 → ClusterIP:81      | refused  | refused  |
| pod, client, pod-3, node-2 → LB:81, external:81 | refused  | refused  |
";
    Scene::across(ARGS, services, table).check();
}

#[test]
fn other_ports_of_outer_addresses_are_left_to_the_network_if_that_is_wanted() {
    let services = vec![
        Svc::new("web", json!({}), "here there"),
        Svc::new("none", json!({}), ""),
    ];
    let table = "
| from → to                                              | web      | none     |
| ------------------------------------------------------ | -------- | -------- |
| pod, node-1, client, pod-3 → ClusterIP:81              | refused  | refused  |
| pod, node-1, client, pod-3, node-2 → LB:81, external:81 | unserved | unserved |
";
    let args = [ARGS, &["--reject-unused-service-ports=false"]].concat();
    Scene::across(&args, services, table).check();
}

#[test]
fn a_service_that_is_not_served_here_keeps_its_addresses_out_of_this() {
    // Nobody has an address whose Service is left to another proxy.
    let mut others = Svc::new("others", json!({}), "here there");
    others.metadata = json!({ "labels": { "service.kubernetes.io/service-proxy-name": "other" } });
    let table = "
| from → to                          | others   |
| ---------------------------------- | -------- |
| pod, client → LB:81, external:81   | unserved |
";
    Scene::across(ARGS, vec![others], table).check();
}

#[test]
fn an_address_of_a_service_cidr_that_no_service_has_is_dropped() {
    let services = vec![Svc::new("web", json!({}), "here there")];
    let table = "
| from → to                                                                   | web      |
| --------------------------------------------------------------------------- | -------- |
| pod, node-1, client, pod-3 → ClusterIP                                      | -        |
| pod, node-1, client, pod-3 → address@10.96.200.1 or fd00:10:96::c801        | dropped  |
| pod, node-1 → address@10.97.0.1 or fd00:10:97::1                            | unserved |
| pod → ClusterIP                                                             | all      |
";
    let cidr = |name: &str, cidrs: &[&str]| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": name },
            "spec": { "cidrs": cidrs },
        })
    };
    let mut scene = Scene::across(ARGS, services.clone(), table);
    // The second lies within the first, the third is its neighbour.
    scene.others = vec![
        cidr("kubernetes", &["10.96.0.0/17", "fd00:10:96::/112"]),
        cidr("more", &["10.96.64.0/18"]),
        cidr("next", &["10.96.128.0/17"]),
    ];
    scene.check();

    let unknown = "
| from → to                                                            | web      |
| pod, node-1, client → address@10.96.200.1 or fd00:10:96::c801        | unserved |
";
    Scene::across(ARGS, services, unknown).check();
}

#[test]
fn services_of_others_and_those_left_to_dns_have_no_rules() {
    let labelled = |name: &str, label: &str| {
        let mut service = Svc::new(name, json!({}), "here there");
        service.metadata = json!({ "labels": { label: "other" } });
        service
    };
    let mut proxy_mode = Svc::new("lb-proxy", json!({}), "here there");
    let ingress = json!([{ "ip": "203.0.113.104", "ipMode": "Proxy" }, { "ip": "2001:db8:113::68", "ipMode": "Proxy" }]);
    proxy_mode.status = Some(json!({ "loadBalancer": { "ingress": ingress } }));
    let services = vec![
        labelled("others", "service.kubernetes.io/service-proxy-name"),
        Svc::new(
            "headless",
            json!({ "clusterIP": "None", "clusterIPs": ["None"] }),
            "here there",
        ),
        Svc::new(
            "name",
            json!({ "type": "ExternalName", "externalName": "example.com" }),
            "here",
        ),
        proxy_mode,
        Svc::new(
            "pending",
            json!({ "clusterIP": "", "clusterIPs": [] }),
            "here there",
        ),
    ];
    let table = "
| from → to                   | others   | headless | name     | lb-proxy | pending  |
| --------------------------- | -------- | -------- | -------- | -------- | -------- |
| pod, client → ClusterIP     | unserved | unserved | unserved | -        | unserved |
| pod → ClusterIP             | -        | -        | -        | all      | -        |
| pod, client → LB            | unserved | unserved | unserved | unserved | unserved |
| pod, client → NodePort      | unserved | unserved | unserved | all M    | unserved |
| pod, client → external      | unserved | unserved | unserved | all M    | unserved |
";
    Scene::across(ARGS, services, table).check();
}

#[test]
fn the_oldest_service_has_an_address_and_a_cluster_ip_is_never_taken_over() {
    // Numbers are ages: the first is the oldest. Its external address is the second's ClusterIP.
    let services = vec![
        Svc::new(
            "oldest",
            json!({ "externalIPs": ["10.96.0.2", "fd00:10:96::2", "198.51.100.99", "2001:db8:51::99"] }),
            "here",
        ),
        Svc::new("victim", json!({}), "there"),
        Svc::new(
            "younger",
            json!({
                "externalIPs": ["198.51.100.99", "2001:db8:51::99"],
                "ports": [port(Protocol::Tcp, PORT, 30_001), port(Protocol::Udp, PORT, 30_003), port(Protocol::Sctp, PORT, 30_001)],
            }),
            "there2",
        ),
    ];
    let table = "
| from → to                                              | oldest | victim | younger |
| ------------------------------------------------------ | ------ | ------ | ------- |
| pod → ClusterIP                                        | here   | there  | there2  |
| client → address@198.51.100.99 or 2001:db8:51::99      | here M | -      | -       |
| client → NodePort                                      | here M | there M | -      |
";
    Scene::across(ARGS, services, table).check();
}
