//! Which kinds matter, and which ones were probably meant to. Pure.

use crate::model::nearest;

/// A kind that matters, with the `apiVersion` that it has.
const KINDS: [(&str, &str); 5] = [
    ("Service", "v1"),
    ("Endpoints", "v1"),
    ("Node", "v1"),
    ("EndpointSlice", "discovery.k8s.io/v1"),
    ("ServiceCIDR", "networking.k8s.io/v1"),
];

/// What is wrong with a kind that is none of those that matter, if it was probably meant to be one. Kinds of groups that
/// others define, such as Knative's Service, and other kinds of Kubernetes are nothing for a service proxy.
pub(super) fn misspelt(api: &str, kind: &str) -> Option<String> {
    let group = api.split_once('/').map_or("", |(group, _)| group);
    if group.contains('.') && !group.ends_with(".k8s.io") {
        return None;
    }
    let known = KINDS.map(|(kind, _)| kind);
    let meant = nearest(kind, known)?;
    let (_, version) = KINDS.into_iter().find(|(kind, _)| *kind == meant)?;
    let article = if meant.starts_with('E') { "an" } else { "a" };
    let wrong_version = (api != version).then(|| {
        format!("apiVersion: {api:?} is not known for {article} {meant}; write {version}")
    });
    if kind == meant {
        return wrong_version;
    }
    // A group has kinds of its own, which only look like these.
    let is_of_group = api == version || group.is_empty();
    is_of_group.then(|| {
        let and_version = wrong_version
            .map(|_| format!(", with apiVersion: {version}"))
            .unwrap_or_default();
        format!("kind: {kind:?} is not known; write {meant}{and_version}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_were_meant_are_told_and_others_are_none_of_ours() {
        let check = |api: &str, kind: &str, expected: Option<&str>| {
            assert_eq!(misspelt(api, kind).as_deref(), expected, "{api} {kind}");
        };
        check(
            "v1",
            "service",
            Some("kind: \"service\" is not known; write Service"),
        );
        check(
            "v1",
            "Services",
            Some("kind: \"Services\" is not known; write Service"),
        );
        check(
            "discovery.k8s.io/v1",
            "endpointslice",
            Some("kind: \"endpointslice\" is not known; write EndpointSlice"),
        );
        check(
            "v1",
            "EndpointSlices",
            Some(
                "kind: \"EndpointSlices\" is not known; write EndpointSlice, with apiVersion: discovery.k8s.io/v1",
            ),
        );
        check(
            "v1",
            "EndpointSlice",
            Some("apiVersion: \"v1\" is not known for an EndpointSlice; write discovery.k8s.io/v1"),
        );
        check(
            "discovery.k8s.io/v1beta1",
            "EndpointSlice",
            Some(
                "apiVersion: \"discovery.k8s.io/v1beta1\" is not known for an EndpointSlice; write discovery.k8s.io/v1",
            ),
        );
        check(
            "",
            "Service",
            Some("apiVersion: \"\" is not known for a Service; write v1"),
        );
        check(
            "apps/v1",
            "Service",
            Some("apiVersion: \"apps/v1\" is not known for a Service; write v1"),
        );
        for (api, kind) in [
            ("serving.knative.dev/v1", "Service"),
            ("v1", "Pod"),
            ("v1", "Secret"),
            ("v1", "ServiceAccount"),
            ("v1", "Namespace"),
            ("apps/v1", "Deployment"),
            ("metrics.k8s.io/v1beta1", "NodeMetrics"),
            ("metrics.k8s.io/v1beta1", "Nodes"),
            ("networking.k8s.io/v1", "Ingress"),
        ] {
            check(api, kind, None);
        }
    }
}
