//! What the rules look up beside the front ends: addresses of the node and of Services, networks, allowed sources.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Member, PlanConfig, PodNetworks};
use crate::model::{Exposure, Family, Frontend, Service, Snapshot, Touched};

/// All members of a family.
pub(super) fn all(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
) -> impl Iterator<Item = Member> {
    let hairpin = snapshot.endpoints_here(family).map(Member::Hairpin);
    let cluster_ips = snapshot.cluster_ips(family).map(Member::ClusterIp);
    let outer = snapshot.outer_addresses(family).map(Member::OuterAddress);
    let limited = snapshot.services().filter(|s| s.source_ranges.is_some());
    let frontends = limited.flat_map(Service::frontends).map(|c| c.frontend);
    let frontends = frontends.filter(move |frontend| frontend.family() == family);
    hairpin
        .chain(cluster_ips)
        .chain(outer)
        .chain(frontends.flat_map(|frontend| guards(snapshot, frontend)))
        .chain(of_node(snapshot, config, family))
}

/// The members that a change may have affected.
pub(super) fn touched(snapshot: &Snapshot, touched: &Touched) -> impl Iterator<Item = Member> {
    let here = touched.endpoints_here.iter().copied();
    let hairpin = here.filter(|address| snapshot.is_endpoint_here(*address));
    let addresses = || touched.frontends.iter().filter_map(Frontend::address);
    let cluster_ips = addresses().filter(|address| snapshot.is_cluster_ip(*address));
    let outer = addresses().filter(|address| snapshot.is_outer_address(*address));
    let frontends = touched.frontends.iter().copied();
    hairpin
        .map(Member::Hairpin)
        .chain(cluster_ips.map(Member::ClusterIp))
        .chain(outer.map(Member::OuterAddress))
        .chain(frontends.flat_map(|frontend| guards(snapshot, frontend)))
}

/// Members that come from facts of the node and the cluster, not from Services and slices.
fn of_node(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
) -> impl Iterator<Item = Member> {
    let addresses = node_port_addresses(snapshot, config, family).into_iter();
    let services = disjoint(snapshot.service_networks(), family);
    let pods: &[IpNet] = match (&config.pod_networks, snapshot.node()) {
        (PodNetworks::Fixed(networks), _) => networks,
        (PodNetworks::OfNode, Some(node)) => &node.pod_networks,
        (PodNetworks::OfNode, None) => &[],
    };
    let pods = disjoint(pods.iter(), family);
    addresses
        .map(Member::NodePortAddress)
        .chain(services.into_iter().map(Member::ServiceNetwork))
        .chain(pods.into_iter().map(Member::PodNetwork))
}

/// Who may call a front end, if not everybody may: that is for load-balancer addresses with source ranges.
/// Where this node may, the front end's own address may too: the kernel takes it as source when the node calls it
/// and has it on an interface.
fn guards(snapshot: &Snapshot, frontend: Frontend) -> impl Iterator<Item = Member> {
    let owner = snapshot.owner(frontend);
    let ranges = owner
        .filter(|(_, claimed)| claimed.exposure == Exposure::LoadBalancer)
        .and_then(|(service, _)| service.source_ranges.as_deref());
    let allowed = ranges.map(|ranges| {
        let mut allowed = disjoint(ranges.iter(), frontend.family());
        let is_allowed = |address: &IpAddr| allowed.iter().any(|range| range.contains(address));
        if snapshot.host_addresses().iter().any(is_allowed) {
            allowed.extend(frontend.address().map(IpNet::from));
            allowed = IpNet::aggregate(&allowed);
        }
        allowed
    });
    // A range of /0 is no limit.
    let allowed = allowed.filter(|ranges| ranges.iter().all(|range| range.prefix_len() > 0));
    let guarded = allowed.as_ref().map(|_| Member::Guarded(frontend));
    let sources = allowed.into_iter().flatten();
    let sources = sources.map(move |range| Member::AllowedSource(frontend, range));
    guarded.into_iter().chain(sources)
}

/// The networks of one family, none within another.
fn disjoint<'a>(networks: impl Iterator<Item = &'a IpNet>, family: Family) -> Vec<IpNet> {
    let of_family = networks.filter(|network| Family::of(network.addr()) == family);
    IpNet::aggregate(&of_family.copied().collect())
}

/// The addresses of this node that have NodePorts. A Node's addresses that are not on the machine do no
/// harm: the rules also ask the routing table whether an address is local.
pub(super) fn node_port_addresses(
    snapshot: &Snapshot,
    config: &PlanConfig,
    family: Family,
) -> Vec<IpAddr> {
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    let host = snapshot.host_addresses().iter().filter(of_family).copied();
    let wanted = &config.node_port_addresses;
    let node = snapshot.node().filter(|_| wanted.primary);
    let all = wanted.primary && node.is_none();
    let is_wanted =
        |address: &IpAddr| all || wanted.networks.iter().any(|net| net.contains(address));
    let mut addresses: Vec<_> = host.filter(is_wanted).collect();
    let of_node = node.and_then(|node| node.addresses.iter().find(of_family));
    addresses.extend(of_node.filter(|address| !is_wanted(address)));
    addresses
}
