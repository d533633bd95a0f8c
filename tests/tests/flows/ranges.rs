//! `loadBalancerSourceRanges`: who may call a load-balancer address.

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::cast::Cast;
use proxyd_tests::flows::service::{Svc, addresses};
use serde_json::json;

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];

fn ranged(name: &str, ranges: &[&str]) -> Svc {
    Svc::new(
        name,
        json!({ "loadBalancerSourceRanges": ranges }),
        "here there",
    )
}

#[test]
fn only_sources_in_a_range_may_call_the_load_balancer_address() {
    let local = json!({ "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:113::/64"] });
    let services = vec![
        ranged("clients", &["203.0.113.0/24", "2001:db8:113::/64"]),
        ranged("pods", &["10.244.0.0/16", "fd00:10:244::/56"]),
        ranged("nodes", &["192.168.0.0/24", "fd00:168::/64"]),
        ranged("everybody", &["0.0.0.0/0", "::/0"]),
        ranged("unset", &[]),
        ranged(
            "overlapping",
            &[
                "203.0.0.0/8",
                "203.0.113.0/24",
                "2001::/16",
                "2001:db8::/32",
            ],
        ),
        ranged("odd", &[" 203.0.113.000/24 ", "2001:DB8:113::1/64"]),
        Svc::new("local", local, "here there"),
    ];
    let table = "
| from → to                       | clients | pods    | nodes   | everybody | unset | overlapping | odd     | local   |
| ------------------------------- | ------- | ------- | ------- | --------- | ----- | ----------- | ------- | ------- |
| client → LB                     | all M   | dropped | dropped | all M     | all M | all M       | all M   | local   |
| pod → LB                        | dropped | all M   | dropped | all M     | all M | dropped     | dropped | dropped |
| pod-3 → LB                      | dropped | all M   | dropped | all M     | all M | dropped     | dropped | dropped |
| node-1 → LB                     | dropped | dropped | all M   | all M     | all M | dropped     | dropped | dropped |
| client → NodePort, external     | all M   | all M   | all M   | all M     | all M | all M       | all M   | local   |
| pod, pod-3 → NodePort, external | all M   | all M   | all M   | all M     | all M | all M       | all M   | -       |
| node-1 → NodePort, external     | all M   | all M   | all M   | all M     | all M | all M       | all M   | all M   |
| client → ClusterIP              | all M   | all M   | all M   | all M     | all M | all M       | all M   | all M   |
";
    Scene::across(ARGS, services, table).check();
}

#[test]
fn ranges_of_one_family_leave_the_other_closed() {
    let services = || {
        vec![
            ranged("v4", &["203.0.113.0/24"]),
            ranged("v6", &["2001:db8:113::/64"]),
            ranged("all-v4", &["0.0.0.0/0"]),
            ranged("broken", &["nowhere"]),
        ]
    };
    let check = |family, table: &str| {
        let mut scene = Scene::across(ARGS, services(), table);
        scene.family = Some(family);
        scene.check();
    };
    check(
        0,
        "
| from → to   | v4      | v6      | all-v4 | broken  |
| client → LB | all M   | dropped | all M  | dropped |
| pod → LB    | dropped | dropped | all M  | dropped |
",
    );
    check(
        1,
        "
| from → to   | v4      | v6      | all-v4  | broken  |
| client → LB | dropped | all M   | dropped | dropped |
| pod → LB    | dropped | dropped | dropped | dropped |
",
    );
}

#[test]
fn a_node_in_a_range_may_use_the_address_itself_as_its_source() {
    let services = vec![
        ranged("nodes", &["192.168.0.0/24", "fd00:168::/64"]),
        ranged("clients", &["203.0.113.2/32", "2001:db8:113::2/128"]),
    ];
    let table = "
| from → to         | nodes   | clients |
| node-1 → LB       | all M   | dropped |
| node-1 as LB → LB | all M   | dropped |
| client → LB       | dropped | all M   |
";
    // With the address on an interface, the kernel takes it as the source of what goes there, if nobody says otherwise.
    Scene::across(ARGS, services, table).check_with(|cast: &mut Cast| {
        for (number, family) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            cast.add_node_address(addresses(number, family).load_balancer);
        }
    });
}
