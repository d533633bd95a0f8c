//! ServiceCIDR → [`ServiceCidr`].

use k8s_openapi::api::networking::v1 as api;

use super::{keep_good, name_of, network};
use crate::model::{Parsed, ServiceCidr};

/// Translates a ServiceCIDR.
pub fn service_cidr(object: &api::ServiceCIDR) -> Parsed<ServiceCidr> {
    let name = name_of(&object.metadata);
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref());
    let mut complaints = Vec::new();
    let networks = cidrs.unwrap_or_default().iter().enumerate();
    let networks = networks.map(|(i, text)| network(text, format!("spec.cidrs[{i}]")));
    let networks = keep_good(networks, &mut complaints);
    Parsed {
        object: Some(ServiceCidr {
            name: name.clone(),
            networks,
        }),
        name,
        complaints,
        trigger: None,
    }
}
