//! The one owner of state: takes events, and brings the kernel to what they come to.
//!
//! It does no I/O of its own and reads no clock: [`crate::machine`] feeds it and tells it when to sync. What the kernel
//! holds is known from the last commit, or unknown (at the start, after any failure); then it is read back and
//! everything is planned and compared anew. So nothing that failed can be lost. What others change is put back to what
//! was known, and then synced as ever.

mod contested;
mod localhost;
mod node;
mod outages;
mod synced;
mod without_local;

use std::collections::BTreeSet;

use crate::complaints::Complaints;
use crate::dataplane::{Dataplane, DataplaneError, Restored};
use crate::diff::{Held, diff};
use crate::event::Event;
use crate::model::{Family, Frontend, Node, PerFamily, Protocol, Scope, Snapshot};
use crate::plan::{self, Flows, PlanConfig};
use crate::status::{HealthChecks, LocalNodePorts};
use contested::Contested;
use outages::Outages;
pub use synced::{Changed, Synced};
pub use without_local::WithoutLocal;

/// The agent's state.
#[derive(Debug)]
pub struct Engine {
    config: PlanConfig,
    /// TCP connections to endpoints that are gone are to be ended.
    ends_tcp: bool,
    /// Families that the kernel lacks: of these nothing is ever written.
    absent: PerFamily<bool>,
    snapshot: Snapshot,
    /// What the kernel holds; `None` if that is unknown.
    held: PerFamily<Option<Held>>,
    /// Someone else changed what the kernel holds.
    meddled: PerFamily<bool>,
    services: Complaints,
    slices: Complaints,
    service_cidrs: Complaints,
    /// The front ends of syncs that failed: whether their changes were made is not known, so the next one that does not fail tells of
    /// their flows too.
    unconfirmed: PerFamily<Unconfirmed>,
    /// How many documents of manifests could not be read.
    unread: usize,
    contested: Contested,
    outages: Outages,
    awaited: Awaited,
    notes: node::NodeNotes,
    /// Part of what should be served is not known, so nothing that the kernel holds is changed or removed.
    only_adds: bool,
    without_local: PerFamily<without_local::Tracker>,
    localhost: localhost::Tracker,
    /// The node's addresses may have changed, at which load balancers ask.
    health_touched: bool,
}

/// What has not been heard of yet. Until all of it is known nothing is written: a half-read list must never
/// delete a rule that an earlier agent left.
#[derive(Debug)]
struct Awaited {
    services: bool,
    slices: bool,
    service_cidrs: bool,
    node: bool,
    host_addresses: bool,
}

/// Front ends whose flows a sync that succeeds tells of.
#[derive(Debug, Default)]
struct Unconfirmed {
    /// Those that may have changed.
    changed: BTreeSet<Frontend>,
    /// Those that began to be balanced.
    opened: BTreeSet<Frontend>,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(config: PlanConfig) -> Self {
        Self {
            config,
            ends_tcp: false,
            absent: PerFamily::default(),
            snapshot: Snapshot::default(),
            held: PerFamily::default(),
            meddled: PerFamily::default(),
            services: Complaints::about("Service"),
            slices: Complaints::about("EndpointSlice"),
            service_cidrs: Complaints::about("ServiceCIDR"),
            unconfirmed: PerFamily::default(),
            unread: 0,
            contested: Contested::default(),
            outages: Outages::default(),
            awaited: Awaited {
                services: true,
                slices: true,
                service_cidrs: true,
                node: true,
                host_addresses: true,
            },
            notes: node::NodeNotes::default(),
            only_adds: false,
            without_local: PerFamily::default(),
            localhost: localhost::Tracker::default(),
            health_touched: false,
        }
    }

    /// Makes it tell of TCP connections too, as of UDP flows, which of them a change leaves in place.
    #[must_use]
    pub fn ending_tcp(self, ends_tcp: bool) -> Self {
        Self { ends_tcp, ..self }
    }

    /// Makes it leave families alone that the kernel lacks.
    #[must_use]
    pub fn without(self, absent: PerFamily<bool>) -> Self {
        Self { absent, ..self }
    }

    /// Makes it tell which NodePorts are to be relayed at the loopback addresses of these families.
    #[must_use]
    pub fn relaying(self, families: PerFamily<bool>) -> Self {
        Self {
            localhost: localhost::Tracker::of(families),
            ..self
        }
    }

