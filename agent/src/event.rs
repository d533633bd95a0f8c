//! Everything that can happen to the agent: one closed enum between the sources and the engine.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Family, Node, ObjectName, Parsed, Service, ServiceCidr, Slice};

/// A change in what the agent knows. Sources send them; only the engine takes them.
#[derive(Debug, Clone)]
pub enum Event {
    /// A complete list of Services; takes the place of all that were known.
    ServicesListed(Vec<Parsed<Service>>),
    /// One Service is new or changed.
    ServiceApplied(Parsed<Service>),
    /// One Service is gone.
    ServiceDeleted(ObjectName),
    /// A complete list of EndpointSlices; takes the place of all that were known.
    SlicesListed(Vec<Parsed<Slice>>),
    /// One EndpointSlice is new or changed.
    SliceApplied(Parsed<Slice>),
    /// One EndpointSlice is gone.
    SliceDeleted(ObjectName),
    /// A complete list of ServiceCIDRs; takes the place of all that were known.
    ServiceCidrsListed(Vec<Parsed<ServiceCidr>>),
    /// One ServiceCIDR is new or changed.
    ServiceCidrApplied(Parsed<ServiceCidr>),
    /// One ServiceCIDR is gone.
    ServiceCidrDeleted(ObjectName),
    /// Everything that comes from the API, as it is at one moment. Between the single events a
    /// Service and its slice may not fit together.
    AllListed {
        /// Every Service.
        services: Vec<Parsed<Service>>,
        /// Every EndpointSlice.
        slices: Vec<Parsed<Slice>>,
        /// Every ServiceCIDR.
        service_cidrs: Vec<Parsed<ServiceCidr>>,
        /// The own Node object.
        node: Option<Node>,
        /// Whether this is all. While part of it could not be read since the start, nothing is known to be gone.
        whole: bool,
        /// How many documents and objects could not be read at all.
        refused: usize,
    },
    /// The own Node object as it is now, or that there is none.
    NodeChanged(Option<Node>),
    /// The addresses that the machine's interfaces have now, loopback and link-local ones left out.
    HostAddressesChanged(BTreeSet<IpAddr>),
    /// Someone else changed, or may have changed, what the kernel holds for a family.
    KernelChanged {
        /// The family.
        family: Family,
        /// Who did it, for people.
        by: String,
    },
}
