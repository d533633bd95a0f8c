//! ServiceCIDRs: the networks that ClusterIPs are allocated from.

use ipnet::IpNet;

use super::ObjectName;

/// What proxyd keeps of a ServiceCIDR (`networking.k8s.io/v1`, Kubernetes 1.33).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name; it has no namespace.
    pub name: ObjectName,
    /// Its networks, at most one of each family.
    pub networks: Vec<IpNet>,
}