    /// Takes note of an event. The kernel follows with the next [`Engine::sync`].
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::ServicesListed(list) => {
                let list = list.into_iter().map(|parsed| self.config.admit(parsed));
                let list = self.services.sift_list(list.collect());
                self.snapshot.set_services(list);
                self.awaited.services = false;
            }
            Event::ServiceApplied(parsed) => match self.services.sift(self.config.admit(parsed)) {
                Ok(service) => self.snapshot.put_service(service),
                Err(name) => self.snapshot.remove_service(&name),
            },
            Event::ServiceDeleted(name) => {
                self.snapshot.remove_service(&name);
                self.services.forget(&name);
            }
            Event::SlicesListed(list) => {
                self.snapshot.set_slices(self.slices.sift_list(list));
                self.awaited.slices = false;
            }
            Event::SliceApplied(parsed) => match self.slices.sift(parsed) {
                Ok(slice) => self.snapshot.put_slice(slice),
                Err(name) => self.snapshot.remove_slice(&name),
            },
            Event::SliceDeleted(name) => {
                self.snapshot.remove_slice(&name);
                self.slices.forget(&name);
            }
            Event::ServiceCidrsListed(list) => {
                let list = self.service_cidrs.sift_list(list);
                self.snapshot.set_service_cidrs(list);
                self.awaited.service_cidrs = false;
            }
            Event::ServiceCidrApplied(parsed) => match self.service_cidrs.sift(parsed) {
                Ok(cidr) => self.snapshot.put_service_cidr(cidr),
                Err(name) => self.snapshot.remove_service_cidr(&name),
            },
            Event::ServiceCidrDeleted(name) => {
                self.snapshot.remove_service_cidr(&name);
                self.service_cidrs.forget(&name);
            }
            Event::AllListed {
                services,
                slices,
                service_cidrs,
                node,
                whole,
                refused,
            } => {
                self.unread = refused;
                if whole && self.only_adds {
                    // What was left alone meanwhile has to be found.
                    self.held = PerFamily::default();
                }
                self.only_adds = !whole;
                self.handle(Event::ServicesListed(services));
                self.handle(Event::SlicesListed(slices));
                self.handle(Event::ServiceCidrsListed(service_cidrs));
                // A node without an API server needs no Node object.
                self.set_node(node, false);
            }
            Event::NodeChanged(node) => {
                self.set_node(node, true);
            }
            Event::HostAddressesChanged(addresses) => {
                self.snapshot.set_host_addresses(addresses);
                self.awaited.host_addresses = false;
                self.tell_of_addresses();
            }
            Event::KernelChanged { family, .. } => *self.meddled.get_mut(family) = true,
        }
    }

    /// Takes note of the Node object. `matters`: load balancers leave a node alone that has none.
    fn set_node(&mut self, node: Option<Node>, matters: bool) {
        self.notes.node(node.is_some(), matters);
        self.snapshot.set_node(node);
        self.awaited.node = false;
        self.tell_of_addresses();
    }

    fn tell_of_addresses(&mut self) {
        if !self.awaited.node && !self.awaited.host_addresses {
            self.notes.addresses(&self.snapshot, &self.config);
        }
    }

    /// Whether everything was heard of once, and syncs write.
    pub fn is_ready(&self) -> bool {
        let Awaited {
            services,
            slices,
            service_cidrs,
            node,
            host_addresses,
        } = self.awaited;
        !(services || slices || service_cidrs || node || host_addresses)
    }

    /// What is known of the cluster.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// How many objects of each kind have a field that is not served, and how many documents could not be read.
    pub fn refused(&self) -> [(&'static str, usize); 4] {
        let of = |complaints: &Complaints| (complaints.kind(), complaints.count());
        [
            of(&self.services),
            of(&self.slices),
            of(&self.service_cidrs),
            ("document", self.unread),
        ]
    }

    /// How many Service ports have no endpoint that can serve them, as of the last sync of a family.
    pub fn without_endpoints(&self, family: Family) -> usize {
        self.outages.count(family)
    }

    /// Whether [`Engine::tell`] has something to log.
    pub fn has_to_tell(&self) -> bool {
        let complaints = [&self.services, &self.slices, &self.service_cidrs];
        complaints.into_iter().any(Complaints::has_news)
            || self.contested.has_news()
            || self.outages.has_news()
    }

    /// Logs what is wrong with objects and which Service ports have no endpoints, as far as that changed since the last
    /// call. How often objects change is up to others: so whoever calls sets the pace, and each call logs a bounded
    /// number of lines.
    pub fn tell(&mut self) {
        for complaints in [
            &mut self.services,
            &mut self.slices,
            &mut self.service_cidrs,
        ] {
            complaints.tell();
        }
        self.contested.tell(&self.snapshot);
        self.outages.tell(&self.snapshot);
    }

    /// Whether a sync of a family has something to do.
    pub fn is_due(&self, family: Family) -> bool {
        let is_unknown = self.held.get(family).is_none() || *self.meddled.get(family);
        let has_work = is_unknown || self.snapshot.is_touched(family);
        self.is_ready() && !self.absent.get(family) && has_work
    }

    /// Whether the cluster changed in a family since its last sync.
    pub fn has_news(&self, family: Family) -> bool {
        self.is_ready() && self.snapshot.is_touched(family)
    }

    /// What load balancers may know of Services, if that may have changed since this was last asked. To be asked
    /// when what it says is in the kernel.
    pub fn take_health_checks(&mut self) -> Option<HealthChecks> {
        let is_touched = self.snapshot.take_health_touched() | self.health_touched;
        self.health_touched = false;
        is_touched.then(|| plan::health_checks(&self.snapshot, &self.config))
    }

    /// Which NodePorts are to be relayed at the loopback addresses, if that changed since this was last asked.
    pub fn take_local_node_ports(&mut self) -> Option<LocalNodePorts> {
        self.localhost.take()
    }

    /// How many ports of Services have no endpoint that their traffic policy allows, as of the last sync of a family.
    pub fn without_local_endpoints(&self, family: Family) -> WithoutLocal {
        self.without_local.get(family).counts()
    }

    /// Brings one family in the kernel to what is desired; nothing is done before [`Engine::is_ready`].
    ///
    /// # Errors
    /// Why the kernel does not hold what it should. The next sync reads it back and tries again; until then
    /// the kernel holds what it held before.
    pub fn sync(
        &mut self,
        family: Family,
        dataplane: &mut dyn Dataplane,
    ) -> Result<Synced, DataplaneError> {
        if !self.is_ready() {
            return Ok(Synced::default());
        }
        let touched = self.snapshot.take_touched(family);
        self.health_touched |= touched.everything;
        let unconfirmed = self.unconfirmed.get_mut(family);
        unconfirmed.changed.extend(&touched.frontends);
        self.contested.update(&self.snapshot, &touched);
        let held = self.held.get_mut(family).take();
        let full = held.is_none();
        let restored = match &held {
            Some(held) if *self.meddled.get(family) => Some(dataplane.restore(family, held)?),
            _ => None,
        };
        let scope = if full || touched.everything {
            Scope::All
        } else {
            Scope::Touched(touched)
        };
        let desired = plan::tables(&self.snapshot, &self.config, family, &scope);
        let mut held = match held {
            Some(held) => held,
            None => dataplane.resync(family, &desired)?,
        };
        *self.meddled.get_mut(family) = false;
        let mut delta = diff(&held, &desired, &scope);
        if self.only_adds {
            delta.keep_additions(&held);
        }
        let opened = delta.rules.iter().filter(|change| change.opens());
        let unconfirmed = self.unconfirmed.get_mut(family);
        unconfirmed.opened.extend(opened.map(|change| change.key));
        unconfirmed
            .changed
            .extend(delta.rules.iter().map(|change| change.key));
        if !delta.is_empty() {
            dataplane.apply(family, &held, &delta)?;
            held.apply(&delta);
        }
        *self.held.get_mut(family) = Some(held);
        let without_local = self.without_local.get_mut(family);
        without_local.update(&self.snapshot, &desired, &scope);
        self.localhost
            .update(family, &self.snapshot, &desired, &scope);
        self.outages
            .update(family, &self.snapshot, &desired, &scope);
        let put_back = restored.as_ref().map_or(0, |restored| restored.changes);
        // Of a full sync that is not worth the time.
        let changed = (!full).then(|| Changed::of(&self.snapshot, &delta, restored.as_ref()));
        let is_all = matches!(scope, Scope::All);
        let [tracked, tcp] = self.flows(family, is_all, restored);
        Ok(Synced {
            full,
            planned_all: is_all,
            changes: delta.len() + put_back,
            changed: changed.unwrap_or_default(),
            tracked,
            tcp,
        })
    }

    /// What becomes of the flows of front ends that a sync was about, `is_any` or of all, of those that were removed, and of those that
    /// were restored: of those that are tracked, and of TCP's. While rules are only added, the old flows are as good as the old rules.
    fn flows(
        &mut self,
        family: Family,
        mut is_any: bool,
        restored: Option<Restored>,
    ) -> [Flows; 2] {
        let Unconfirmed {
            changed: mut frontends,
            mut opened,
        } = std::mem::take(self.unconfirmed.get_mut(family));
        match restored.map(|restored| restored.frontends) {
            Some(None) => {
                is_any = true;
                opened.extend(self.snapshot.frontends(family));
            }
            Some(Some(restored)) => {
                opened.extend(&restored);
                frontends.extend(restored);
            }
            None => {}
        }
        let opened = plan::opened(&self.snapshot, &self.config, family, opened);
        if self.only_adds {
            return [opened, Flows::default()];
        }
        if is_any {
            frontends.extend(self.snapshot.frontends(family));
        }
        let flows = |protocol| {
            let frontends = frontends.iter().copied();
            plan::flows(&self.snapshot, &self.config, family, protocol, frontends)
        };
        let tcp = self.ends_tcp.then(|| flows(Protocol::Tcp));
        let mut tracked = flows(Protocol::Udp);
        tracked.merge(opened);
        [tracked, tcp.unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests;
