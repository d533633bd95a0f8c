//! Service ports that no endpoint can serve: clients are refused.
//!
//! Kept up with what each sync planned, so that a change costs what it touches. Why it is so is said as the dry run
//! says it. Pure but for the log.

use std::collections::BTreeMap;
use std::fmt;

use tracing::{info, warn};

use crate::model::{Family, Frontend, ObjectName, PerFamily, Port, Protocol, Scope, Snapshot};
use crate::plan::{Lack, Rule, Tables, lack};
use crate::telling::Telling;

/// The most Service ports that are named at a time; others are counted.
const MOST_NAMED: usize = 5;

/// The Service ports without endpoints.
#[derive(Debug, Default)]
pub(super) struct Outages {
    families: PerFamily<Tracker>,
    telling: Telling<ServicePort, PerFamily<Option<Lack>>>,
}

/// Those of one family.
#[derive(Debug, Default)]
struct Tracker {
    /// The front ends that are refused, and whose they are.
    frontends: BTreeMap<Frontend, ServicePort>,
    /// How many front ends of each port are refused, and why.
    ports: BTreeMap<ServicePort, (usize, Lack)>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ServicePort {
    service: ObjectName,
    port: Port,
    protocol: Protocol,
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {} {}", self.service, self.port, self.protocol)
    }
}

impl Outages {
    /// How many Service ports have no endpoint in a family.
    pub(super) fn count(&self, family: Family) -> usize {
        self.families.get(family).ports.len()
    }

    /// Takes note of what was planned within a scope.
    pub(super) fn update(
        &mut self,
        family: Family,
        snapshot: &Snapshot,
        planned: &Tables,
        scope: &Scope,
    ) {
        let tracker = self.families.get_mut(family);
        let mut changed = Vec::new();
        match scope {
            Scope::All => {
                let before = std::mem::take(tracker);
                changed.extend(before.ports.into_keys());
                for (frontend, rule) in &planned.rules {
                    changed.extend(tracker.put(snapshot, *frontend, Some(rule)));
                }
            }
            Scope::Touched(touched) => {
                for frontend in &touched.frontends {
                    changed.extend(tracker.frontends.get(frontend).cloned());
                    let rule = planned.rules.get(frontend);
                    changed.extend(tracker.put(snapshot, *frontend, rule));
                }
            }
        }
        changed.into_iter().for_each(|port| self.telling.note(port));
    }

    /// Whether there is something to log.
    pub(super) fn has_news(&self) -> bool {
        self.telling.has_news()
    }

    /// Logs what changed since this was last called.
    pub(super) fn tell(&mut self, snapshot: &Snapshot) {
        let families = &self.families;
        let current = |port: &ServicePort| {
            let lacks = PerFamily::from_fn(|family| {
                let ports = &families.get(family).ports;
                ports.get(port).map(|(_, lack)| lack.clone())
            });
            (lacks.v4.is_some() || lacks.v6.is_some()).then_some(lacks)
        };
        let is_same = |told: &PerFamily<Option<Lack>>, now: &PerFamily<Option<Lack>>| {
            let is_like = |family| match (told.get(family), now.get(family)) {
                (Some(told), Some(now)) => told.is_like(now),
                (told, now) => told.is_none() == now.is_none(),
            };
            Family::ALL.into_iter().all(is_like)
        };
        let news = self.telling.take(current, is_same);
        for (port, lacks) in news.new.iter().take(MOST_NAMED) {
            warn!(
                "Service {port}: refused, no endpoint can serve it ({})",
                reasons(lacks)
            );
        }
        if let more @ 1.. = news.new.len().saturating_sub(MOST_NAMED) {
            warn!("and {more} more Service ports without an endpoint that can serve them");
        }
        // One that is gone is not served again.
        let is_there = |port: &ServicePort| {
            let service = snapshot.service(&port.service);
            let ports = service.into_iter().flat_map(|service| service.ports.iter());
            let mut ports = ports.map(|port| (port.port, port.protocol));
            ports.any(|of| of == (port.port, port.protocol))
        };
        let back = news.over.iter().map(|(port, _)| port);
        let back: Vec<&ServicePort> = back.filter(|port| is_there(port)).collect();
        for port in back.iter().take(MOST_NAMED) {
            info!("Service {port}: has endpoints again");
        }
        if let more @ 1.. = back.len().saturating_sub(MOST_NAMED) {
            info!("and {more} more Service ports that have endpoints again");
        }
    }
}

/// Why a port has no endpoints, in one family or both.
fn reasons(lacks: &PerFamily<Option<Lack>>) -> String {
    match (&lacks.v4, &lacks.v6) {
        (Some(v4), Some(v6)) if v4 == v6 => v4.to_string(),
        (Some(v4), Some(v6)) => format!("{}: {v4}; {}: {v6}", Family::V4, Family::V6),
        (Some(lack), None) | (None, Some(lack)) => lack.to_string(),
        (None, None) => String::new(),
    }
}

impl Tracker {
    /// Takes note of a front end's rule. Returns the port that it leaves without endpoints.
    fn put(
        &mut self,
        snapshot: &Snapshot,
        frontend: Frontend,
        rule: Option<&Rule>,
    ) -> Option<ServicePort> {
        if let Some(port) = self.frontends.remove(&frontend)
            && let Some((frontends, _)) = self.ports.get_mut(&port)
        {
            *frontends -= 1;
            if *frontends == 0 {
                self.ports.remove(&port);
            }
        }
        let Some(Rule::Reject) = rule else {
            return None;
        };
        let (service, claimed) = snapshot.owner(frontend)?;
        let port = ServicePort {
            service: service.name.clone(),
            port: claimed.port.port,
            protocol: claimed.port.protocol,
        };
        let lack = lack(snapshot, frontend);
        let (frontends, why) = self
            .ports
            .entry(port.clone())
            .or_insert_with(|| (0, lack.clone()));
        *frontends += 1;
        *why = lack;
        self.frontends.insert(frontend, port.clone());
        Some(port)
    }
}

#[cfg(test)]
mod tests;
