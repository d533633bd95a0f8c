//! Names and addresses that are unusual and that an API server knows: they are served, or refused as it would.

use super::*;
use crate::model::ObjectName;

/// The addresses that are served of a slice, and what is said of the others.
fn served(address_type: &str, addresses: &[&str]) -> (Vec<String>, String) {
    let endpoints = addresses
        .iter()
        .map(|address| json!({ "addresses": [address] }));
    let endpoints = Value::Array(endpoints.collect());
    let parsed = slice(&a_slice(address_type, json!([]), endpoints), "node-1");
    let endpoints = parsed
        .object
        .iter()
        .flat_map(|slice| slice.endpoints.iter());
    let served = endpoints.map(|endpoint| endpoint.address.to_string());
    (served.collect(), complaints(&parsed))
}

/// Kubernetes 1.34 (`RelaxedServiceNameValidation`).
#[test]
fn names_may_begin_with_a_digit() {
    for name in ["1web", "0", "2048-game", "3.14"] {
        let mut object = a_service(
            json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "name": "1http" }] }),
        );
        object.metadata.name = Some(name.to_owned());
        let parsed = service(&object);
        assert_eq!(complaints(&parsed), "");
        let web = parsed.object.unwrap();
        assert_eq!(web.name, ObjectName::new("default", name));
        assert_eq!(web.frontends().count(), 1);
        let mut object = a_slice(
            "IPv4",
            json!([{ "port": 8080, "name": "1http" }]),
            json!([{ "addresses": ["10.1.0.1"] }]),
        );
        let labels = object.metadata.labels.as_mut().unwrap();
        labels.insert(SERVICE_NAME_LABEL.to_owned(), name.to_owned());
        let parsed = slice(&object, "node-1");
        assert_eq!(complaints(&parsed), "");
        assert_eq!(parsed.object.unwrap().service, web.name);
    }
}

/// Go read such numbers as decimal once, and Kubernetes goes on (`ParseIPSloppy`).
#[test]
fn zeros_before_a_number_mean_nothing() {
    let (addresses, said) = served(
        "IPv4",
        &["010.244.001.001", "10.0244.1.2", "10.1.1.08", "10.1.1.0256"],
    );
    assert_eq!(addresses, ["10.244.1.1", "10.244.1.2", "10.1.1.8"]);
    assert_eq!(
        said,
        "endpoints[3].addresses[0]: \"10.1.1.0256\" is not an IP address; the endpoint is skipped\n"
    );
    let parsed = service(&a_service(json!({
        "clusterIP": "010.096.000.001", "externalIPs": ["192.000.002.001"], "ports": [{ "port": 80 }],
    })));
    assert_eq!(complaints(&parsed), "");
    let web = parsed.object.unwrap();
    assert_eq!(web.cluster_ips[0].to_string(), "10.96.0.1");
    assert_eq!(web.external_ips[0].to_string(), "192.0.2.1");
}

/// They are of IPv4, to an API server and to kube-proxy: good in a slice of IPv4, and never in one of IPv6.
#[test]
fn addresses_that_are_mapped_to_ipv6_are_of_ipv4() {
    let (addresses, said) = served(
        "IPv4",
        &["::ffff:10.1.0.1", "::FFFF:0a01:2", "::ffff:010.1.0.3"],
    );
    assert_eq!(
        (addresses, said.as_str()),
        (
            ["10.1.0.1", "10.1.0.2", "10.1.0.3"]
                .map(str::to_owned)
                .to_vec(),
            ""
        )
    );
    let (addresses, said) = served(
        "IPv6",
        &["::ffff:10.0.0.1", "fd00::1", "10.0.0.2", "::ffff:a00:3"],
    );
    assert_eq!(addresses, ["fd00::1"]);
    expect![[r#"
        endpoints[0].addresses[0]: ::ffff:10.0.0.1 is an IPv4 address mapped to IPv6, which is not an IPv6 address as addressType says; the endpoint is skipped
        endpoints[2].addresses[0]: 10.0.0.2 is not an IPv6 address as addressType says; the endpoint is skipped
        endpoints[3].addresses[0]: ::ffff:10.0.0.3 is an IPv4 address mapped to IPv6, which is not an IPv6 address as addressType says; the endpoint is skipped
    "#]]
    .assert_eq(&said);
    let (addresses, said) = served("IPv6", &["::ffff:127.0.0.1"]);
    assert_eq!(addresses, [""; 0]);
    assert!(
        said.contains("::ffff:127.0.0.1 is an unspecified, loopback"),
        "{said}"
    );
    // A Service's address is of IPv4 too, and told as it is written where it cannot be served.
    let parsed = service(&a_service(json!({
        "clusterIP": "fd00:96::1", "externalIPs": ["::ffff:192.0.2.1"], "ports": [{ "port": 80 }],
    })));
    assert_eq!(
        *parsed.object.as_ref().unwrap().external_ips,
        [] as [IpAddr; 0]
    );
    expect![[r#"
        spec.externalIPs[0]: the Service has no ClusterIP of the family of ::ffff:192.0.2.1, an IPv4 address mapped to IPv6; it is skipped
    "#]]
    .assert_eq(&complaints(&parsed));
}
