//! Services on the wire.

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig,
};

use super::{Message, Undecodable, Value};

impl Message for Service {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("metadata", &mut self.metadata),
            2 => value.message("spec", self.spec.get_or_insert_default()),
            3 => value.message("status", self.status.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for ServiceSpec {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.item("ports", self.ports.get_or_insert_default())?,
            3 => self.cluster_ip = value.text_if_any("clusterIP")?,
            4 => self.type_ = value.text_if_any("type")?,
            5 => value.text_item("externalIPs", self.external_ips.get_or_insert_default())?,
            7 => self.session_affinity = value.text_if_any("sessionAffinity")?,
            9 => {
                let ranges = self.load_balancer_source_ranges.get_or_insert_default();
                value.text_item("loadBalancerSourceRanges", ranges)?;
            }
            10 => self.external_name = value.text_if_any("externalName")?,
            11 => self.external_traffic_policy = value.text_if_any("externalTrafficPolicy")?,
            12 => self.health_check_node_port = Some(value.number("healthCheckNodePort")?),
            14 => {
                let config = self.session_affinity_config.get_or_insert_default();
                value.message("sessionAffinityConfig", config)?;
            }
            18 => value.text_item("clusterIPs", self.cluster_ips.get_or_insert_default())?,
            22 => self.internal_traffic_policy = Some(value.text("internalTrafficPolicy")?),
            _ => {}
        }
        Ok(())
    }
}

impl Message for ServicePort {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.name = value.text_if_any("name")?,
            2 => self.protocol = value.text_if_any("protocol")?,
            3 => self.port = value.number("port")?,
            5 => self.node_port = Some(value.number("nodePort")?),
            _ => {}
        }
        Ok(())
    }
}

impl Message for SessionAffinityConfig {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("clientIP", self.client_ip.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for ClientIPConfig {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        if number == 1 {
            self.timeout_seconds = Some(value.number("timeoutSeconds")?);
        }
        Ok(())
    }
}

impl Message for ServiceStatus {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.message("loadBalancer", self.load_balancer.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for LoadBalancerStatus {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => value.item("ingress", self.ingress.get_or_insert_default()),
            _ => Ok(()),
        }
    }
}

impl Message for LoadBalancerIngress {
    fn take(&mut self, number: u64, value: Value<'_>) -> Result<(), Undecodable> {
        match number {
            1 => self.ip = value.text_if_any("ip")?,
            2 => self.hostname = value.text_if_any("hostname")?,
            3 => self.ip_mode = Some(value.text("ipMode")?),
            _ => {}
        }
        Ok(())
    }
}
