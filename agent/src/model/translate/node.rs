//! Node → [`Node`].

use k8s_openapi::api::core::v1 as api;

use super::name_of;
use crate::model::Node;

/// Translates a Node. Addresses that are host names are left out.
pub fn node(object: &api::Node) -> Node {
    let addresses = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let of_type = |wanted: &'static str| {
        addresses
            .iter()
            .filter(move |address| address.type_ == wanted)
            .filter_map(|address| address.address.parse().ok())
    };
    Node {
        name: name_of(&object.metadata).name().to_owned(),
        addresses: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
    }
}
