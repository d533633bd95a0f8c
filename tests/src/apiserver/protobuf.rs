//! Kubernetes' protobuf encoding of the JSON that the server keeps, and back, by the tables of [`super::schema`].
//!
//! A value of another type than its field has is written as what it is, so that an object that no client can read in
//! JSON is one that no client can read in protobuf either. Fields that a table does not have are left out, as by
//! kube-apiserver.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::schema::{Count, Field, Kind, Schema};

/// What comes before the `runtime.Unknown` that holds an object.
const MAGIC: &[u8] = b"k8s\0";

/// The object of a table's kind as a message.
pub(super) fn encode(schema: Schema, value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in schema {
        let value = value.get(field.name).unwrap_or(&Value::Null);
        match (field.count, value) {
            (Count::Always, value) => write(&mut bytes, field.number, field.kind, value),
            (_, Value::Null) => {}
            (Count::Many, Value::Array(items)) => {
                for item in items {
                    write(&mut bytes, field.number, field.kind, item);
                }
            }
            (Count::Map, Value::Object(entries)) => {
                for (key, value) in entries {
                    let mut entry = Vec::new();
                    write_bytes(&mut entry, 1, key.as_bytes());
                    write(&mut entry, 2, field.kind, value);
                    write_bytes(&mut bytes, field.number, &entry);
                }
            }
            (_, value) => write(&mut bytes, field.number, field.kind, value),
        }
    }
    bytes
}

/// An encoded object as it is sent by itself: behind the magic number, with its type.
pub(super) fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    write_bytes(&mut types, 1, api_version.as_bytes());
    write_bytes(&mut types, 2, kind.as_bytes());
    let mut bytes = MAGIC.to_vec();
    write_bytes(&mut bytes, 1, &types);
    write_bytes(&mut bytes, 2, raw);
    // The encoding and the type of the raw bytes, which are what they always are.
    write_bytes(&mut bytes, 3, b"");
    write_bytes(&mut bytes, 4, b"");
    bytes
}

/// An event of a watch behind its length. `object` is wrapped.
pub(super) fn frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut extension = Vec::new();
    write_bytes(&mut extension, 1, object);
    let mut event = Vec::new();
    write_bytes(&mut event, 1, kind.as_bytes());
    write_bytes(&mut event, 2, &extension);
    framed(&event)
}

/// Bytes behind their length.
pub(super) fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("no event has gigabytes");
    [&length.to_be_bytes(), bytes].concat()
}

/// The beginning of a list, up to its items.
pub(super) fn begin_list(metadata: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_bytes(&mut bytes, 1, metadata);
    bytes
}

/// One more item of a list.
pub(super) fn add_item(list: &mut Vec<u8>, item: &[u8]) {
    write_bytes(list, 2, item);
}

fn write(bytes: &mut Vec<u8>, number: u32, kind: Kind, value: &Value) {
    match (kind, value) {
        (Kind::Message(schema), Value::Object(_) | Value::Null) => {
            write_bytes(bytes, number, &encode(schema, value));
        }
        (Kind::Text, Value::Null) => write_bytes(bytes, number, b""),
        (Kind::Number | Kind::Flag, Value::Null) => write_number(bytes, number, 0),
        (Kind::Time, Value::Null) => write_bytes(bytes, number, b""),
        (Kind::Time, Value::String(text)) => {
            let mut time = Vec::new();
            match text.parse::<Timestamp>() {
                Ok(at) => {
                    write_number(&mut time, 1, at.as_second());
                    write_number(&mut time, 2, 0);
                }
                Err(_) => write_bytes(&mut time, 1, text.as_bytes()),
            }
            write_bytes(bytes, number, &time);
        }
        (Kind::IntOrString, Value::String(text)) => {
            write_int_or_string(bytes, number, (1, 0, text));
        }
        (Kind::IntOrString, value) => {
            write_int_or_string(bytes, number, (0, value.as_i64().unwrap_or_default(), ""));
        }
        (Kind::Quantity, Value::String(text)) => {
            let mut quantity = Vec::new();
            write_bytes(&mut quantity, 1, text.as_bytes());
            write_bytes(bytes, number, &quantity);
        }
        (Kind::Json, value) => {
            let mut fields = Vec::new();
            write_bytes(&mut fields, 1, value.to_string().as_bytes());
            write_bytes(bytes, number, &fields);
        }
        (_, Value::String(text)) => write_bytes(bytes, number, text.as_bytes()),
        (_, Value::Bool(flag)) => write_number(bytes, number, i64::from(*flag)),
        (_, Value::Number(value)) if value.is_i64() => {
            write_number(bytes, number, value.as_i64().unwrap_or_default());
        }
        (_, other) => write_bytes(bytes, number, other.to_string().as_bytes()),
    }
}

