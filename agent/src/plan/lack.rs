//! Why clients of a front end get no endpoint, for people: the dry run and the agent say it alike.
//!
//! Pure. Asked about front ends that are refused or dropped; the plan itself does not depend on it.

use std::collections::BTreeMap;
use std::fmt;

use super::Backend;
use crate::model::{Endpoint, Family, Frontend, Protocol, Slice, Snapshot};

/// The most ports of slices that are named: an object's author decides how many there are.
const MOST_NAMED: usize = 5;

/// Why no endpoint can serve a front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// No Service claims it.
    NoService,
    /// No EndpointSlice names the Service.
    NoSlice,
    /// The slices have other ports: what they have, and what was looked for.
    OtherPorts {
        /// Each port of the slices, by name and protocol.
        have: Vec<SlicePortName>,
        /// The Service's port.
        wanted: SlicePortName,
    },
    /// The slices have no endpoint of this family.
    NoneOf(Family),
    /// There are endpoints, and none can take connections.
    NotReady {
        /// How many do not serve and do not terminate.
        starting: usize,
        /// How many terminate and do not serve any more.
        terminating: usize,
    },
}

/// The name and protocol by which ports of Services and slices are joined.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePortName {
    name: Box<str>,
    protocol: Protocol,
}

/// Why a front end has no endpoint, given that it has none.
pub fn lack(snapshot: &Snapshot, frontend: Frontend) -> Lack {
    let Some((service, claimed)) = snapshot.owner(frontend) else {
        return Lack::NoService;
    };
    let wanted = SlicePortName {
        name: claimed.port.name.clone(),
        protocol: claimed.port.protocol,
    };
    let slices: Vec<&Slice> = snapshot.slices_of(&service.name).collect();
    if slices.is_empty() {
        return Lack::NoSlice;
    }
    let mut have = Vec::new();
    // Each address and port once, with whether some entry of it does not terminate.
    let mut endpoints: BTreeMap<Backend, bool> = BTreeMap::new();
    for slice in slices {
        for port in &slice.ports {
            let name = SlicePortName {
                name: port.name.clone(),
                protocol: port.protocol,
            };
            if name == wanted {
                let of_family = |e: &&Endpoint| Family::of(e.address) == frontend.family();
                for endpoint in slice.endpoints.iter().filter(of_family) {
                    let (ip, port) = (endpoint.address, port.port);
                    let stays = endpoints.entry(Backend { ip, port }).or_default();
                    *stays |= !endpoint.terminating;
                }
            }
            have.push(name);
        }
    }
    have.sort();
    have.dedup();
    if !have.contains(&wanted) {
        return Lack::OtherPorts { have, wanted };
    }
    if endpoints.is_empty() {
        return Lack::NoneOf(frontend.family());
    }
    let starting = endpoints.values().filter(|stays| **stays).count();
    Lack::NotReady {
        starting,
        terminating: endpoints.len() - starting,
    }
}

impl Lack {
    /// Whether it is the same trouble, though counts may differ.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoService => f.write_str("no Service has it"),
            Self::NoSlice => f.write_str("it has no EndpointSlice"),
            Self::OtherPorts { have, wanted } if have.is_empty() => {
                write!(f, "its EndpointSlices have no ports, not {wanted}")
            }
            Self::OtherPorts { have, wanted } => {
                let named = have.iter().take(MOST_NAMED).map(ToString::to_string);
                let named: Vec<String> = named.collect();
                write!(f, "its EndpointSlices have {}", named.join(", "))?;
                if let more @ 1.. = have.len().saturating_sub(MOST_NAMED) {
                    write!(f, " and {more} more")?;
                }
                write!(f, ", not {wanted}")
            }
            Self::NoneOf(family) => write!(f, "its EndpointSlices have no {family} endpoint"),
            Self::NotReady {
                starting,
                terminating,
            } => match (starting, terminating) {
                (1, 0) => f.write_str("its only endpoint is not ready"),
                (0, 1) => f.write_str("its only endpoint is terminating"),
                (starting, 0) => write!(f, "none of its {starting} endpoints is ready"),
                (0, terminating) => write!(f, "all of its {terminating} endpoints are terminating"),
                (starting, terminating) => write!(
                    f,
                    "none of its {} endpoints is ready, {terminating} of them terminating",
                    starting + terminating
                ),
            },
        }
    }
}

impl fmt::Display for SlicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "a {} port without a name", self.protocol)
        } else {
            write!(f, "{:?} {}", self.name, self.protocol)
        }
    }
}
