//! API objects of every kind that matters, as they were read in one go, and their translation.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;

use crate::model::{Node, ObjectName, Parsed, Service, ServiceCidr, Slice};

/// API objects that were read once and completely, for the dry run and for manifests.
#[derive(Debug, Default)]
pub struct Objects {
    /// Every Service, those without rules too.
    pub services: Vec<core::Service>,
    /// Every EndpointSlice.
    pub slices: Vec<discovery::EndpointSlice>,
    /// Every Endpoints object; each counts only where its Service has no slice.
    pub endpoints: Vec<core::Endpoints>,
    /// Every Node that was found.
    pub nodes: Vec<core::Node>,
    /// Every ServiceCIDR.
    pub service_cidrs: Vec<networking::ServiceCIDR>,
}

impl Objects {
    /// The Services, translated.
    pub fn parsed_services(&self) -> Vec<Parsed<Service>> {
        self.services.iter().map(super::service).collect()
    }

    /// The EndpointSlices, translated as this node sees them, and the Endpoints of Services that have no slice.
    pub fn parsed_slices(&self, node_name: &str) -> Vec<Parsed<Slice>> {
        let slices_of = self
            .slices
            .iter()
            .filter_map(|slice| super::service_of(&slice.metadata));
        let with_slices: BTreeSet<ObjectName> = slices_of.collect();
        let stand_in = self
            .endpoints
            .iter()
            .filter(|endpoints| !with_slices.contains(&super::name_of(&endpoints.metadata)));
        let slices = self
            .slices
            .iter()
            .map(|slice| super::slice(slice, node_name));
        slices
            .chain(stand_in.flat_map(|object| super::endpoints(object, node_name)))
            .collect()
    }

    /// The ServiceCIDRs, translated.
    pub fn parsed_service_cidrs(&self) -> Vec<Parsed<ServiceCidr>> {
        self.service_cidrs.iter().map(super::service_cidr).collect()
    }

    /// Whether some Service has `loadBalancerSourceRanges`. What these come to depends on the machine's addresses.
    pub fn has_source_ranges(&self) -> bool {
        let specs = self.services.iter().filter_map(|s| s.spec.as_ref());
        let mut ranges = specs.filter_map(|spec| spec.load_balancer_source_ranges.as_ref());
        ranges.any(|ranges| !ranges.is_empty())
    }

    /// The Node object of this node, translated.
    pub fn own_node(&self, node_name: &str) -> Option<Node> {
        let own = self
            .nodes
            .iter()
            .find(|node| node.metadata.name.as_deref() == Some(node_name));
        own.map(super::node)
    }
}
