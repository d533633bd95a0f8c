//! The eBPF back end: BPF programs connect sockets of this node, and of its pods, to back ends, and translate packets of others
//! at devices. The nftables rules stand beside them and refuse and drop; where there is something that programs do not
//! balance, they hold and balance everything.
//!
//! `layout` says what the maps hold, `share` what the rules, `order` in which order maps are written, `maglev` and `tables` what consistent hashing adds, `devices`
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
mod share;
mod tables;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::nft::{Duty, Nft};
use super::{Dataplane, DataplaneError, Restored};
use crate::diff::{Change, Delta, Held, diff};
use crate::event::Event;
use crate::model::{Family, PerFamily, Scope};
use crate::plan::{Detector, Tables};
pub use attach::reserve_ports;
use beside::Beside;
use hooks::Follower;
use layout::Entries;
use links::{Links, Watcher};
use maglev::TableSize;
use maps::{Fits, Maps};
use order::writes;
use proxyd_ebpf_common as bpf;
pub use retire::Retiring;
pub use share::rules_beside;
use tracing::warn;

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
    /// Whether packets of known connections go past the node's routing and firewall.
    pub fast_path: bool,
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
    /// What the maps held of a family, when they were read for the other one; until it is asked for, or something is applied.
    found: PerFamily<Option<Entries>>,
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
            found: PerFamily::default(),
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
        self.found = PerFamily::default();
        self.links = Arc::new(links);
        self._watcher = Watcher::start(Arc::clone(&self.links), Arc::clone(&self.report))?;
        Ok(())
    }

    /// Makes the maps hold what is held.
    fn fill(&mut self, family: Family, held: &Held) -> Result<(), DataplaneError> {
        let found = self.read(family)?;
        self.fill_from(family, &found, held)
    }

    /// What the maps hold of a family. They are read for both at once, since both are looked at one after the other.
    fn read(&mut self, family: Family) -> Result<Entries, DataplaneError> {
        if self.found.get(family).is_none() {
            let PerFamily { v4, v6 } = self.maps.read()?;
            self.found = PerFamily {
                v4: Some(v4),
                v6: Some(v6),
            };
        }
        Ok(self.found.get_mut(family).take().unwrap_or_default())
    }

    /// As [`fill`](Self::fill), where it is known what they hold.
    fn fill_from(
        &mut self,
        family: Family,
        found: &Entries,
        held: &Held,
    ) -> Result<(), DataplaneError> {
        let wanted = Entries::of(family, held, self.places.table_size);
        let fits = self.maps.write(&writes(found, &wanted))?;
        self.maps.tables.set(family, &wanted);
        *self.unfilled.get_mut(family) = false;
        match fits {
            Fits::All => Ok(()),
            Fits::Part => {
                self.beside.stay(family);
                self.balance_by_rules(family, held)
            }
        }
    }

    /// What is held, by rules that are as they should be and by the maps together.
    fn held(&mut self, family: Family, mut ruled: Held) -> Result<Held, DataplaneError> {
        if self.nft.duty(family) == Duty::Balance {
            self.fill(family, &ruled)?;
            return Ok(ruled);
        }
        let found = self.read(family)?;
        let balanced = found.held();
        // Maps are written first: an agent was killed before it told the rules that these are refused no more.
        let mut late = Delta::default();
        for frontend in balanced.keys() {
            let from = ruled.entries.get(frontend).and_then(|entry| entry.verdict);
            late.rules.extend(Change::between(*frontend, from, None));
        }
        if !late.is_empty() {
            self.nft.apply(family, &ruled, &late)?;
        }
        ruled.entries.extend(balanced);
        self.fill_from(family, &found, &ruled)?;
        Ok(ruled)
    }

    /// Has the rules balance everything, since the maps have no room for it.
    fn balance_by_rules(&mut self, family: Family, held: &Held) -> Result<(), DataplaneError> {
        if self.nft.duty(family) == Duty::Balance {
            return Ok(());
        }
        warn!(
            "{family}: the BPF maps are full: rules balance what does not fit, and have every connection tracked"
        );
        self.remake_rules(family, Duty::Balance, held)
    }

    /// Makes rules that do something else than before.
    fn remake_rules(
        &mut self,
        family: Family,
        duty: Duty,
        held: &Held,
    ) -> Result<(), DataplaneError> {
        self.nft.set_duty(family, duty);
        self.nft.make_anew(family, &share::of_held(duty, held))
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
        if self.nft.are_ours(family)? {
            let desired = share::of_tables(self.nft.duty(family), desired);
            let ruled = self.nft.resync(family, &desired)?;
            return self.held(family, ruled);
        }
        // Programs take over before rules let go, or refuse.
        let mut held = Held::default();
        held.apply(&diff(&held, desired, &Scope::All));
        self.fill(family, &held)?;
        let duty = self.nft.duty(family);
        let mut ruled = self.nft.resync(family, &share::of_tables(duty, desired))?;
        ruled.entries.extend(share::beside_rules(duty, held));
        Ok(ruled)
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        self.found = PerFamily::default();
        let (before, after) = Entries::around(family, held, delta, self.places.table_size);
        // What maps serve, rules do not see. So they refuse nothing that is served already.
        let fits = self.maps.write(&writes(&before, &after))?;
        self.maps.tables.change(family, &before, &after);
        let duty = self.nft.duty(family);
        let after = || {
            let mut after = held.clone();
            after.apply(delta);
            after
        };
        if fits == Fits::Part {
            self.beside.stay(family);
        }
        if fits == Fits::Part && duty == Duty::Refuse {
            return self.balance_by_rules(family, &after());
        }
        if let Some(duty) = self.beside.change(family, duty, held, delta) {
            return self.remake_rules(family, duty, &after());
        }
        self.nft.apply(family, held, &share::of_delta(duty, delta))
    }

    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError> {
        let duty = self.nft.duty(family);
        let mut restored = self.nft.restore(family, &share::of_held(duty, held))?;
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
