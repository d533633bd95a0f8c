//! At which port endpoints take connections: each protocol and each slice may have its own.

use proxyd_tests::cluster::CLUSTER_CIDR;
use proxyd_tests::flows::Scene;
use proxyd_tests::flows::service::Svc;
use serde_json::json;

const ARGS: &[&str] = &["--cluster-cidr", CLUSTER_CIDR];

#[test]
fn protocols_and_slices_have_ports_of_their_own() {
    let local = json!({ "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" });
    let services = vec![
        // A port of the Service for each protocol, all three the same, with different targets.
        Svc::new("protocols", json!({}), "UDP:9090 SCTP:9091 here there"),
        // Named ports after a rolling update to another number: the slices differ.
        Svc::new(
            "slices",
            json!({}),
            "here|TCP:9090 UDP:9090 SCTP:9090 there",
        ),
        Svc::new(
            "slices-local",
            local,
            "here|TCP:9090 UDP:9090 SCTP:9090 here2 there",
        ),
        // One endpoint is in both: two targets.
        Svc::new(
            "both",
            json!({}),
            "here|TCP:9090 UDP:9090 SCTP:9090 here there(unready)",
        ),
        Svc::new("one-protocol", json!({}), "here|UDP:9090 there"),
    ];
    let table = "
| from → to                                 | protocols             | slices             | slices-local           | both             | one-protocol       |
| ----------------------------------------- | --------------------- | ------------------ | ---------------------- | ---------------- | ------------------ |
| pod → ClusterIP/TCP                       | here there            | here there:9090    | here here2:9090        | here here:9090   | here there         |
| pod → ClusterIP/UDP                       | here:9090 there:9090  | here there:9090    | here here2:9090        | here here:9090   | here there:9090    |
| pod → ClusterIP/SCTP                      | here:9091 there:9091  | here there:9090    | here here2:9090        | here here:9090   | here there         |
| here → ClusterIP/UDP                      | here:9090 there:9090  | here there:9090    | here here2:9090        | here here:9090   | here there:9090    |
| client → NodePort/TCP, LB/TCP             | here there M          | here there:9090 M  | here here2:9090        | here here:9090 M | here there M       |
| client → NodePort/UDP, LB/UDP             | here:9090 there:9090 M | here there:9090 M | here here2:9090        | here here:9090 M | here there:9090 M  |
| client → NodePort/SCTP, LB/SCTP           | here:9091 there:9091 M | here there:9090 M | here here2:9090        | here here:9090 M | here there M       |
| pod → LB/TCP                              | here there M          | here there:9090 M  | here here2:9090 there:9090 | here here:9090 M | here there M   |
| pod → LB/UDP                              | here:9090 there:9090 M | here there:9090 M | here here2:9090 there:9090 | here here:9090 M | here there:9090 M |
";
    Scene::across(ARGS, services, table).check_with(|cast| {
        for name in ["here", "here2", "there"] {
            cast.serve_also(name, 9090);
            cast.serve_also(name, 9091);
        }
    });
}

#[test]
fn a_protocol_that_a_service_has_not_is_no_ones() {
    let udp = |spec| Svc::new("udp-only", spec, "here there");
    let services = vec![udp(
        json!({ "ports": [{ "name": "udp", "protocol": "UDP", "port": 80, "nodePort": 30001 }] }),
    )];
    let table = "
| from → to                                      | udp-only  |
| ---------------------------------------------- | --------- |
| pod → ClusterIP/UDP                            | all       |
| client → NodePort/UDP, LB/UDP                  | all M     |
| pod, client → ClusterIP/TCP, ClusterIP/SCTP    | refused   |
| client → LB/TCP, LB/SCTP                       | refused   |
| client → NodePort/TCP                          | unserved  |
";
    Scene::across(ARGS, services, table).check();
}
