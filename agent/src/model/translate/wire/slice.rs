//! EndpointSlices on the wire.

use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};

use super::{Message, Undecodable, Value};

impl Message for EndpointSlice {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("metadata", &mut self.metadata)?,
            2 => value.item("endpoints", self.endpoints.get_or_insert_default())?,
            3 => value.item("ports", self.ports.get_or_insert_default())?,
            4 => self.address_type = value.text("addressType")?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for Endpoint {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.text_item("addresses", &mut self.addresses)?,
            2 => value.message("conditions", self.conditions.get_or_insert_default())?,
            3 => self.hostname = Some(value.text("hostname")?),
            6 => self.node_name = Some(value.text("nodeName")?),
            8 => value.message("hints", self.hints.get_or_insert_default())?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for EndpointConditions {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.ready = Some(value.flag("ready")?),
            2 => self.serving = Some(value.flag("serving")?),
            3 => self.terminating = Some(value.flag("terminating")?),
            _ => {}
        }
        Ok(())
    }
}

impl Message for EndpointHints {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.item("forZones", self.for_zones.get_or_insert_default()),
            2 => value.item("forNodes", self.for_nodes.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for ForZone {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        if number == 1 {
            self.name = value.text("name")?;
        }
        Ok(())
    }
}

impl Message for ForNode {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        if number == 1 {
            self.name = value.text("name")?;
        }
        Ok(())
    }
}

impl Message for EndpointPort {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.name = Some(value.text("name")?),
            2 => self.protocol = Some(value.text("protocol")?),
            3 => self.port = Some(value.number("port")?),
            _ => {}
        }
        Ok(())
    }
}
