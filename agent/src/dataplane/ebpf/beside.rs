//! What the rules beside the programs have to do: as little as possible, since rules that balance have every connection of
//! the machine tracked. I/O: connection tracking is asked.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::super::DataplaneError;
use super::super::nft::{Duty, Nft};
use super::share::{duty_for, is_for_rules};
use crate::diff::{Delta, Held};
use crate::host::conntrack;
use crate::model::{Family, Frontend, PerFamily, Port};
use crate::plan::{Member, Tables};

/// How often connection tracking is asked, at most: an answer takes a second where a million connections are tracked.
const INTERVAL: Duration = Duration::from_secs(60);

/// Which families have connections that rules of an earlier agent translated, when last asked.
#[derive(Debug, Default)]
pub(super) struct Beside {
    waits_since: PerFamily<Option<Instant>>,
}

impl Beside {
    /// Has the rules of a family do what they have to: balance what programs do not, and translate connections that rules
    /// translated before, as long as there are any.
    pub(super) fn settle(
        &mut self,
        family: Family,
        nft: &mut Nft,
        desired: &Tables,
    ) -> Result<(), DataplaneError> {
        nft.set_duty(family, duty_for(desired));
        *self.waits_since.get_mut(family) = None;
        if nft.duty(family) == Duty::Balance || nft.are_ours(family)? {
            return Ok(());
        }
        let serves = |frontend: &Frontend| desired.rules.contains_key(frontend);
        let at_node = |ip| desired.members.contains(&Member::NodePortAddress(ip));
        if has_translated(family, serves, at_node) {
            info!("{family}: rules translate connections that are open; they stay until those end");
            nft.set_duty(family, Duty::Balance);
            *self.waits_since.get_mut(family) = Some(Instant::now());
        }
        Ok(())
    }

    /// Has rules that balance do so until everything is looked at anew.
    pub(super) fn stay(&mut self, family: Family) {
        *self.waits_since.get_mut(family) = None;
    }

    /// What rules have to do after a delta, if it is something else than before.
    pub(super) fn change(
        &mut self,
        family: Family,
        duty: Duty,
        held: &Held,
        delta: &Delta,
    ) -> Option<Duty> {
        if duty == Duty::Refuse {
            let mut new = delta.rules.iter();
            let needed = new.any(|rule| rule.to.is_some_and(|to| is_for_rules(rule.key, to)));
            return needed.then_some(Duty::Balance);
        }
        let waits_since = self.waits_since.get_mut(family);
        if waits_since.is_none_or(|since| since.elapsed() < INTERVAL) {
            return None;
        }
        *waits_since = Some(Instant::now());
        let serves = |frontend: &Frontend| held.entries.contains_key(frontend);
        let at_node = |ip| held.members.contains(&Member::NodePortAddress(ip));
        if has_translated(family, serves, at_node) {
            return None;
        }
        *waits_since = None;
        info!("{family}: no connection is left that rules translated; rules balance no more");
        Some(Duty::Refuse)
    }
}

/// Whether a connection to a Service is open that rules translated. If that cannot be told, there may be.
fn has_translated(
    family: Family,
    serves: impl Fn(&Frontend) -> bool,
    at_node: impl Fn(IpAddr) -> bool,
) -> bool {
    let found = conntrack::any(|flow| {
        let ip = flow.destination.ip();
        let Some(port) = Port::new(flow.destination.port()) else {
            return false;
        };
        let mut called = Frontend::called(ip, flow.protocol, port, at_node(ip));
        Family::of(ip) == family
            && flow.reply_source != flow.destination
            && called.any(|frontend| serves(&frontend))
    });
    found.unwrap_or_else(|error| {
        warn!("{error}; rules stay as if there were connections that they translate");
        true
    })
}
