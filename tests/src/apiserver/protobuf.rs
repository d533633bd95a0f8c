//! Events in the protobuf encoding of Kubernetes, as clients of Go send them.
//!
//! client-go reads JSON whenever a server answers in it, but writes what it was configured for, and kube-proxy is
//! configured for protobuf. All that it writes are Events, so these are read, and as far as tests look at them. Field
//! numbers are those of `generated.proto` in k8s.io/api/events/v1, apimachinery's `runtime` and `meta/v1`.

use serde_json::{Map, Value, json};

/// The media type.
pub(super) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What comes before the `runtime.Unknown` that holds the object.
const MAGIC: &[u8] = b"k8s\0";

/// Reads an `events.k8s.io/v1` Event; nothing if it is another object, or damaged.
pub(super) fn event(body: &[u8]) -> Option<Value> {
    let unknown = Message::parse(body.strip_prefix(MAGIC)?)?;
    let kind = unknown.message(1)?;
    if (kind.text(1), kind.text(2)) != (Some("events.k8s.io/v1"), Some("Event")) {
        return None;
    }
    let event = unknown.message(2)?;
    let metadata = event.message(1)?;
    let mut object = event.texts(&[
        (4, "reportingController"),
        (5, "reportingInstance"),
        (6, "action"),
        (7, "reason"),
        (10, "note"),
        (11, "type"),
    ]);
    let metadata = metadata.texts(&[(1, "name"), (3, "namespace")]);
    object.insert("metadata".to_owned(), metadata.into());
    object.insert("apiVersion".to_owned(), json!("events.k8s.io/v1"));
    object.insert("kind".to_owned(), json!("Event"));
    if let Some(regarding) = event.message(8) {
        let fields = [
            (1, "kind"),
            (2, "namespace"),
            (3, "name"),
            (4, "uid"),
            (5, "apiVersion"),
        ];
        object.insert("regarding".to_owned(), regarding.texts(&fields).into());
    }
    Some(object.into())
}

/// The fields of a message that have a length: texts and messages.
struct Message<'a>(Vec<(u64, &'a [u8])>);

impl<'a> Message<'a> {
    fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let length = match tag & 7 {
                0 => {
                    varint(&mut bytes)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut bytes)?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (value, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            if tag & 7 == 2 {
                fields.push((tag >> 3, value));
            }
        }
        Some(Self(fields))
    }

    fn bytes(&self, number: u64) -> Option<&'a [u8]> {
        let found = self.0.iter().find(|(field, _)| *field == number);
        found.map(|(_, value)| *value)
    }

    fn message(&self, number: u64) -> Option<Self> {
        Self::parse(self.bytes(number)?)
    }

    fn text(&self, number: u64) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(number)?).ok()
    }

    /// Those of these fields that are not empty.
    fn texts(&self, names: &[(u64, &str)]) -> Map<String, Value> {
        let value = |(number, name): &(u64, &str)| {
            let text = self.text(*number).filter(|text| !text.is_empty())?;
            Some(((*name).to_owned(), json!(text)))
        };
        names.iter().filter_map(value).collect()
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bodies_are_no_events() {
        let huge_length = b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        let endless_number = [b"k8s\0\x08".as_slice(), &[0xff; 12]].concat();
        let bodies: [&[u8]; 6] = [
            b"",
            b"{}",
            b"k8s\0",
            b"k8s\0\x0a\x05ab",
            huge_length,
            &endless_number,
        ];
        for body in bodies {
            assert_eq!(event(body), None, "{body:?}");
        }
    }
}
