//! The machine's devices → those where packets are translated, and what the programs are told of them.
//!
//! Pure. Clients outside come in at uplinks, and pods whose sockets no program sees at the devices of pods. Both have routes, or are
//! ports of a bridge that has: pods there answer each other without the bridge's own device.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxyd_ebpf_common as bpf;

use crate::model::{Device, Family, PerFamily};
use crate::plan::Detector;

/// Which devices are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection {
    /// Their names, which may end in `*`; none: those that a route leads to.
    pub(super) names: Vec<String>,
    /// What tells pods from others.
    pub(super) detector: PerFamily<Detector>,
}

/// A device where packets are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its name.
    pub(super) name: String,
    /// Whether its packets begin with an Ethernet header.
    pub(super) is_ethernet: bool,
    /// What the programs are told of it.
    pub(super) told: bpf::Device,
}

/// What the programs are told of the node itself.
pub(super) fn of_node(devices: &[Device]) -> bpf::Device {
    let main =
        |family| main_address(devices, family).map_or(bpf::Address::NONE, bpf::Address::from);
    bpf::Device {
        v4: main(Family::V4),
        v6: main(Family::V6),
        has_pods: 0,
        is_of_pod: 0,
        mtu: 0,
    }
}

impl Selection {
    /// Those that are wanted, by index.
    pub(super) fn of(&self, devices: &[Device]) -> BTreeMap<u32, Wanted> {
        let node = of_node(devices);
        let wanted = devices.iter().filter(|device| self.wants(device, devices));
        let wanted = wanted.map(|device| {
            let own = |family, main| {
                device
                    .addresses
                    .get(family)
                    .map_or(main, bpf::Address::from)
            };
            let told = bpf::Device {
                v4: own(Family::V4, node.v4),
                v6: own(Family::V6, node.v6),
                has_pods: self.has_pods(device, devices).into(),
                is_of_pod: (device.leads_elsewhere && device.has_single_routes).into(),
                mtu: device.mtu,
            };
            let wanted = Wanted {
                name: device.name.clone(),
                is_ethernet: device.is_ethernet,
                told,
            };
            (device.index, wanted)
        });
        wanted.collect()
    }

    fn wants(&self, device: &Device, devices: &[Device]) -> bool {
        if self.names.is_empty() {
            let is_bridge = |other: &Device| Some(other.index) == device.bridge;
            let mut carriers = devices.iter().filter(|other| is_bridge(other));
            return device.has_routes || carriers.any(|bridge| bridge.has_routes);
        }
        self.names.iter().any(|name| match name.strip_suffix('*') {
            Some(prefix) => device.name.starts_with(prefix),
            None => device.name == *name,
        })
    }

    fn has_pods(&self, device: &Device, devices: &[Device]) -> bool {
        let is_bridge = |other: &&Device| Some(other.index) == device.bridge;
        let bridge = devices.iter().find(is_bridge);
        let mut names = [Some(device), bridge].into_iter().flatten();
        names.any(|device| self.is_for_pods(&device.name))
    }

    fn is_for_pods(&self, device: &str) -> bool {
        let mut detectors = Family::ALL
            .into_iter()
            .map(|family| self.detector.get(family));
        detectors.any(|detector| match detector {
            Detector::Interface { name, prefix: true } => device.starts_with(name),
            Detector::Interface {
                name,
                prefix: false,
            } => device == name,
            Detector::None | Detector::Source => false,
        })
    }
}

/// The address that the node has for devices without one: that towards the world, else any.
fn main_address(devices: &[Device], family: Family) -> Option<IpAddr> {
    let uplinks = devices.iter().filter(|device| device.has_default_route);
    let mut addresses = uplinks
        .chain(devices)
        .map(|device| *device.addresses.get(family));
    addresses.find_map(|address| address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ip;

    fn device(name: &str, address: Option<&str>, is_uplink: bool) -> Device {
        Device {
            index: name.len() as u32,
            name: name.to_owned(),
            is_ethernet: true,
            has_routes: true,
            has_default_route: is_uplink,
            has_single_routes: !is_uplink,
            leads_elsewhere: true,
            mtu: 1_500,
            bridge: None,
            addresses: PerFamily::from_fn(|family| {
                address.map(ip).filter(|ip| Family::of(*ip) == family)
            }),
        }
    }

    fn selection(names: &[&str], detector: &Detector) -> Selection {
        Selection {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            detector: PerFamily::from_fn(|_| detector.clone()),
        }
    }

    fn names(selection: &Selection, devices: &[Device]) -> Vec<String> {
        let wanted = selection.of(devices).into_values();
        wanted.map(|wanted| wanted.name).collect()
    }

    #[test]
    fn devices_with_routes_are_wanted_or_those_that_are_named() {
        let mut port = device("port", None, false);
        port.has_routes = false;
        let devices = [port, device("cali1", None, false), device("e0", None, true)];
        assert_eq!(
            names(&selection(&[], &Detector::None), &devices),
            ["e0", "cali1"]
        );
        let mut pod = device("veth123", None, false);
        pod.has_routes = false;
        pod.bridge = Some(4);
        let bridged = [device("cni0", None, false), pod];
        assert_eq!(
            names(&selection(&[], &Detector::None), &bridged),
            ["cni0", "veth123"]
        );
        let named = |list: &[&str]| names(&selection(list, &Detector::None), &devices);
        assert_eq!(named(&["port", "cali*"]), ["port", "cali1"]);
        assert_eq!(named(&["cali"]), Vec::<String>::new());
    }

    #[test]
    fn a_device_without_an_address_has_that_towards_the_world() {
        let devices = [
            device("docker0", Some("172.17.0.1"), false),
            device("cali1", None, false),
            device("e0", Some("192.168.0.2"), true),
        ];
        let wanted = selection(&[], &Detector::None).of(&devices);
        let addresses: Vec<_> = wanted.values().map(|wanted| wanted.told.v4).collect();
        let expected = ["192.168.0.2", "192.168.0.2", "172.17.0.1"];
        assert_eq!(addresses, expected.map(|text| bpf::Address::from(ip(text))));
        assert!(
            wanted
                .values()
                .all(|wanted| wanted.told.v6 == bpf::Address::NONE)
        );
    }

    #[test]
    fn behind_a_device_is_a_pod_if_its_other_end_is_elsewhere_and_leads_to_no_network() {
        let [mut here, mut bridge] = ["tap123", "cni0"].map(|name| device(name, None, false));
        here.leads_elsewhere = false;
        bridge.has_single_routes = false;
        let devices = [
            here,
            bridge,
            device("cali1", None, false),
            device("e0", None, true),
        ];
        let wanted = selection(&[], &Detector::None).of(&devices);
        let mut of_pods = wanted.values().filter(|wanted| wanted.told.is_of_pod != 0);
        assert_eq!(of_pods.next().map(|wanted| &*wanted.name), Some("cali1"));
        assert_eq!(of_pods.next(), None);
    }

    #[test]
    fn devices_of_pods_are_told_by_their_names() {
        let detector = Detector::Interface {
            name: "cali".to_owned(),
            prefix: true,
        };
        let devices = [device("cali1", None, false), device("e0", None, true)];
        let wanted = selection(&[], &detector).of(&devices);
        let have_pods: Vec<_> = wanted.values().map(|wanted| wanted.told.has_pods).collect();
        assert_eq!(have_pods, [0, 1]);
    }
}
