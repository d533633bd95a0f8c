//! Which of the node's addresses have NodePorts, as `--nodeport-addresses` says it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, PerFamily};

/// Which of the node's addresses have NodePorts (`--nodeport-addresses`; KEP-6032): all that one of these names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The addresses of the Node object, the first of each family; where there is no Node object, every address of
    /// the machine (`primary`).
    pub primary: bool,
    /// The addresses of the machine that lie in one of these networks. Loopback addresses never do.
    pub networks: Vec<IpNet>,
    /// The loopback address of a family, 127.0.0.1 or `::1` (`localhost`, or a network of loopback addresses).
    pub localhost: PerFamily<bool>,
}

impl NodePortAddresses {
    /// The addresses of the Node object alone.
    pub fn primary() -> Self {
        Self {
            primary: true,
            ..Self::default()
        }
    }

    /// The addresses of the machine in these networks alone.
    pub fn within(networks: Vec<IpNet>) -> Self {
        Self {
            networks,
            ..Self::default()
        }
    }

    /// Whether some address of the machine, loopback apart, has none because of these settings.
    pub(super) fn is_limited(&self, has_node: bool) -> bool {
        let all = self
            .networks
            .iter()
            .any(|network| network.prefix_len() == 0);
        !all && (!self.primary || has_node)
    }

    /// The loopback address of a family, where it was asked for.
    pub fn loopback(&self, family: Family) -> Option<IpAddr> {
        self.localhost.get(family).then(|| family.loopback())
    }
}
