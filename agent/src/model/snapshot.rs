//! The snapshot: everything known of the cluster and the node, joined, and what changed in it.
//!
//! The engine feeds it; `plan/` asks it who owns a front end and which slices stand behind a Service. Every
//! change notes the front ends it may affect, so that only those are planned again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Family, Frontend, Node, ObjectName, PerFamily, Place, Service, ServicePort, Slice};

/// Services, EndpointSlices and node facts as they are now.
#[derive(Debug, Default)]
pub struct Snapshot {
    services: BTreeMap<ObjectName, Service>,
    claims: BTreeSet<Claim>,
    slices: BTreeMap<ObjectName, Slice>,
    /// (Service, slice): the join of the two, by name.
    slices_of: BTreeSet<(ObjectName, ObjectName)>,
    /// (address, slice): endpoints that may run on this node.
    endpoints_here: BTreeSet<(IpAddr, ObjectName)>,
    node: Option<Node>,
    host_addresses: BTreeSet<IpAddr>,
    touched: PerFamily<Touched>,
}

/// What a change may affect, in one family. Nothing else needs planning again.
#[derive(Debug, Default)]
pub struct Touched {
    /// Front ends that were or are claimed by a changed Service, or whose endpoints changed.
    pub frontends: BTreeSet<Frontend>,
    /// Addresses of endpoints that may have come to this node or left it.
    pub endpoints_here: BTreeSet<IpAddr>,
    /// The addresses of this node changed.
    pub node: bool,
}

/// How much of a family is planned and compared.
#[derive(Debug)]
pub enum Scope {
    /// All of it.
    All,
    /// What a change may have affected.
    Touched(Touched),
}

/// A Service's claim to a front end. Orders the claims to one front end by who has it: the oldest Service.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    frontend: Frontend,
    created: i64,
    service: ObjectName,
}

