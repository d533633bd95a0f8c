//! Session affinity: every address of a Service that has it has it, under every policy, and no other Service's.

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::service::Svc;
use serde_json::json;

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];

#[test]
fn every_address_of_a_service_has_it_or_none() {
    let services = vec![
        Svc::new("none", json!({ "sessionAffinity": "None" }), "here there"),
        Svc::new(
            "cluster",
            json!({ "sessionAffinity": "ClientIP" }),
            "here here2 there there2",
        ),
        Svc::new(
            "external-local",
            json!({ "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local" }),
            "here here2 there there2",
        ),
        Svc::new(
            "internal-local",
            json!({ "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local" }),
            "here here2 there there2",
        ),
    ];
    let table = "
| from → to                       | none  | cluster      | external-local | internal-local |
| ------------------------------- | ----- | ------------ | -------------- | -------------- |
| pod, here → ClusterIP           | all   | one of all   | one of all     | one of local   |
| node-1, client → ClusterIP      | all M | one of all M | one of all M   | one of local M |
| pod → NodePort, LB, external    | all M | one of all M | one of all     | one of all M   |
| node-1 → NodePort, LB, external | all M | one of all M | one of all M   | one of all M   |
| client → NodePort, LB, external | all M | one of all M | one of local   | one of all M   |
";
    Scene::across(ARGS, services, table).check();
}
