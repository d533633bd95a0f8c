//! Bytes in, API types out. Against the tests' API server, both encodings are compared in `tests/tests/wild.rs`.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

/// A field that has a length.
fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 0x80, "one byte is enough for the length");
    [&[number << 3 | 2, length], value].concat()
}

/// A field that is a small number; those above 15 take two bytes.
fn number(number: u8, value: u8) -> Vec<u8> {
    assert!(number < 16 && value < 0x80, "one byte each is enough");
    vec![number << 3, value]
}

fn service(spec: &[u8]) -> Vec<u8> {
    let metadata = [bytes(1, b"web"), bytes(3, b"default"), bytes(6, b"17")].concat();
    [bytes(1, &metadata), bytes(2, spec)].concat()
}

fn of_json(value: Json) -> Service {
    serde_json::from_value(value).unwrap()
}

#[test]
fn an_object_is_what_its_json_is() {
    let port = [bytes(1, b""), bytes(2, b"TCP"), number(3, 80), number(5, 0)].concat();
    // Empty texts are written by Go, and left out of its JSON; a pointer to one is not.
    let affinity = bytes(14, &bytes(1, &number(1, 60)));
    let policy = [&[0xb2, 0x01][..], &[0]].concat();
    let spec = [
        bytes(1, &port),
        bytes(3, b"10.96.0.1"),
        bytes(4, b""),
        affinity,
        policy,
    ];
    let expected = json!({
        "metadata": { "name": "web", "namespace": "default", "resourceVersion": "17" },
        "spec": {
            "ports": [{ "protocol": "TCP", "port": 80, "nodePort": 0 }], "clusterIP": "10.96.0.1",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } }, "internalTrafficPolicy": "",
        },
    });
    assert_eq!(decode(&service(&spec.concat())), Ok(of_json(expected)));
}

#[test]
fn what_is_not_read_is_stepped_over() {
    let spec = bytes(3, b"10.96.0.1");
    let plain: Service = decode(&service(&spec)).unwrap();
    // One of each type of field, which no Service has.
    let unknown = [
        number(15, 1),
        bytes(15, b"\xff\xff"),
        [&[15 << 3 | 1][..], &[0xff; 8]].concat(),
        [&[15 << 3 | 5][..], &[0xff; 4]].concat(),
    ];
    let extended = [
        unknown.concat(),
        service(&[spec, unknown.concat()].concat()),
    ]
    .concat();
    assert_eq!(decode(&extended), Ok(plain));
}

#[test]
fn a_message_that_comes_in_parts_is_one() {
    let parts = [
        service(&bytes(3, b"10.96.0.1")),
        bytes(2, &bytes(4, b"NodePort")),
    ];
    let whole = service(&[bytes(3, b"10.96.0.1"), bytes(4, b"NodePort")].concat());
    assert_eq!(
        decode::<Service>(&parts.concat()),
        decode::<Service>(&whole)
    );
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let found: Service = decode(&service(&bytes(3, b"10.96.\xff"))).unwrap();
    assert_eq!(found.spec.unwrap().cluster_ip.unwrap(), "10.96.\u{fffd}");
}

#[test]
fn an_error_says_where() {
    let check = |object: Vec<u8>, expected: &str| {
        let error = decode::<Service>(&object).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(metadata(&object).name.as_deref(), Some("web"), "{expected}");
    };
    let good = bytes(1, &number(3, 80));
    let text_for_number = bytes(1, &bytes(3, b"http"));
    check(
        service(&[good, text_for_number].concat()),
        "spec.ports[1].port: is not of the type that the API has here",
    );
    check(service(&[3 << 3 | 2, 9, b'1']), "spec: ends early");
    check(
        [service(b""), vec![3 << 3 | 2, 0x80]].concat(),
        "ends early",
    );
    check([service(b""), vec![3 << 3 | 2, 9]].concat(), "ends early");
    check(
        service(&[&[5 << 3][..], &[0xff; 10]].concat()),
        "spec: has a number without end",
    );
    check(service(&[5 << 3 | 3]), "spec: has a field of no known type");
    check(service(&[0, 0]), "spec: has a field without a number");
    let year_million = bytes(8, &[&[1 << 3][..], &[0xff; 6], &[0x7f]].concat());
    let with_time = [service(b""), bytes(1, &year_million)].concat();
    check(
        with_time,
        "metadata.creationTimestamp: is a time that no calendar has",
    );
}

#[test]
fn a_time_that_is_not_set_is_none() {
    let created = |time: &[u8]| {
        let object = [service(b""), bytes(1, &bytes(8, time))].concat();
        let created = decode::<Service>(&object).unwrap().metadata;
        created.creation_timestamp.map(|time| time.0.as_second())
    };
    assert_eq!(created(b""), None);
    assert_eq!(created(&number(1, 0)), Some(0));
    assert_eq!(created(&[number(1, 60), number(2, 5)].concat()), Some(60));
}

/// Reads bytes as everything that an API server may send.
fn read_as_everything(bytes: &[u8]) {
    let _ = decode::<Service>(bytes);
    let _ = decode::<EndpointSlice>(bytes);
    let _ = decode::<Node>(bytes);
    let _ = decode::<ServiceCIDR>(bytes);
    let _ = (watch_event(bytes), page(bytes), status(bytes));
    let _ = metadata(bytes);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
        read_as_everything(&[b"k8s\0", &*bytes].concat());
    }

    /// Bytes that are nearly right get further.
    #[test]
    fn no_change_of_a_byte_makes_it_panic(at in any::<prop::sample::Index>(), value in any::<u8>(), end in 0..60_usize) {
        let port = [bytes(1, b"http"), bytes(2, b"TCP"), number(3, 80)].concat();
        let mut object = service(&[bytes(1, &port), bytes(3, b"10.96.0.1")].concat());
        let at = at.index(object.len());
        object[at] = value;
        object.truncate(object.len().max(end) - end);
        read_as_everything(&object);
        read_as_everything(&[b"k8s\0".as_slice(), &bytes(2, &object)].concat());
    }
}
