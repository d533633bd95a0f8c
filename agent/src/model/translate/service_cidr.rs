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

#[cfg(test)]
mod tests {
    use super::super::parse_network;

    #[test]
    fn networks_are_read_in_every_way_that_they_are_written() {
        let check = |text: &str, expected: Option<&str>| {
            let found = parse_network(text).map(|network| network.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        };
        check("10.1.2.3/8", Some("10.0.0.0/8"));
        check(" 010.000.000.000/08 ", Some("10.0.0.0/8"));
        check("FD00::1/64", Some("fd00::/64"));
        check("::ffff:10.1.2.3/104", Some("10.0.0.0/8"));
        check("::ffff:0:0/96", Some("0.0.0.0/0"));
        check("::/64", Some("::/64"));
        check("::ffff:10.1.2.3/64", Some("::/64"));
        check("10.0.0.0", None);
        check("10.0.0.0/33", None);
        check("::ffff:10.0.0.0/129", None);
    }
}
