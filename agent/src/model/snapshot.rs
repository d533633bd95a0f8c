//! The snapshot: everything known of the cluster and the node, joined, and what changed in it.
//!
//! The engine feeds it; `plan/` asks it who owns a front end and which slices stand behind a Service. Every
//! change notes the front ends it may affect, so that only those are planned again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Claimed, Exposure, Family, Frontend, Node, ObjectName, PerFamily, Place, Port, Protocol,
    Service, ServiceCidr, Slice,
};

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
    service_cidrs: BTreeMap<ObjectName, Vec<IpNet>>,
    /// Services with a port for health checks.
    health_checked: BTreeSet<ObjectName>,
    touched: PerFamily<Touched>,
    health_touched: bool,
}

/// What a change may affect, in one family. Nothing else needs planning again.
#[derive(Debug, Default)]
pub struct Touched {
    /// Front ends that were or are claimed by a changed Service, or whose endpoints changed.
    pub frontends: BTreeSet<Frontend>,
    /// Addresses of endpoints that may have come to this node or left it.
    pub endpoints_here: BTreeSet<IpAddr>,
    /// A fact changed that anything may depend on: the Node, the machine's addresses, the ServiceCIDRs.
    pub everything: bool,
}

/// How much of a family is planned and compared.
#[derive(Debug)]
pub enum Scope {
    /// All of it.
    All,
    /// What a change may have affected.
    Touched(Touched),
}

