//! ServiceCIDRs on the wire.

use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};

use super::{Message, Undecodable, Value};

impl Message for ServiceCIDR {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("metadata", &mut self.metadata),
            2 => value.message("spec", self.spec.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for ServiceCIDRSpec {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.text_item("cidrs", self.cidrs.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}