fn write_int_or_string(bytes: &mut Vec<u8>, number: u32, value: (i64, i64, &str)) {
    let (kind, int, text) = value;
    let mut message = Vec::new();
    write_number(&mut message, 1, kind);
    write_number(&mut message, 2, int);
    write_bytes(&mut message, 3, text.as_bytes());
    write_bytes(bytes, number, &message);
}

fn write_bytes(bytes: &mut Vec<u8>, number: u32, value: &[u8]) {
    write_varint(bytes, u64::from(number) << 3 | 2);
    write_varint(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

fn write_number(bytes: &mut Vec<u8>, number: u32, value: i64) {
    write_varint(bytes, u64::from(number) << 3);
    write_varint(bytes, value.cast_unsigned());
}

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// What a client sent: the object, with its type; nothing if it is damaged, or of a type that `schema_of` has no
/// table for.
pub(super) fn unwrap(
    body: &[u8],
    schema_of: impl Fn(&str, &str) -> Option<Schema>,
) -> Option<Value> {
    let mut types = (String::new(), String::new());
    let mut raw = None;
    for field in fields(body.strip_prefix(MAGIC)?)? {
        match field {
            (1, Wire::Bytes(bytes)) => {
                for (number, value) in fields(bytes)? {
                    match number {
                        1 => types.0 = value.text()?,
                        2 => types.1 = value.text()?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = Some(bytes),
            _ => {}
        }
    }
    let (api_version, kind) = types;
    let mut value = decode(schema_of(&api_version, &kind)?, raw?)?;
    value["apiVersion"] = json!(api_version);
    value["kind"] = json!(kind);
    Some(value)
}

/// The JSON of a message, as Go writes it: without what is zero or empty. Nothing if it is damaged.
pub(super) fn decode(schema: Schema, bytes: &[u8]) -> Option<Value> {
    let mut object = Map::new();
    for (number, value) in fields(bytes)? {
        let Some(field) = schema.iter().find(|field| field.number == number) else {
            continue;
        };
        read(&mut object, field, value)?;
    }
    Some(object.into())
}

fn read(object: &mut Map<String, Value>, field: &Field, wire: Wire<'_>) -> Option<()> {
    let name = field.name.to_owned();
    match field.count {
        Count::Always | Count::Maybe => {
            let value = json_of(field.kind, wire)?;
            let is_zero = matches!(&value, Value::Null | Value::Bool(false))
                || value == json!("")
                || value == json!(0)
                || value == json!({});
            if !is_zero || field.count == Count::Maybe {
                object.insert(name, value);
            }
        }
        Count::Many => {
            let value = json_of(field.kind, wire)?;
            let list = object.entry(name).or_insert_with(|| json!([]));
            list.as_array_mut()?.push(value);
        }
        Count::Map => {
            let (mut key, mut value) = (String::new(), Value::Null);
            for (number, part) in fields(wire.bytes()?)? {
                match number {
                    1 => key = part.text()?,
                    2 => value = json_of(field.kind, part)?,
                    _ => {}
                }
            }
            let map = object.entry(name).or_insert_with(|| json!({}));
            map.as_object_mut()?.insert(key, value);
        }
    }
    Some(())
}

fn json_of(kind: Kind, wire: Wire<'_>) -> Option<Value> {
    let part = |wanted: u32| -> Option<Option<Wire<'_>>> {
        let mut found = fields(wire.bytes()?)?.into_iter();
        Some(
            found
                .find(|(number, _)| *number == wanted)
                .map(|(_, value)| value),
        )
    };
    Some(match kind {
        Kind::Text => wire.text()?.into(),
        Kind::Number => wire.number()?.into(),
        Kind::Flag => (wire.number()? != 0).into(),
        Kind::Message(schema) => decode(schema, wire.bytes()?)?,
        Kind::Quantity => part(1)?.map_or(json!(""), |text| json!(text.text())),
        Kind::Json => serde_json::from_slice(part(1)?.and_then(Wire::bytes)?).ok()?,
        Kind::Time => match part(1)? {
            None => Value::Null,
            Some(seconds) => json!(Timestamp::from_second(seconds.number()?).ok()?.to_string()),
        },
        Kind::IntOrString => match part(1)?.and_then(Wire::number) {
            Some(1) => json!(part(3)?.and_then(Wire::text)),
            _ => json!(part(2)?.and_then(Wire::number).unwrap_or_default()),
        },
    })
}

/// A value on the wire.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Number(_) => None,
        }
    }

    fn text(self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn number(self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(number.cast_signed()),
            Self::Bytes(_) => None,
        }
    }
}

/// The fields of a message; none if it is damaged.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u32, Wire<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).ok()?;
        match tag & 7 {
            0 => fields.push((number, Wire::Number(varint(&mut bytes)?))),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                fields.push((number, Wire::Bytes(value)));
            }
            _ => return None,
        }
    }
    Some(fields)
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
    use super::super::Resource;
    use super::*;

    fn event(body: &[u8]) -> Option<Value> {
        unwrap(body, |api_version, kind| {
            Resource::from_type(api_version, kind).map(Resource::schema)
        })
    }

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
