//! Which endpoints take a front end's new connections: readiness, topology, traffic policy.

use crate::model::{Endpoint, Family, Place, ServicePort, Slice};

use super::{Backend, tables::MAX_BACKENDS};

/// The endpoints behind a Service port in one family, by back end and each once.
pub(super) struct Candidates<'a>(Vec<(Backend, &'a Endpoint)>);

impl<'a> Candidates<'a> {
    /// Joins a Service port with the ports of its slices, by name and protocol. Of an address and port that is
    /// there twice the best entry counts, whatever the slices are named: a host-network pod that is replaced has
    /// the address of the one before it. (kube-proxy's `endpointslicecache` prefers one that does not terminate,
    /// though it may not be ready.)
    pub(super) fn of(
        slices: impl Iterator<Item = &'a Slice>,
        port: &ServicePort,
        family: Family,
    ) -> Self {
        let mut candidates: Vec<(Backend, &Endpoint)> = slices
            .flat_map(|slice| {
                let joined = slice
                    .ports
                    .iter()
                    .filter(|p| p.name == port.name && p.protocol == port.protocol);
                joined.flat_map(|p| slice.endpoints.iter().map(move |e| (e, p.port)))
            })
            .filter(|(endpoint, _)| Family::of(endpoint.address) == family)
            .map(|(endpoint, port)| {
                let ip = endpoint.address;
                (Backend { ip, port }, endpoint)
            })
            .collect();
        candidates.sort_by(|(one, of_one), (other, of_other)| {
            let better = || preference(of_one).cmp(&preference(of_other));
            one.cmp(other).then_with(better)
        });
        candidates.dedup_by_key(|(backend, _)| *backend);
        Self(candidates)
    }

    /// Endpoints on every node: the ready ones that the slices' hints allow, or, if none is ready, those that
    /// still serve while they terminate (KEP-1669).
    pub(super) fn everywhere(&self, zone: Option<&str>) -> Vec<Backend> {
        let ready = || self.0.iter().filter(|(_, endpoint)| endpoint.ready);
        let topology = Topology::of(ready().map(|(_, endpoint)| *endpoint), zone);
        let allowed = |endpoint: &Endpoint| endpoint.ready && topology.allows(endpoint, zone);
        self.pick(allowed, |_| true)
    }

    /// Endpoints on this node: the ready ones, or, if none is ready, those that still serve while they
    /// terminate. Hints do not count here.
    pub(super) fn here(&self) -> Vec<Backend> {
        let is_here = |endpoint: &Endpoint| endpoint.place == Place::Here;
        self.pick(|endpoint| endpoint.ready && is_here(endpoint), is_here)
    }

    /// Endpoints in any state.
    pub(super) fn all(&self) -> impl Iterator<Item = Backend> {
        self.0.iter().map(|(backend, _)| *backend)
    }

    /// Endpoints that answer: a flow to one of them goes on, though it may take no new ones. With
    /// `publishNotReadyAddresses` an endpoint is ready, and takes flows, that does not serve.
    pub(super) fn answering(&self) -> impl Iterator<Item = Backend> {
        let answering = self.0.iter().filter(|(_, e)| e.ready || e.serving);
        answering.map(|(backend, _)| *backend)
    }

    /// The wanted ones, or, if there is none, those of a place that serve while they terminate.
    fn pick(
        &self,
        wanted: impl Fn(&Endpoint) -> bool,
        in_place: impl Fn(&Endpoint) -> bool,
    ) -> Vec<Backend> {
        let filter = |keep: &dyn Fn(&Endpoint) -> bool| -> Vec<Backend> {
            let kept = self.0.iter().filter(|(_, endpoint)| keep(endpoint));
            kept.map(|(backend, _)| *backend)
                .take(MAX_BACKENDS)
                .collect()
        };
        let ready = filter(&wanted);
        if ready.is_empty() {
            filter(&|e| e.serving && e.terminating && in_place(e))
        } else {
            ready
        }
    }
}

/// What makes one entry for an address better than another, best first: it takes new connections, or it takes them
/// where nobody else does. The rest only makes the choice independent of the order of slices.
fn preference(endpoint: &Endpoint) -> impl Ord + use<'_> {
    let draining = endpoint.serving && endpoint.terminating;
    (
        !endpoint.ready,
        !draining,
        !endpoint.serving,
        endpoint.terminating,
        endpoint.place,
        endpoint.hints.as_deref(),
    )
}

/// Whose endpoints are preferred (`trafficDistribution`, as the slices' hints have it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Any,
}

impl Topology {
    /// Hints count only if every ready endpoint has them and one is for this node, or else for its zone.
    fn of<'a>(ready: impl Iterator<Item = &'a Endpoint> + Clone, zone: Option<&str>) -> Self {
        let all_have = |has: fn(&Endpoint) -> bool| ready.clone().all(has);
        let one_is = |topology: Self| ready.clone().any(|e| topology.allows(e, zone));
        let for_nodes = |e: &Endpoint| e.hints.as_ref().is_some_and(|h| h.this_node.is_some());
        let for_zones = |e: &Endpoint| e.hints.as_ref().is_some_and(|h| !h.zones.is_empty());
        if all_have(for_nodes) && one_is(Self::SameNode) {
            Self::SameNode
        } else if all_have(for_zones) && one_is(Self::SameZone) {
            Self::SameZone
        } else {
            Self::Any
        }
    }

    fn allows(self, endpoint: &Endpoint, zone: Option<&str>) -> bool {
        let hints = endpoint.hints.as_deref();
        match self {
            Self::SameNode => hints.and_then(|hints| hints.this_node) == Some(true),
            Self::SameZone => {
                let in_zone = |zones: &[Box<str>]| zones.iter().any(|z| Some(&**z) == zone);
                hints.is_some_and(|hints| in_zone(&hints.zones))
            }
            Self::Any => true,
        }
    }
}
