//! How pods are told apart: kube-proxy's detectors of local traffic → what the plan and the skeleton need.

use ipnet::IpNet;

use super::check;
use super::given::{ConfigError, Given};
use super::raw::Raw;
use crate::model::{Family, PerFamily};
use crate::plan::Detector;
use crate::plan::PodNetworks;

/// The longest name of an interface that Linux has (`IFNAMSIZ` less the zero at its end).
const MAX_NAME_BYTES: usize = 15;

/// How pods are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detection {
    /// For the plan.
    pub(super) pod_networks: PodNetworks,
    /// For the skeleton.
    pub(super) detector: PerFamily<Detector>,
    /// What to tell about it.
    pub(super) note: Option<String>,
}

/// Chooses the detector.
///
/// # Errors
/// That there is no such mode, or what a mode needs and was not given.
pub(super) fn detection(raw: &Raw) -> Result<Detection, ConfigError> {
    let networks = check::networks(raw.cluster_cidr.as_ref())?;
    let Some(mode) = &raw.detect_local_mode else {
        return Ok(by_cluster_cidr(networks));
    };
    let interface = |given: Option<&Given<String>>, flag, field, prefix| {
        let Some(given) = given else {
            let reason = format!(
                "it needs {}: give --{flag}, or {field} in the file of --config",
                if prefix {
                    "a prefix of names"
                } else {
                    "the name of an interface"
                }
            );
            return Err(mode.place.refuse(&mode.value, reason));
        };
        let name = given.parse(|name| interface_name(name))?;
        Ok(everywhere(
            PodNetworks::Fixed(Vec::new()),
            Detector::Interface { name, prefix },
        ))
    };
    match mode.value.as_str() {
        "ClusterCIDR" => Ok(Detection {
            note: networks.is_empty().then(|| {
                format!(
                    "{}: ClusterCIDR without --cluster-cidr tells no pods apart: nothing is \
                     masqueraded on its way to a ClusterIP",
                    mode.place
                )
            }),
            ..by_cluster_cidr(networks)
        }),
        "NodeCIDR" => Ok(everywhere(PodNetworks::OfNode, Detector::Source)),
        "BridgeInterface" => interface(
            raw.pod_bridge_interface.as_ref(),
            "pod-bridge-interface",
            "detectLocal.bridgeInterface",
            false,
        ),
        "InterfaceNamePrefix" => interface(
            raw.pod_interface_name_prefix.as_ref(),
            "pod-interface-name-prefix",
            "detectLocal.interfaceNamePrefix",
            true,
        ),
        _ => Err(mode.place.refuse(
            &mode.value,
            "write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
        )),
    }
}

/// By the networks that were given; a family without any has no detector.
fn by_cluster_cidr(networks: Vec<IpNet>) -> Detection {
    let has = |family| {
        let mut families = networks.iter().map(|network| Family::of(network.addr()));
        families.any(|other| other == family)
    };
    Detection {
        detector: PerFamily::from_fn(|family| {
            if has(family) {
                Detector::Source
            } else {
                Detector::None
            }
        }),
        pod_networks: PodNetworks::Fixed(networks),
        note: None,
    }
}

/// One detector for both families.
fn everywhere(pod_networks: PodNetworks, detector: Detector) -> Detection {
    Detection {
        pod_networks,
        detector: PerFamily::from_fn(|_| detector.clone()),
        note: None,
    }
}

/// A name that the kernel permits (`dev_valid_name`) and that means itself in nft, or how such a name begins.
fn interface_name(name: &str) -> Result<String, String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/:\"\\*".contains(c);
    if name.len() > MAX_NAME_BYTES {
        Err(format!(
            "longer than the name of an interface can be, {MAX_NAME_BYTES} bytes"
        ))
    } else if name.contains(odd) || [".", ".."].contains(&name) {
        Err("not the name of an interface, such as cni0".to_owned())
    } else {
        Ok(name.to_owned())
    }
}
