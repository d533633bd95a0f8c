//! Both encodings, byte for byte.

use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::*;

/// A field that has a length.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 0x80, "one byte is enough for the length");
    [&[number << 3 | 2, length], value].concat()
}

/// An object with its type, as it is sent by itself.
fn wrapped(object: &[u8]) -> Vec<u8> {
    [b"k8s\0".as_slice(), &field(1, b""), &field(2, object)].concat()
}

fn event(kind: &str, object: &[u8]) -> Vec<u8> {
    [
        field(1, kind.as_bytes()),
        field(2, &field(1, &wrapped(object))),
    ]
    .concat()
}

/// Services `default/web` in JSON and in protobuf, good or with ports that are none.
fn web(is_good: bool) -> (Value, Vec<u8>) {
    let metadata = json!({ "name": "web", "namespace": "default", "resourceVersion": "7" });
    let fields = [field(1, b"web"), field(3, b"default"), field(6, b"7")];
    let (json_spec, spec) = if is_good {
        let port = [3 << 3, 80];
        (json!({ "ports": [{ "port": 80 }] }), field(1, &port))
    } else {
        let port = field(3, b"http");
        (json!({ "ports": [{ "port": "http" }] }), field(1, &port))
    };
    (
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": json_spec }),
        [field(1, &fields.concat()), field(2, &spec)].concat(),
    )
}

/// What was received, in short.
fn shown(received: Received<Service>) -> String {
    let Received {
        name,
        version,
        object,
    } = received;
    match object {
        Ok(service) => format!(
            "{name} {version} port {}",
            service.spec.unwrap().ports.unwrap()[0].port
        ),
        Err(complaint) => format!("{name} {version} {complaint}"),
    }
}

/// An event in both encodings.
fn check_event(kind: &str, (json, protobuf): (Value, Vec<u8>), expected: &[&str; 2]) {
    let line = json!({ "type": kind, "object": json }).to_string();
    let said = [
        Encoding::Json.event(line.as_bytes()),
        Encoding::Protobuf.event(&event(kind, &protobuf)),
    ];
    let shown = said.map(|said| match said {
        Ok(Said::Added(received)) => format!("added {}", shown(received)),
        Ok(Said::Modified(received)) => format!("modified {}", shown(received)),
        Ok(Said::Deleted { name, version }) => format!("deleted {name} {version}"),
        Ok(Said::Bookmark { version, ends_list }) => format!("bookmark {version} {ends_list}"),
        Ok(Said::Error(status)) => {
            let after = status.details.map(|details| details.retry_after_seconds);
            format!("error {} {:?} {after:?}", status.code, status.message)
        }
        Err(trouble) => trouble.explain("services"),
    });
    assert_eq!(&shown, expected);
}

#[test]
fn an_event_is_the_same_in_both_encodings() {
    let same = |text| [text; 2];
    check_event("ADDED", web(true), &same("added default/web 7 port 80"));
    check_event(
        "MODIFIED",
        web(true),
        &same("modified default/web 7 port 80"),
    );
    check_event("DELETED", web(true), &same("deleted default/web 7"));
    check_event("BOOKMARK", web(true), &same("bookmark 7 false"));
    let annotations = json!({ INITIAL_EVENTS_END: "true" });
    let mut end = web(true);
    end.0["metadata"]["annotations"] = annotations;
    let entry = [field(1, INITIAL_EVENTS_END.as_bytes()), field(2, b"true")].concat();
    end.1.extend(field(1, &field(12, &entry)));
    check_event("BOOKMARK", end, &same("bookmark 7 true"));
    let status =
        json!({ "message": "slow down", "code": 429, "details": { "retryAfterSeconds": 9 } });
    let fields = [
        field(3, b"slow down"),
        field(5, &[5 << 3, 9]),
        vec![6 << 3, 0xad, 0x03],
    ];
    check_event(
        "ERROR",
        (status, fields.concat()),
        &same("error 429 \"slow down\" Some(9)"),
    );
}

