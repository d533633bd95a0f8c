//! Nodes on the wire. Of what a Node is, most is stepped over: images, capacities, conditions.

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, Taint};

use super::{Message, Undecodable, Value};

impl Message for Node {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("metadata", &mut self.metadata),
            2 => value.message("spec", self.spec.get_or_insert_default()),
            3 => value.message("status", self.status.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for NodeSpec {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.pod_cidr = value.text_if_any("podCIDR")?,
            5 => value.item("taints", self.taints.get_or_insert_default())?,
            7 => value.text_item("podCIDRs", self.pod_cidrs.get_or_insert_default())?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for Taint {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.key = value.text("key")?,
            3 => self.effect = value.text("effect")?,
            _ => {}
        }
        Ok(())
    }
}

impl Message for NodeStatus {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            5 => value.item("addresses", self.addresses.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for NodeAddress {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.type_ = value.text("type")?,
            2 => self.address = value.text("address")?,
            _ => {}
        }
        Ok(())
    }
}
