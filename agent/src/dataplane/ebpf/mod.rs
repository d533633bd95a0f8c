//! The eBPF back end: BPF programs connect sockets of this node, and of its pods, to back ends, and translate packets of others
//! at devices. The nftables rules stand beside them with the same content. They refuse and drop, and balance only what
//! programs do not.
//!
//! `layout` says what the maps hold, `order` in which order they are written, `maglev` and `tables` what consistent hashing adds, `devices`
//! where programs are, `needs` what a machine must have. Only `maps`, `filler`, `attach`, `hooks`, `links`, `beside`, `retire` and
//! `probe` do I/O. Tried with Linux 6.18.

mod attach;
mod beside;
mod devices;
mod filler;
mod hooks;
mod layout;
mod links;
pub mod maglev;
mod maps;
mod needs;
mod order;
pub mod peer;
pub mod peers;
mod probe;
pub mod render;
mod retire;
mod tables;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::nft::Nft;
use super::{Dataplane, DataplaneError, Restored};
use crate::diff::{Delta, Held, diff};
use crate::event::Event;
use crate::model::{Family, PerFamily, Scope};
use crate::plan::{Detector, Tables};
use beside::Beside;
use hooks::Follower;
use layout::Entries;
pub use layout::duty_for;
use links::{Links, Watcher};
use maglev::TableSize;
use maps::Maps;
use order::writes;
use proxyd_ebpf_common as bpf;
pub use retire::Retiring;

/// Where things of the machine are that the programs need, and how they are set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The cgroup whose sockets are balanced; `None`: the root of the hierarchy, and so all of the machine's.
    pub cgroup: Option<PathBuf>,
    /// The directory in a BPF filesystem where programs and maps stay while no agent runs.
    pub pins: PathBuf,
    /// The names of the devices where packets are translated, which may end in `*`; none: those that a route leads to.
    pub devices: Vec<String>,
    /// Whether programs are attached to devices by links, where the kernel has such.
    pub tcx: bool,
    /// How many slots tables of consistent hashing have.
    pub table_size: TableSize,
    /// How many connections devices can carry at a time, in tables that are made anew.
    pub connections: u32,
}

/// How many connections devices can carry at a time, if nothing is said.
pub const CONNECTIONS: u32 = bpf::MAX_FLOWS as u32;

/// What is told of changes by others.
type Report = Arc<dyn Fn(Event) -> bool + Send + Sync>;

/// The programs at their hooks, and the rules beside them.
pub struct Ebpf {
    nft: Nft,
    beside: Beside,
    places: Places,
    detector: PerFamily<Detector>,
    maps: Maps,
    /// The families that the maps do not hold yet.
    unfilled: PerFamily<bool>,
    links: Arc<Links>,
    /// Kept, since it ends with this.
    _watcher: Watcher,
    _follower: Follower,
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
        detector: &PerFamily<Detector>,
        report: impl Fn(Event) -> bool + Send + Sync + 'static,
    ) -> Result<Self, DataplaneError> {
        let report: Report = Arc::new(report);
        let (maps, links, follower) = attach::attach(places, detector)?;
        let links = Arc::new(links);
        Ok(Self {
            nft,
            beside: Beside::default(),
            places: places.clone(),
            detector: detector.clone(),
            maps,
            unfilled: PerFamily::from_fn(|_| true),
            _watcher: Watcher::start(Arc::clone(&links), Arc::clone(&report))?,
            _follower: follower,
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
        let (maps, links, follower) = attach::attach(&self.places, &self.detector)?;
        self._follower = follower;
        self.maps = maps;
        self.links = Arc::new(links);
        self._watcher = Watcher::start(Arc::clone(&self.links), Arc::clone(&self.report))?;
        Ok(())
    }

    /// Makes the maps hold what the rules hold.
    fn fill(&mut self, family: Family, held: &Held) -> Result<(), DataplaneError> {
        let found = self.maps.read(family)?;
        let wanted = Entries::of(family, held, self.places.table_size);
        self.maps.write(&writes(&found, &wanted))?;
        self.maps.tables.set(family, &wanted);
        *self.unfilled.get_mut(family) = false;
        Ok(())
    }
}

/// Looks whether the machine has what the programs need. Nothing is changed.
///
/// # Errors
/// All that it lacks, and what to do.
pub fn check(places: &Places) -> Result<(), DataplaneError> {
    probe::probe(places).usable().map(drop)
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
        self.beside.settle(family, &mut self.nft, desired)?;
        let mut taken_over = None;
        if self.nft.is_to_replace(family)? {
            // Programs take over before rules let go.
            let mut held = Held::default();
            held.apply(&diff(&held, desired, &Scope::All));
            self.fill(family, &held)?;
            taken_over = Some(held);
        }
        let held = self.nft.resync(family, desired)?;
        if taken_over.as_ref() != Some(&held) {
            self.fill(family, &held)?;
        }
        Ok(held)
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        let (before, after) = Entries::around(family, held, delta, self.places.table_size);
        let writes = writes(&before, &after);
        let duty = self.nft.duty(family);
        match self.beside.change(family, duty, held, delta) {
            None => {
                self.nft.apply(family, held, delta)?;
                self.maps.write(&writes)?;
            }
            Some(duty) => {
                self.maps.write(&writes)?;
                let mut held = held.clone();
                held.apply(delta);
                self.nft.set_duty(family, duty);
                self.nft.make_anew(family, &held)?;
            }
        }
        self.maps.tables.change(family, &before, &after);
        Ok(())
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
