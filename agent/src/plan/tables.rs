//! The planned tables of one family: what the kernel should hold, independent of the back end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::model::{AffinityTimeout, Frontend, Port};

/// The most back ends that one front end can have in each of its lists; more are left out.
///
/// A back end is picked by a 16-bit index: the lower half is for endpoints on every node, the upper for those here.
pub const MAX_BACKENDS: usize = 32_768;

/// Everything that is planned for one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// What happens to new connections to each front end.
    pub rules: BTreeMap<Frontend, Rule>,
    /// What the rules look up beside the front ends.
    pub members: BTreeSet<Member>,
}

/// What happens to new connections to a front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// They go to a back end.
    Balance(Balance),
    /// They are dropped: endpoints exist, but the policy allows none of them.
    Drop,
    /// They are refused at once: no endpoint can take them.
    Reject,
}

/// Connections go to one of the back ends, each as likely as the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// Who gets which back ends, and whose source is masqueraded.
    pub policy: Policy,
    /// The back ends, sorted and each once; at least one, at most [`MAX_BACKENDS`].
    pub backends: Vec<Backend>,
    /// The back ends for clients outside the cluster with [`Policy::ExternalLocal`], in the same way; none: their
    /// connections are dropped.
    pub local: Vec<Backend>,
    /// How a client keeps its back end, if it does.
    pub affinity: Option<Affinity>,
}

/// How a client keeps its back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// For how long after its last new connection.
    pub timeout: AffinityTimeout,
    /// Under which front end the choice is remembered: for all front ends of a Service port in one family the one at its
    /// ClusterIP, but for each its own if their affinity is mixed.
    pub key: Frontend,
    /// Whether front ends of the Service port, or clients of one, choose among different back ends, so that not all that is remembered
    /// for one is for the others.
    pub is_mixed: bool,
}

/// Who gets which back ends of a front end, and whose source is masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// All get all; who is not a pod is masqueraded, if it is known which sources are pods.
    Cluster,
    /// All get all, and are masqueraded.
    External,
    /// Clients outside get the local ones and keep their source; pods get all and keep theirs; this node gets
    /// all and is masqueraded (`externalTrafficPolicy: Local` with its short circuits).
    ExternalLocal,
}

/// An entry of a set that the rules look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// An endpoint that may run on this node: one that reaches itself through a Service is masqueraded.
    Hairpin(IpAddr),
    /// An address of this node that has NodePorts.
    NodePortAddress(IpAddr),
    /// The ClusterIP of a Service: ports that it does not have are refused.
    ClusterIp(IpAddr),
    /// A network of ServiceCIDRs: addresses that no Service has are dropped. These do not overlap.
    ServiceNetwork(IpNet),
    /// A network of pods, for detectors that go by address. These do not overlap.
    PodNetwork(IpNet),
    /// A front end that only some sources may call.
    Guarded(Frontend),
    /// Sources that may call a guarded front end. Those of one front end do not overlap.
    AllowedSource(Frontend, IpNet),
    /// A load-balancer or external address of a Service: ports that no Service has there are refused where a packet would be sent
    /// back the way that it came.
    OuterAddress(IpAddr),
}

impl Member {
    /// Those of a set that come from some front ends.
    pub fn of_frontends<'a>(
        members: &'a BTreeSet<Self>,
        frontends: &'a BTreeSet<Frontend>,
    ) -> impl Iterator<Item = Self> + 'a {
        let addresses: BTreeSet<IpAddr> = frontends.iter().filter_map(Frontend::address).collect();
        let addresses = addresses.into_iter();
        let addresses = addresses.flat_map(|ip| [Self::ClusterIp(ip), Self::OuterAddress(ip)]);
        let guarded = frontends.iter().copied().map(Self::Guarded);
        let single = addresses.chain(guarded);
        let sources = frontends.iter().flat_map(|frontend| {
            let first = IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0);
            let last = IpNet::new_assert(Ipv6Addr::from([0xff; 16]).into(), 128);
            let of = |network| Self::AllowedSource(*frontend, network);
            members.range(of(first)..=of(last)).copied()
        });
        single
            .filter(|member| members.contains(member))
            .chain(sources)
    }
}

impl Tables {
    /// The part that comes from some front ends.
    pub fn part(&self, frontends: &BTreeSet<Frontend>) -> Self {
        let rules = frontends.iter();
        let rules = rules.filter_map(|f| Some((*f, self.rules.get(f)?.clone())));
        Self {
            rules: rules.collect(),
            members: Member::of_frontends(&self.members, frontends).collect(),
        }
    }
}

/// The address and port that a connection is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// The endpoint's port.
    pub port: Port,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port.get()).fmt(f)
    }
}
