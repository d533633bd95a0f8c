//! The wire format of protobuf (<https://protobuf.dev/programming-guides/encoding>): a message as its fields.

use std::collections::BTreeMap;

use super::{Message, Undecodable};

const NOT_THE_TYPE: Undecodable = Undecodable {
    field: String::new(),
    reason: "is not of the type that the API has here",
};

const CUT_SHORT: Undecodable = Undecodable {
    field: String::new(),
    reason: "ends early",
};

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number of variable length.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
    /// A number of four or eight bytes, which no field that is read here has.
    Fixed,
}

/// The fields of a message, in the order in which they were written, up to the first that is broken.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Those of an encoded message.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn read(&mut self) -> Result<(u64, Value<'a>), Undecodable> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.number()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return Err(Undecodable::new("has a field of no known type")),
        };
        match tag >> 3 {
            0 => Err(Undecodable::new("has a field without a number")),
            number => Ok((number, value)),
        }
    }

    fn number(&mut self) -> Result<u64, Undecodable> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(CUT_SHORT)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Undecodable::new("has a number without end"))
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], Undecodable> {
        let length = usize::try_from(length).map_err(|_| CUT_SHORT)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Undecodable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Value<'a> {
    /// The bytes of a text or a message.
    pub(super) fn bytes(self, field: &str) -> Result<&'a [u8], Undecodable> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed => Err(NOT_THE_TYPE.within(field)),
        }
    }

    /// A text. What is no UTF-8 in it is replaced, as in Go's JSON.
    pub(super) fn text(self, field: &str) -> Result<String, Undecodable> {
        Ok(String::from_utf8_lossy(self.bytes(field)?).into_owned())
    }

    /// A text that JSON leaves out if it is empty.
    pub(super) fn text_if_any(self, field: &str) -> Result<Option<String>, Undecodable> {
        let text = self.text(field)?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// A number of 64 bits.
    pub(super) fn long(self, field: &str) -> Result<i64, Undecodable> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            Self::Bytes(_) | Self::Fixed => Err(NOT_THE_TYPE.within(field)),
        }
    }

    /// A number of 32 bits. Higher ones do not count, as protobuf has it.
    pub(super) fn number(self, field: &str) -> Result<i32, Undecodable> {
        self.long(field).map(|number| number as i32)
    }

    /// Yes or no.
    pub(super) fn flag(self, field: &str) -> Result<bool, Undecodable> {
        self.long(field).map(|number| number != 0)
    }

    /// A message, which adds to what came of it before.
    pub(super) fn message<M: Message>(self, field: &str, into: &mut M) -> Result<(), Undecodable> {
        let bytes = self.bytes(field)?;
        into.merge(bytes).map_err(|error| error.within(field))
    }

    /// One more message of a list.
    pub(super) fn item<M: Message>(
        self,
        field: &str,
        list: &mut Vec<M>,
    ) -> Result<(), Undecodable> {
        let mut item = M::default();
        let within = |error: Undecodable| error.within(&format!("{field}[{}]", list.len()));
        item.merge(self.bytes(field)?).map_err(within)?;
        list.push(item);
        Ok(())
    }

    /// One more text of a list.
    pub(super) fn text_item(self, field: &str, list: &mut Vec<String>) -> Result<(), Undecodable> {
        list.push(self.text(field)?);
        Ok(())
    }

    /// One more entry of a map.
    pub(super) fn entry(
        self,
        field: &str,
        map: &mut BTreeMap<String, String>,
    ) -> Result<(), Undecodable> {
        let mut entry = Entry::default();
        self.message(field, &mut entry)?;
        map.insert(entry.key, entry.value);
        Ok(())
    }
}

/// An entry of a map.
#[derive(Debug, Default)]
struct Entry {
    key: String,
    value: String,
}

impl Message for Entry {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.key = value.text("key")?,
            2 => self.value = value.text("value")?,
            _ => {}
        }
        Ok(())
    }
}
