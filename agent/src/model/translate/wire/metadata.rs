//! What objects of all kinds have: their metadata, and times in it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::{Message, Undecodable, Value};

impl Message for ObjectMeta {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.name = value.text_if_any("name")?,
            3 => self.namespace = value.text_if_any("namespace")?,
            6 => self.resource_version = value.text_if_any("resourceVersion")?,
            8 => self.creation_timestamp = time(value, "creationTimestamp")?,
            9 => self.deletion_timestamp = time(value, "deletionTimestamp")?,
            11 => value.entry("labels", self.labels.get_or_insert_default())?,
            12 => value.entry("annotations", self.annotations.get_or_insert_default())?,
            _ => {}
        }
        Ok(())
    }
}

/// A moment; Go writes one that is not set as a message without fields.
fn time(value: Value<'_>, field: &str) -> Result<Option<Time>, Undecodable> {
    let mut moment = Moment::default();
    value.message(field, &mut moment)?;
    let Some(seconds) = moment.seconds else {
        return Ok(None);
    };
    let out_of_range = |_| Undecodable::new("is a time that no calendar has").within(field);
    let timestamp = Timestamp::from_second(seconds).map_err(out_of_range)?;
    Ok(Some(Time(timestamp)))
}

/// `meta/v1` Time. It has nanoseconds too, which the API does not mean: JSON has whole seconds.
#[derive(Debug, Default)]
struct Moment {
    seconds: Option<i64>,
}

impl Message for Moment {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        if number == 1 {
            self.seconds = Some(value.long("seconds")?);
        }
        Ok(())
    }
}
