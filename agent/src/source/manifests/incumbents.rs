//! Who had an address first, where files do not say when a Service was made.
//!
//! Of Services that claim one front end the older has it, and an API server says of each when it was made. Files seldom
//! do. So the order in which Services are first read stands for it: those of the first reading are as old as can be,
//! those that come later are younger than all that are there. Pure; forgotten when the agent ends.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::model::ObjectName;
use crate::model::translate::name_of;

/// When Services were first read that do not say when they were made, in seconds since the epoch.
#[derive(Debug, Default)]
pub(super) struct Incumbents {
    since: BTreeMap<ObjectName, i64>,
    has_begun: bool,
}

impl Incumbents {
    /// Gives a `creationTimestamp` to each Service of a reading that has none. Those that are not in it are forgotten.
    pub(super) fn date(&mut self, services: &mut [Service]) {
        let known = services.iter().filter_map(|service| {
            let own = service.metadata.creation_timestamp.as_ref();
            let own = own.map(|time| time.0.as_second());
            own.or_else(|| self.since.get(&name_of(&service.metadata)).copied())
        });
        let youngest = known.max().unwrap_or_default();
        let newcomer = if self.has_begun {
            youngest.saturating_add(1)
        } else {
            0
        };
        self.has_begun = true;
        let before = std::mem::take(&mut self.since);
        for service in services {
            if service.metadata.creation_timestamp.is_some() {
                continue;
            }
            let name = name_of(&service.metadata);
            let since = before.get(&name).copied().unwrap_or(newcomer);
            let time = Timestamp::from_second(since).unwrap_or(Timestamp::MAX);
            service.metadata.creation_timestamp = Some(Time(time));
            self.since.insert(name, since);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, created: Option<&str>) -> Service {
        let metadata = json!({ "name": name, "namespace": "x", "creationTimestamp": created });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    /// The names of Services, oldest first, those of one age by name.
    fn order(incumbents: &mut Incumbents, services: &[(&str, Option<&str>)]) -> Vec<String> {
        let services = services.iter().map(|(name, at)| service(name, *at));
        let mut services: Vec<Service> = services.collect();
        incumbents.date(&mut services);
        let mut ages: Vec<_> = services
            .iter()
            .map(|service| {
                let created = service.metadata.creation_timestamp.as_ref().unwrap();
                (created.0, service.metadata.name.clone().unwrap())
            })
            .collect();
        ages.sort();
        ages.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn newcomers_are_younger_than_those_that_were_there() {
        let mut incumbents = Incumbents::default();
        let new = "2026-05-01T12:00:00Z";
        let newer = "2026-05-02T12:00:00Z";
        assert_eq!(
            order(&mut incumbents, &[("m", None), ("k", None)]),
            ["k", "m"]
        );
        let both = [("a", None), ("k", None), ("m", None)];
        assert_eq!(order(&mut incumbents, &both), ["k", "m", "a"]);
        // One that says when it was made is as old as it says.
        let dated = [("a", None), ("b", Some(new)), ("k", None), ("m", None)];
        assert_eq!(order(&mut incumbents, &dated), ["k", "m", "a", "b"]);
        let after = [
            ("aa", None),
            ("b", Some(new)),
            ("k", None),
            ("z", Some(newer)),
        ];
        assert_eq!(order(&mut incumbents, &after), ["k", "b", "z", "aa"]);
        // One that went is new when it comes again.
        let again = [("a", None), ("aa", None), ("m", None)];
        assert_eq!(order(&mut incumbents, &again), ["aa", "a", "m"]);
    }
}
