//! The values of fields: read from what a document holds, and refused in words of our own where they are of another type.
//!
//! Null is nothing, as kubeadm writes it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(wrong(&other, "a text")),
    }
}

pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        value => match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(&value, "a whole number")),
        },
    }
}

pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(value)),
        other => Err(wrong(&other, "true or false")),
    }
}

pub(super) fn texts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    let values = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::Array(values) => values.into_iter(),
        other => return Err(wrong(&other, "a list of texts")),
    };
    let texts = values.map(|value| match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(&other, "a text in the list")),
    });
    texts.collect::<Result<_, _>>().map(Some)
}

pub(super) fn flags<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, bool>>, D::Error> {
    let values = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::Object(values) => values.into_iter(),
        other => return Err(wrong(&other, "names with true or false")),
    };
    let flags = values.map(|(name, value)| match value {
        Value::Bool(value) => Ok((name, value)),
        other => Err(wrong(&other, &format!("true or false for {name}"))),
    });
    flags.collect::<Result<_, _>>().map(Some)
}

/// A part with fields of its own.
pub(super) fn section<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(Section(PhantomData))
}

struct Section<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Section<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SECTION)
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(access)).map(Some)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Err(wrong(&value.into(), SECTION))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Err(wrong(&value.into(), SECTION))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Err(wrong(&value.into(), SECTION))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Err(wrong(&value.into(), SECTION))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Err(wrong(&value.into(), SECTION))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(wrong(&Value::Array(Vec::new()), SECTION))
    }
}

/// What stands where a section belongs.
const SECTION: &str = "fields of its own";

/// That a value is of another type than its field.
fn wrong<E: Error>(found: &Value, wanted: &str) -> E {
    E::custom(match found {
        Value::Array(_) => format!("a list; {wanted} is wanted"),
        Value::Object(_) => format!("fields; {wanted} is wanted"),
        Value::String(_) => format!("{found} is a text; {wanted} is wanted"),
        _ => format!("{found}; {wanted} is wanted"),
    })
}