#[test]
fn an_object_that_cannot_be_decoded_costs_itself_alone() {
    let broken = |kind| {
        [
            format!(
                "{kind} default/web 7 spec.ports[0].port: invalid type: string \"http\", expected i32; \
                 the object is skipped"
            ),
            format!(
                "{kind} default/web 7 spec.ports[0].port: is not of the type that the API has here; \
                 the object is skipped"
            ),
        ]
    };
    for (kind, said) in [("ADDED", "added"), ("MODIFIED", "modified")] {
        let expected = broken(said);
        check_event(kind, web(false), &[&expected[0], &expected[1]]);
    }
    check_event("DELETED", web(false), &["deleted default/web 7"; 2]);
    let (good, bad) = (web(true), web(false));
    let list = json!({
        "kind": "ServiceList", "apiVersion": "v1", "metadata": { "resourceVersion": "8", "continue": "next" },
        "items": [good.0, bad.0, good.0],
    });
    let metadata = [field(2, b"8"), field(3, b"next")].concat();
    let items = [good.1.clone(), bad.1, good.1].map(|item| field(2, &item));
    let message = [vec![field(1, &metadata)], items.to_vec()]
        .concat()
        .concat();
    let pages = [
        Encoding::Json.page::<Service>(list.to_string().as_bytes()),
        Encoding::Protobuf.page::<Service>(&wrapped(&message)),
    ];
    for (page, bad) in pages.into_iter().zip(broken("")) {
        let page = page.unwrap();
        assert_eq!((&*page.version, page.next.as_deref()), ("8", Some("next")));
        let items: Vec<_> = page.items.into_iter().map(shown).collect();
        let good = "default/web 7 port 80";
        assert_eq!(items, [good, bad.trim_start(), good]);
    }
}

#[test]
fn what_is_no_event_is_an_error() {
    let said = |frame: &[u8]| match Encoding::Protobuf.event::<Service>(frame) {
        Err(Trouble::Unreadable(why)) => why,
        other => panic!("{other:?}"),
    };
    let (_, object) = web(true);
    let whole = event("ADDED", &object);
    assert_eq!(said(&event("NEWS", &object)), "an event of type \"NEWS\"");
    assert_eq!(said(&whole[..whole.len() / 2]), "ends early");
    assert_eq!(said(&field(1, b"ADDED")), "object: is missing");
    assert_eq!(
        said(&field(2, &field(1, &wrapped(&object)))),
        "type: is missing"
    );
    let bare = [field(1, b"ADDED"), field(2, &field(1, &object))].concat();
    assert_eq!(
        said(&bare),
        "object: does not begin as Kubernetes' protobuf does"
    );
}

#[test]
fn frames_end_where_they_say() {
    let frame = |encoding: Encoding, bytes: &[u8], searched| {
        let found = encoding.frame(bytes, searched);
        found.map_err(|trouble| trouble.explain(""))
    };
    let lines = b"one\ntwo\nthr";
    assert_eq!(frame(Encoding::Json, lines, 0), Ok(Some((0..3, 4))));
    assert_eq!(frame(Encoding::Json, &lines[8..], 0), Ok(None));
    assert_eq!(frame(Encoding::Json, b"three\n", 3), Ok(Some((0..5, 6))));
    let messages = b"\0\0\0\x03one\0\0\0\0\0\0\0\x05th";
    assert_eq!(frame(Encoding::Protobuf, messages, 0), Ok(Some((4..7, 7))));
    assert_eq!(
        frame(Encoding::Protobuf, &messages[7..], 0),
        Ok(Some((4..4, 4)))
    );
    assert_eq!(frame(Encoding::Protobuf, &messages[11..], 0), Ok(None));
    assert_eq!(frame(Encoding::Protobuf, &messages[..3], 0), Ok(None));
    let endless = vec![b'x'; MAX_FRAME_BYTES + 1];
    assert_eq!(
        frame(Encoding::Json, &endless, 5),
        Err("what came is not what an API server says: a line without end".to_owned())
    );
    assert_eq!(
        frame(Encoding::Protobuf, b"\x01\0\0\x01", 0),
        Err("what came is not what an API server says: an event of 16777217 bytes".to_owned())
    );
}

#[test]
fn the_answer_says_how_it_is_encoded() {
    let check = |said: &'static str, expected| {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(said))]);
        assert_eq!(Encoding::of(&headers), expected, "{said}");
    };
    check("application/json", Encoding::Json);
    check("text/plain", Encoding::Json);
    check(PROTOBUF, Encoding::Protobuf);
    check(
        "application/vnd.kubernetes.protobuf;stream=watch",
        Encoding::Protobuf,
    );
    assert_eq!(Encoding::of(&HeaderMap::new()), Encoding::Json);
    let refusal = [field(3, b"no"), vec![6 << 3, 0x93, 0x03]].concat();
    let status = Encoding::Protobuf.status(&wrapped(&refusal)).unwrap();
    assert_eq!((&*status.message, status.code), ("no", 403));
    assert_eq!(Encoding::Protobuf.status(b"no"), None);
}
