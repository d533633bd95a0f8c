//! The planned tables of one family: what the kernel should hold, independent of the back end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Frontend, Port};

/// The most back ends that one front end can have; more are left out.
///
/// A back end is picked by a 16-bit index whose upper half is kept for a second list under the same key.
pub const MAX_BACKENDS: usize = 32_768;

/// Everything that is planned for one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// What happens to new connections to each front end.
    pub rules: BTreeMap<Frontend, Rule>,
    /// Endpoints that may run on this node: one that reaches itself through a Service is masqueraded.
    pub hairpin: BTreeSet<IpAddr>,
    /// The addresses of this node that have NodePorts.
    pub node_port_addresses: BTreeSet<IpAddr>,
}

/// What happens to new connections to a front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// They go to one of the back ends, each as likely as the others.
    Balance {
        /// Which of them are masqueraded.
        masquerade: Masquerade,
        /// The back ends, sorted and each once; at least one, at most [`MAX_BACKENDS`].
        backends: Vec<Backend>,
    },
    /// They are refused at once: no endpoint can take them.
    Reject,
}

/// Which connections get an address of the node as their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Those that do not come from a pod of this cluster, if it is known which do.
    OutsidePods,
    /// All.
    Always,
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