impl Snapshot {
    /// Takes a complete list of Services in place of all that are known.
    pub fn set_services(&mut self, listed: Vec<Service>) {
        let kept: BTreeSet<_> = listed.iter().map(|service| service.name.clone()).collect();
        let gone: Vec<_> = self
            .services
            .keys()
            .filter(|name| !kept.contains(name))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.remove_service(name));
        listed
            .into_iter()
            .for_each(|service| self.put_service(service));
    }

    /// Adds a Service or changes it.
    pub fn put_service(&mut self, service: Service) {
        if self.services.get(&service.name) == Some(&service) {
            return;
        }
        self.remove_service(&service.name);
        for (frontend, _) in service.frontends() {
            self.claims.insert(Claim::new(frontend, &service));
            self.touched
                .get_mut(frontend.family())
                .frontends
                .insert(frontend);
        }
        self.services.insert(service.name.clone(), service);
    }

    /// Removes a Service, if it is known.
    pub fn remove_service(&mut self, name: &ObjectName) {
        let Some(service) = self.services.remove(name) else {
            return;
        };
        for (frontend, _) in service.frontends() {
            self.claims.remove(&Claim::new(frontend, &service));
            self.touched
                .get_mut(frontend.family())
                .frontends
                .insert(frontend);
        }
    }

    /// Takes a complete list of EndpointSlices in place of all that are known.
    pub fn set_slices(&mut self, listed: Vec<Slice>) {
        let kept: BTreeSet<_> = listed.iter().map(|slice| slice.name.clone()).collect();
        let gone: Vec<_> = self
            .slices
            .keys()
            .filter(|name| !kept.contains(name))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.remove_slice(name));
        listed.into_iter().for_each(|slice| self.put_slice(slice));
    }

    /// Adds an EndpointSlice or changes it, its Service included.
    pub fn put_slice(&mut self, slice: Slice) {
        if self.slices.get(&slice.name) == Some(&slice) {
            return;
        }
        self.remove_slice(&slice.name);
        self.slices_of
            .insert((slice.service.clone(), slice.name.clone()));
        for address in addresses_here(&slice) {
            self.endpoints_here.insert((address, slice.name.clone()));
        }
        self.touch_slice(&slice);
        self.slices.insert(slice.name.clone(), slice);
    }

    /// Removes an EndpointSlice, if it is known.
    pub fn remove_slice(&mut self, name: &ObjectName) {
        let Some(slice) = self.slices.remove(name) else {
            return;
        };
        self.slices_of
            .remove(&(slice.service.clone(), name.clone()));
        for address in addresses_here(&slice) {
            self.endpoints_here.remove(&(address, name.clone()));
        }
        self.touch_slice(&slice);
    }

    fn touch_slice(&mut self, slice: &Slice) {
        for address in addresses_here(slice) {
            self.touched
                .get_mut(Family::of(address))
                .endpoints_here
                .insert(address);
        }
        let service = self.services.get(&slice.service);
        for (frontend, _) in service.into_iter().flat_map(Service::frontends) {
            self.touched
                .get_mut(frontend.family())
                .frontends
                .insert(frontend);
        }
    }

    /// Sets this node's Node object, or that it has none.
    pub fn set_node(&mut self, node: Option<Node>) {
        if self.node != node {
            self.node = node;
            self.touch_node();
        }
    }

    /// Sets the addresses of this machine's interfaces, without loopback and link-local ones.
    pub fn set_host_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.host_addresses != addresses {
            self.host_addresses = addresses;
            self.touch_node();
        }
    }

    fn touch_node(&mut self) {
        for family in Family::ALL {
            self.touched.get_mut(family).node = true;
        }
    }

    /// What changed in a family since this was last asked.
    pub fn take_touched(&mut self, family: Family) -> Touched {
        std::mem::take(self.touched.get_mut(family))
    }

    /// How many Services have rules.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The Services that have rules, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Every front end of a family that some Service claims, in order.
    pub fn frontends(&self, family: Family) -> impl Iterator<Item = Frontend> {
        let mut last = None;
        self.claims
            .iter()
            .map(|claim| claim.frontend)
            .filter(move |frontend| frontend.family() == family)
            .filter(move |frontend| last.replace(*frontend) != Some(*frontend))
    }

    /// The Service that has a front end, and its port there.
    pub fn owner(&self, frontend: Frontend) -> Option<(&Service, &ServicePort)> {
        let service = self.services.get(self.claimants(frontend).next()?)?;
        let (_, port) = service
            .frontends()
            .find(|(claimed, _)| *claimed == frontend)?;
        Some((service, port))
    }

    /// The Services that claim a front end: first the one that has it, then those that do not get it.
    pub fn claimants(&self, frontend: Frontend) -> impl Iterator<Item = &ObjectName> {
        let first = Claim {
            frontend,
            created: i64::MIN,
            service: ObjectName::new("", ""),
        };
        self.claims
            .range(first..)
            .take_while(move |claim| claim.frontend == frontend)
            .map(|claim| &claim.service)
    }

    /// The EndpointSlices of a Service, by name.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        let first = (service.clone(), ObjectName::new("", ""));
        self.slices_of
            .range(first..)
            .take_while(move |(of, _)| of == service)
            .filter_map(|(_, slice)| self.slices.get(slice))
    }

    /// Whether an address belongs to an endpoint that may run on this node.
    pub fn is_endpoint_here(&self, address: IpAddr) -> bool {
        let first = (address, ObjectName::new("", ""));
        self.endpoints_here
            .range(first..)
            .next()
            .is_some_and(|(found, _)| *found == address)
    }

    /// The addresses of endpoints that may run on this node.
    pub fn endpoints_here(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let addresses = self.endpoints_here.iter().map(|(address, _)| *address);
        addresses.filter(move |address| Family::of(*address) == family)
    }

    /// This node's Node object.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The addresses of this machine's interfaces, without loopback and link-local ones.
    pub fn host_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.host_addresses
    }
}

impl Claim {
    fn new(frontend: Frontend, service: &Service) -> Self {
        Self {
            frontend,
            created: service.created,
            service: service.name.clone(),
        }
    }
}

fn addresses_here(slice: &Slice) -> impl Iterator<Item = IpAddr> {
    let here = slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.place != Place::Elsewhere);
    here.map(|endpoint| endpoint.address)
}
