//! The programs of an earlier agent, where rules balance again: they take no new connections, and translate those that are
//! open until the next agent finds none. I/O: system calls.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proxyd_ebpf_common as bpf;
use tracing::info;

use super::super::nft::Nft;
use super::super::{Dataplane, DataplaneError, Restored};
use super::layout::is_of;
use super::{Places, attach};
use crate::diff::{Delta, Held};
use crate::model::{Family, PerFamily};
use crate::plan::Tables;

/// The rules, with programs beside them that have nothing new to do.
#[derive(Debug)]
pub struct Retiring {
    nft: Nft,
    places: Places,
    /// Whether the programs still take connections of a family.
    takes: PerFamily<bool>,
}

impl Retiring {
    /// Makes programs retire as soon as rules are there.
    pub fn new(nft: Nft, places: &Places) -> Self {
        Self {
            nft,
            places: places.clone(),
            takes: PerFamily::from_fn(|_| true),
        }
    }

    fn retire(&mut self, family: Family) -> Result<(), DataplaneError> {
        *self.takes.get_mut(family) = false;
        let frontends =
            attach::open_map::<bpf::FrontendKey, bpf::Frontend>(&self.places, "frontends");
        let Ok(mut frontends) = frontends else {
            // They are of another layout, whose connections nobody here knows.
            return self.remove();
        };
        let keys: Result<Vec<_>, _> = frontends.keys().collect();
        let keys = keys.map_err(|error| DataplaneError::bpf("reading front ends", error))?;
        for key in keys.iter().filter(|key| is_of(family, key)) {
            frontends
                .remove(key)
                .map_err(|error| DataplaneError::bpf("removing a front end", error))?;
        }
        if Family::ALL
            .into_iter()
            .any(|family| *self.takes.get(family))
        {
            return Ok(());
        }
        if self.has_connections()? {
            info!(
                "the programs of --backend ebpf go on with connections that are open, until the agent starts anew"
            );
            return Ok(());
        }
        self.remove()
    }

    /// Whether a connection is open that the programs translate.
    fn has_connections(&self) -> Result<bool, DataplaneError> {
        let flows = attach::open_map::<bpf::Tuple, bpf::Flow>(&self.places, "ingress_flows")?;
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map_err(|errno| DataplaneError::bpf("asking for the time", errno))?;
        let now = Duration::from(now).as_nanos();
        let now = u64::try_from(now).expect("a machine runs for less than 500 years");
        Ok(flows.iter().flatten().any(|(_, flow)| flow.is_alive(now)))
    }

    fn remove(&self) -> Result<(), DataplaneError> {
        if attach::detach(&self.places)? {
            info!("the programs of --backend ebpf were removed; the rules serve alone");
        }
        Ok(())
    }
}

impl Dataplane for Retiring {
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        let held = self.nft.resync(family, desired)?;
        if *self.takes.get(family) {
            self.retire(family)?;
        }
        Ok(held)
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        self.nft.apply(family, held, delta)
    }

    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError> {
        self.nft.restore(family, held)
    }

    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError> {
        self.nft.cleanup(family)
    }
}
