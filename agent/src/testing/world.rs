//! What the events so far come to, kept in the simplest way; and engines for a node of that small world.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{good, node_facts, plan_config};
use crate::dataplane::recording::Recording;
use crate::diff::Held;
use crate::engine::Engine;
use crate::event::Event;
use crate::model::{Family, Node, ObjectName, Parsed, PerFamily, Service, ServiceCidr, Slice};
use crate::plan::{PlanConfig, PodNetworks};

pub(crate) fn engine() -> Engine {
    Engine::new(PlanConfig {
        pod_networks: PodNetworks::OfNode,
        ..plan_config()
    })
}

pub(crate) fn lists(services: &[Service], slices: &[Slice]) -> [Event; 2] {
    [
        Event::ServicesListed(services.iter().map(|s| good(s, &s.name)).collect()),
        Event::SlicesListed(slices.iter().map(|s| good(s, &s.name)).collect()),
    ]
}

/// The events after which an engine waits for nothing: there is no Service yet.
pub(crate) fn beginning() -> impl Iterator<Item = Event> {
    lists(&[], &[]).into_iter().chain(node_facts())
}

pub(crate) fn handle(engine: &mut Engine, events: impl IntoIterator<Item = Event>) {
    events.into_iter().for_each(|event| engine.handle(event));
}

pub(crate) fn sync(engine: &mut Engine, dataplane: &mut Recording) {
    for family in Family::ALL {
        engine.sync(family, dataplane).unwrap();
    }
}

/// What the data plane holds, with the places of back ends forgotten.
pub(crate) fn held(dataplane: &Recording) -> PerFamily<Held> {
    PerFamily::from_fn(|family| {
        let mut held = dataplane.held.get(family).clone();
        held.entries.values_mut().for_each(|entry| {
            entry.slots.sort();
            entry.local.sort();
        });
        held
    })
}

/// All that was heard of.
#[derive(Default)]
pub(crate) struct World {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, Slice>,
    service_cidrs: BTreeMap<ObjectName, ServiceCidr>,
    node: Option<Node>,
    addresses: BTreeSet<IpAddr>,
}

impl World {
    pub(crate) fn handle(&mut self, event: Event) {
        fn put<T>(map: &mut BTreeMap<ObjectName, T>, Parsed { name, object, .. }: Parsed<T>) {
            match object {
                Some(object) => map.insert(name, object),
                None => map.remove(&name),
            };
        }
        match event {
            Event::ServicesListed(list) => {
                self.services.clear();
                list.into_iter()
                    .for_each(|parsed| put(&mut self.services, parsed));
            }
            Event::ServiceApplied(parsed) => put(&mut self.services, parsed),
            Event::ServiceDeleted(name) => drop(self.services.remove(&name)),
            Event::SlicesListed(list) => {
                self.slices.clear();
                list.into_iter()
                    .for_each(|parsed| put(&mut self.slices, parsed));
            }
            Event::SliceApplied(parsed) => put(&mut self.slices, parsed),
            Event::SliceDeleted(name) => drop(self.slices.remove(&name)),
            Event::ServiceCidrsListed(list) => {
                self.service_cidrs.clear();
                list.into_iter()
                    .for_each(|parsed| put(&mut self.service_cidrs, parsed));
            }
            Event::ServiceCidrApplied(parsed) => put(&mut self.service_cidrs, parsed),
            Event::ServiceCidrDeleted(name) => drop(self.service_cidrs.remove(&name)),
            Event::AllListed {
                services,
                slices,
                service_cidrs,
                node,
                whole: _,
                refused: _,
            } => {
                self.handle(Event::ServicesListed(services));
                self.handle(Event::SlicesListed(slices));
                self.handle(Event::ServiceCidrsListed(service_cidrs));
                self.handle(Event::NodeChanged(node));
            }
            Event::NodeChanged(node) => self.node = node,
            Event::HostAddressesChanged(addresses) => self.addresses = addresses,
            Event::KernelChanged { .. } => {}
        }
    }

    /// What an agent that starts now is told, in the order in which it may be told.
    pub(crate) fn events(&self) -> Vec<Event> {
        let services: Vec<_> = self.services.values().cloned().collect();
        let slices: Vec<_> = self.slices.values().cloned().collect();
        let cidrs = self.service_cidrs.values();
        let facts = [
            Event::NodeChanged(self.node.clone()),
            Event::ServiceCidrsListed(cidrs.map(|c| good(c, &c.name)).collect()),
            Event::HostAddressesChanged(self.addresses.clone()),
        ];
        lists(&services, &slices).into_iter().chain(facts).collect()
    }

    /// What a fresh agent loads into an empty kernel.
    pub(crate) fn loaded(&self) -> Recording {
        let mut engine = engine();
        handle(&mut engine, self.events());
        let mut dataplane = Recording::default();
        sync(&mut engine, &mut dataplane);
        dataplane
    }
}
