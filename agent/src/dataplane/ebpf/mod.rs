//! The eBPF back end: sockets of this node, and of its pods, are connected to back ends by BPF programs; what those leave
//! alone goes by the nftables rules, which stand beside them with the same content.
//!
//! `layout` says what the maps hold, `order` in which order they are written. Only `maps`, `attach` and `links` do I/O. Needs Linux
//! 5.15 (cookies of network namespaces) and cgroup v2; tried with 6.18.

mod attach;
mod layout;
mod links;
mod maps;
mod order;
pub mod peer;
pub mod peers;
pub mod render;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::nft::Nft;
use super::{Dataplane, DataplaneError, Restored};
use crate::diff::{Delta, Held};
use crate::event::Event;
use crate::model::{Family, PerFamily};
use crate::plan::Tables;
use layout::Entries;
use links::{Links, Watcher};
use maps::Maps;
use order::writes;

/// Where things of the machine are that the programs need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The cgroup whose sockets are balanced; `None`: the root of the hierarchy, and so all of the machine's.
    pub cgroup: Option<PathBuf>,
    /// The directory in a BPF filesystem where programs and maps stay while no agent runs.
    pub pins: PathBuf,
}

/// What is told of changes by others.
type Report = Arc<dyn Fn(Event) -> bool + Send + Sync>;

/// The programs at their hooks, and the rules beside them.
pub struct Ebpf {
    nft: Nft,
    places: Places,
    maps: Maps,
    /// The families that the maps do not hold yet.
    unfilled: PerFamily<bool>,
    links: Arc<Links>,
    /// Kept, since it ends with this.
    _watcher: Watcher,
    report: Report,
}

impl fmt::Debug for Ebpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ebpf").finish_non_exhaustive()
    }
}

impl Ebpf {
    /// Loads the programs and attaches them, all or none, in place of those of an earlier agent. Their maps are kept:
    /// sockets go on where they are.
    ///
    /// `report` is called with [`Event::KernelChanged`] when someone takes them away.
    ///
    /// # Errors
    /// What the machine lacks, or the kernel's refusal. Nothing is changed then.
    pub fn attach(
        nft: Nft,
        places: &Places,
        report: impl Fn(Event) -> bool + Send + Sync + 'static,
    ) -> Result<Self, DataplaneError> {
        let report: Report = Arc::new(report);
        let (maps, links) = attach::attach(places)?;
        let links = Arc::new(links);
        Ok(Self {
            nft,
            places: places.clone(),
            maps,
            unfilled: PerFamily::from_fn(|_| true),
            _watcher: Watcher::start(Arc::clone(&links), Arc::clone(&report))?,
            links,
            report,
        })
    }

    /// Attaches the programs again if somebody detached them. Their maps are new if those went with their pins.
    fn put_back(&mut self) -> Result<(), DataplaneError> {
        if self.links.are_whole() {
            return Ok(());
        }
        self.unfilled = PerFamily::from_fn(|_| true);
        let (maps, links) = attach::attach(&self.places)?;
        self.maps = maps;
        self.links = Arc::new(links);
        self._watcher = Watcher::start(Arc::clone(&self.links), Arc::clone(&self.report))?;
        Ok(())
    }

    /// Makes the maps hold what the rules hold.
    fn fill(&mut self, family: Family, held: &Held) -> Result<(), DataplaneError> {
        let found = self.maps.read(family)?;
        let wanted = Entries::of(family, held);
        self.maps.write(&writes(&found, &wanted))?;
        *self.unfilled.get_mut(family) = false;
        Ok(())
    }
}

/// Takes programs and maps away, if there are any. Sockets that were connected stay so.
///
/// # Errors
/// That what is there cannot be removed.
pub fn detach(places: &Places) -> Result<bool, DataplaneError> {
    attach::detach(places)
}

impl Dataplane for Ebpf {
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        self.put_back()?;
        let held = self.nft.resync(family, desired)?;
        self.fill(family, &held)?;
        Ok(held)
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        self.nft.apply(family, held, delta)?;
        let (before, after) = Entries::around(family, held, delta);
        self.maps.write(&writes(&before, &after))
    }

    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError> {
        let mut restored = self.nft.restore(family, held)?;
        self.put_back()?;
        if *self.unfilled.get(family) {
            self.fill(family, held)?;
            restored.changes += 1;
        }
        Ok(restored)
    }

    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError> {
        self.nft.cleanup(family)
    }
}

#[cfg(test)]
mod tests;