/// A Service's claim to a front end. Orders the claims to one front end by who has it: a Service whose ClusterIP
/// it is, else the oldest Service.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    frontend: Frontend,
    is_outer: bool,
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
        for claimed in service.frontends() {
            self.claims.insert(Claim::new(&claimed, &service));
            touch(&mut self.touched, claimed.frontend);
        }
        self.touch_rivals(&service);
        if service.health_check_port.is_some() {
            self.health_checked.insert(service.name.clone());
            self.health_touched = true;
        }
        self.services.insert(service.name.clone(), service);
    }

    /// Removes a Service, if it is known.
    pub fn remove_service(&mut self, name: &ObjectName) {
        let Some(service) = self.services.remove(name) else {
            return;
        };
        for claimed in service.frontends() {
            self.claims.remove(&Claim::new(&claimed, &service));
            touch(&mut self.touched, claimed.frontend);
        }
        self.touch_rivals(&service);
        self.health_touched |= self.health_checked.remove(name);
    }

    /// Touches the front ends of Services with affinity that claim some of the same: who has a ClusterIP decides under which key all front
    /// ends of a Service port remember their clients.
    fn touch_rivals(&mut self, service: &Service) {
        let claims = service.frontends();
        let claimants = claims.flat_map(|claimed| self.claimants(claimed.frontend));
        let rivals: BTreeSet<_> = claimants.filter(|name| **name != service.name).collect();
        let rivals = rivals
            .into_iter()
            .filter_map(|name| self.services.get(name));
        let affine = rivals.filter(|rival| rival.affinity.is_some());
        let frontends = affine.flat_map(Service::frontends);
        let frontends: Vec<_> = frontends.map(|claimed| claimed.frontend).collect();
        for frontend in frontends {
            touch(&mut self.touched, frontend);
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
        for claimed in service.into_iter().flat_map(Service::frontends) {
            touch(&mut self.touched, claimed.frontend);
        }
        self.health_touched |= self.health_checked.contains(&slice.service);
    }

    /// Takes a complete list of ServiceCIDRs in place of all that are known.
    pub fn set_service_cidrs(&mut self, listed: Vec<ServiceCidr>) {
        let listed = listed.into_iter().map(|cidr| (cidr.name, cidr.networks));
        let listed = listed.collect();
        if self.service_cidrs != listed {
            self.service_cidrs = listed;
            self.touch_everything();
        }
    }

    /// Adds a ServiceCIDR or changes it.
    pub fn put_service_cidr(&mut self, cidr: ServiceCidr) {
        if self.service_cidrs.get(&cidr.name) != Some(&cidr.networks) {
            self.service_cidrs.insert(cidr.name, cidr.networks);
            self.touch_everything();
        }
    }

    /// Removes a ServiceCIDR, if it is known.
    pub fn remove_service_cidr(&mut self, name: &ObjectName) {
        if self.service_cidrs.remove(name).is_some() {
            self.touch_everything();
        }
    }

    /// Sets this node's Node object, or that it has none.
    pub fn set_node(&mut self, node: Option<Node>) {
        if self.node != node {
            self.node = node;
            self.touch_everything();
        }
    }

    /// Sets the addresses of this machine's interfaces, without loopback and link-local ones.
    pub fn set_host_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.host_addresses != addresses {
            self.host_addresses = addresses;
            self.touch_everything();
        }
    }

    fn touch_everything(&mut self) {
        for family in Family::ALL {
            self.touched.get_mut(family).everything = true;
        }
    }

    /// What changed in a family since this was last asked.
    pub fn take_touched(&mut self, family: Family) -> Touched {
        std::mem::take(self.touched.get_mut(family))
    }

    /// Whether anything changed in a family since that was last taken.
    pub fn is_touched(&self, family: Family) -> bool {
        let touched = self.touched.get(family);
        touched.everything || !touched.frontends.is_empty() || !touched.endpoints_here.is_empty()
    }

    /// Whether an EndpointSlice is known just as it is.
    pub fn is_known(&self, slice: &Slice) -> bool {
        self.slices.get(&slice.name) == Some(slice)
    }

    /// Whether what load balancers are told may have changed since this was last asked.
    pub fn take_health_touched(&mut self) -> bool {
        std::mem::take(&mut self.health_touched)
    }

    /// The Services with a port for health checks.
    pub fn health_checked(&self) -> impl Iterator<Item = &Service> {
        let names = self.health_checked.iter();
        names.filter_map(|name| self.services.get(name))
    }

    /// How many Services have rules.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The Service of this name, if it has rules.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
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

    /// The Service that has a front end, and what it claims there.
    pub fn owner(&self, frontend: Frontend) -> Option<(&Service, Claimed<'_>)> {
        let service = self.services.get(self.claimants(frontend).next()?)?;
        let claimed = service
            .frontends()
            .find(|claimed| claimed.frontend == frontend)?;
        Some((service, claimed))
    }

    /// The Services that claim a front end: first the one that has it, then those that do not get it.
    pub fn claimants(&self, frontend: Frontend) -> impl Iterator<Item = &ObjectName> {
        self.claims
            .range(Claim::first_of(frontend)..)
            .take_while(move |claim| claim.frontend == frontend)
            .map(|claim| &claim.service)
    }

    /// Why the Service that has a front end has it, and not the next one that claims it.
    pub fn precedence(&self, frontend: Frontend) -> &'static str {
        let mut claims = self.claims.range(Claim::first_of(frontend)..);
        match (claims.next(), claims.next()) {
            (Some(has), Some(next)) if has.is_outer != next.is_outer => "it is its ClusterIP",
            (Some(has), Some(next)) if has.created != next.created => "it was there first",
            _ => "neither says that it is older, and its name comes first",
        }
    }

    /// Whether an address is the ClusterIP of a Service.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.claims_at(address).any(|claim| !claim.is_outer)
    }

    /// Whether an address is a load-balancer or external one of a Service.
    pub fn is_outer_address(&self, address: IpAddr) -> bool {
        self.claims_at(address).any(|claim| claim.is_outer)
    }

    fn claims_at(&self, address: IpAddr) -> impl Iterator<Item = &Claim> {
        let first = Frontend::Address {
            ip: address,
            protocol: Protocol::Tcp,
            port: Port::MIN,
        };
        self.claims
            .range(Claim::first_of(first)..)
            .take_while(move |claim| claim.frontend.address() == Some(address))
    }

    /// The ClusterIPs of all Services, some of them more than once.
    pub fn cluster_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.addresses(family, false)
    }

    /// The load-balancer and external addresses of all Services, some of them more than once.
    pub fn outer_addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.addresses(family, true)
    }

    fn addresses(&self, family: Family, is_outer: bool) -> impl Iterator<Item = IpAddr> {
        let claims = self.claims.iter();
        let claims = claims.filter(move |claim| claim.is_outer == is_outer);
        claims.filter_map(move |claim| match claim.frontend {
            Frontend::Address { ip, .. } if Family::of(ip) == family => Some(ip),
            _ => None,
        })
    }

    /// The networks of all ServiceCIDRs.
    pub fn service_networks(&self) -> impl Iterator<Item = &IpNet> {
        self.service_cidrs.values().flatten()
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
    fn new(claimed: &Claimed<'_>, service: &Service) -> Self {
        Self {
            frontend: claimed.frontend,
            is_outer: claimed.exposure != Exposure::ClusterIp,
            created: service.created,
            service: service.name.clone(),
        }
    }

    /// What no claim to a front end comes before.
    fn first_of(frontend: Frontend) -> Self {
        Self {
            frontend,
            is_outer: false,
            created: i64::MIN,
            service: ObjectName::new("", ""),
        }
    }
}

fn touch(touched: &mut PerFamily<Touched>, frontend: Frontend) {
    let of_family = touched.get_mut(frontend.family());
    of_family.frontends.insert(frontend);
}

fn addresses_here(slice: &Slice) -> impl Iterator<Item = IpAddr> {
    let here = slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.place != Place::Elsewhere);
    here.map(|endpoint| endpoint.address)
}
