//! EndpointSlices and Endpoints that belong to no Service, with the Service that was probably meant; for those who write
//! such objects by hand, in the dry run and where the agent reads files.
//!
//! Where a cluster's controllers write the slices this does not happen; in files written by hand a label that is
//! missing or misspelt leaves a Service without endpoints, and nothing else shows why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Objects, SERVICE_NAME_LABEL, label, name_of};
use crate::model::{Complaint, ObjectName, nearest};

/// An object with endpoints that no Service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace and name.
    pub name: ObjectName,
    /// What keeps it from having a Service, and which one was probably meant.
    pub complaint: Complaint,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.complaint)
    }
}

/// The EndpointSlices that match no Service, and the Endpoints, in the objects' order.
pub fn strays(objects: &Objects) -> Vec<Stray> {
    let services = Services::of(objects);
    let slices = objects.slices.iter().filter_map(|slice| {
        Some(Stray {
            kind: "EndpointSlice",
            name: name_of(&slice.metadata),
            complaint: services.why_stray(&slice.metadata)?,
        })
    });
    let endpoints = objects.endpoints.iter().filter_map(|endpoints| {
        let name = name_of(&endpoints.metadata);
        let reason = services.missing(&name)?;
        Some(Stray {
            kind: "Endpoints",
            name,
            complaint: Complaint::new("metadata.name", reason),
        })
    });
    slices.chain(endpoints).collect()
}

/// The Services that there are.
struct Services {
    names: BTreeSet<ObjectName>,
    /// In which namespaces there is one of a name.
    namespaces: BTreeMap<String, Vec<ObjectName>>,
}

impl Services {
    fn of(objects: &Objects) -> Self {
        let metadata = objects.services.iter().map(|service| &service.metadata);
        let names: BTreeSet<ObjectName> = metadata.map(name_of).collect();
        let mut namespaces: BTreeMap<String, Vec<ObjectName>> = BTreeMap::new();
        for name in &names {
            let of_name = namespaces.entry(name.name().to_owned()).or_default();
            of_name.push(name.clone());
        }
        Self { names, namespaces }
    }

    /// Why a slice belongs to no Service; `None` if it belongs to one.
    fn why_stray(&self, slice: &ObjectMeta) -> Option<Complaint> {
        let field = format!("metadata.labels[{SERVICE_NAME_LABEL}]");
        let namespace = slice.namespace.as_deref().unwrap_or_default();
        if let Some(service) = label(slice, SERVICE_NAME_LABEL).filter(|name| !name.is_empty()) {
            let reason = self.missing(&ObjectName::new(namespace, service))?;
            return Some(Complaint::new(field, reason));
        }
        let labels = slice.labels.iter().flatten();
        let is_like = |key: &str| {
            nearest(key, [SERVICE_NAME_LABEL]).is_some()
                || key
                    .rsplit('/')
                    .next()
                    .is_some_and(|name| nearest(name, ["service-name"]).is_some())
        };
        let misspelt = labels.map(|(key, _)| key).find(|key| is_like(key));
        let hint = match (misspelt, self.by_slice_name(slice)) {
            (Some(key), _) if key == SERVICE_NAME_LABEL => "it is empty".to_owned(),
            (Some(key), _) => format!("missing; the label {key:?} is like it"),
            (None, Some(service)) => {
                format!("missing; by its name it may be of Service {service}")
            }
            (None, None) => "missing".to_owned(),
        };
        let reason = format!("{hint}; the slice belongs to no Service");
        Some(Complaint::new(field, reason))
    }

    /// The Service whose name a slice's name begins with, as controllers name them.
    fn by_slice_name(&self, slice: &ObjectMeta) -> Option<&ObjectName> {
        let slice = name_of(slice);
        let is_begin = |service: &&ObjectName| {
            let rest = slice.name().strip_prefix(service.name());
            service.namespace() == slice.namespace()
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
        };
        let begins = self.names.iter().filter(is_begin);
        begins.max_by_key(|service| service.name().len())
    }

    /// That there is no Service of a name, and the one that was probably meant; `None` if there is one.
    fn missing(&self, wanted: &ObjectName) -> Option<String> {
        if self.names.contains(wanted) {
            return None;
        }
        let meant = self.nearest(wanted);
        let hint = match meant {
            Some(meant) if meant.name() == wanted.name() => {
                format!("; there is {meant}, in another namespace")
            }
            Some(meant) => format!("; the nearest is {meant}"),
            None => String::new(),
        };
        Some(format!("there is no Service {wanted}{hint}"))
    }

    /// The Service that a name probably means: of the same name, else of one like it, here before elsewhere.
    fn nearest(&self, wanted: &ObjectName) -> Option<&ObjectName> {
        let same = self.namespaces.get(wanted.name());
        if let Some(elsewhere) = same.and_then(|names| names.first()) {
            return Some(elsewhere);
        }
        let here = self
            .names
            .iter()
            .filter(|name| name.namespace() == wanted.namespace());
        let near = nearest(wanted.name(), here.map(ObjectName::name)).or_else(|| {
            let all = self.namespaces.keys().map(String::as_str);
            nearest(wanted.name(), all)
        })?;
        let of_name = self.namespaces.get(near)?;
        let here = |name: &&ObjectName| name.namespace() == wanted.namespace();
        of_name.iter().find(here).or(of_name.first())
    }
}

/// That there is no Service of a name, and the one that was probably meant; `None` if there is one.
pub fn missing_service(objects: &Objects, wanted: &ObjectName) -> Option<String> {
    Services::of(objects).missing(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_slice_without_a_service_says_which_was_meant() {
        let services = [("shop", "web"), ("shop", "web-admin"), ("data", "db")];
        let services = services.map(|(namespace, name)| {
            let metadata = json!({ "namespace": namespace, "name": name });
            serde_json::from_value(json!({ "metadata": metadata })).unwrap()
        });
        let check = |name: &str, labels: Value, expected: Option<&str>| {
            let metadata = json!({ "namespace": "shop", "name": name, "labels": labels });
            let slice = json!({ "metadata": metadata, "addressType": "IPv4", "endpoints": [] });
            let objects = Objects {
                services: services.to_vec(),
                slices: vec![serde_json::from_value(slice).unwrap()],
                ..Objects::default()
            };
            let found = strays(&objects);
            let found: Vec<&str> = found.iter().map(|s| s.complaint.reason.as_str()).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        };
        let of = |service: &str| json!({ SERVICE_NAME_LABEL: service });
        check("x", of("web"), None);
        check(
            "x",
            of("wbe"),
            Some("there is no Service shop/wbe; the nearest is shop/web"),
        );
        check(
            "x",
            of("db"),
            Some("there is no Service shop/db; there is data/db, in another namespace"),
        );
        check("x", of("other"), Some("there is no Service shop/other"));
        let no_service = "; the slice belongs to no Service";
        let missing = |hint: &str| format!("missing{hint}{no_service}");
        check("x", json!({}), Some(&missing("")));
        check(
            "web-admin-4",
            json!({ "app": "web" }),
            Some(&missing(
                "; by its name it may be of Service shop/web-admin",
            )),
        );
        check(
            "x",
            json!({ "kubernetes.io/service_name": "web" }),
            Some(&missing(
                "; the label \"kubernetes.io/service_name\" is like it",
            )),
        );
        check(
            "x",
            json!({ "k8s.io/service-name": "web" }),
            Some(&missing("; the label \"k8s.io/service-name\" is like it")),
        );
        check("x", of(""), Some(&format!("it is empty{no_service}")));
    }

    #[test]
    fn endpoints_are_of_the_service_of_their_name() {
        let metadata = json!({ "namespace": "shop", "name": "wep" });
        let of_name = |name: &str| json!({ "metadata": { "namespace": "shop", "name": name } });
        let objects = Objects {
            services: vec![serde_json::from_value(of_name("web")).unwrap()],
            endpoints: vec![
                serde_json::from_value(json!({ "metadata": metadata })).unwrap(),
                serde_json::from_value(of_name("web")).unwrap(),
            ],
            ..Objects::default()
        };
        let found = strays(&objects);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "Endpoints shop/wep: metadata.name: there is no Service shop/wep; the nearest is shop/web"
            ]
        );
    }
}
