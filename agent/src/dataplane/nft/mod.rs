//! The nftables back end: constant rules, state in named maps.
//!
//! `skeleton` is the program, of the sets in `sets`, the chains in `standing` and those in `shapes`, whose rules are made of what
//! `rule` has; `elements` turns deltas into elements of its maps. Text comes from these by `render`, netlink messages by
//! `chains`, `bytecode`, `expressions` and `encode`, and their bytes by `batch`; `decode` and `keys` are the way back; `program`
//! and `notice` are about what others change, and `restore` puts that back. Only `netlink`, `forgetter`, `watcher` and
//! `restore` do I/O. Needs Linux 5.10 (comments of tables) and no program; what it makes is as nft lists and loads it (tried:
//! nft 1.0.6 and 1.1.3, Linux 6.18).

#[doc(hidden)]
pub mod batch;
mod bytecode;
mod chains;
mod decode;
mod elements;
mod encode;
mod expressions;
mod forget;
mod forgetter;
mod keys;
mod netlink;
mod notice;
mod program;
pub mod render;
mod restore;
mod rule;
mod sets;
mod shapes;
mod skeleton;
mod standing;
mod watcher;

use std::collections::BTreeSet;
use std::sync::mpsc::Receiver;

use netlink_packet_core::NLM_F_CREATE;
pub use skeleton::{Duty, Skeleton, SkeletonConfig};

use crate::diff::{Delta, Held, between, diff};
use crate::event::Event;
use crate::model::{Family, PerFamily, Scope};
use crate::plan::Tables;

use super::{Dataplane, DataplaneError, Restored};
use batch::Flagged;
use elements::{Elements, elements};
use forget::Forgotten;
use forgetter::Forgetter;
use netlink::Connection;
use notice::Meddling;
use program::Program;
use shapes::Chain;
use watcher::{Heard, Watcher};

/// How many elements may be committed while the watcher hears it, which costs some microseconds for each.
const MOST_HEARD: usize = 256;

/// The nftables rules of the network namespace that this was made in.
#[derive(Debug)]
pub struct Nft {
    config: SkeletonConfig,
    skeletons: PerFamily<Skeleton>,
    /// What the tables consisted of when they were last known to be as we make them.
    programs: PerFamily<Option<Program>>,
    connection: Connection,
    forgetter: Forgetter,
    watcher: Option<(Watcher, Receiver<Heard>)>,
    /// What others changed since the tables were last known to be as we made them.
    meddling: PerFamily<Meddling>,
}

impl Nft {
    /// Connects to the kernel. Nothing is changed yet.
    ///
    /// # Errors
    /// That the kernel has no nftables, or no socket could be had.
    pub fn new(config: &SkeletonConfig) -> Result<Self, DataplaneError> {
        Ok(Self {
            config: config.clone(),
            skeletons: PerFamily::from_fn(|family| Skeleton::new(family, config)),
            programs: PerFamily::default(),
            connection: Connection::open()?,
            forgetter: Forgetter::start()?,
            watcher: None,
            meddling: PerFamily::default(),
        })
    }

    /// Makes sure that proxyd may change the rules.
    ///
    /// # Errors
    /// That the kernel does not permit it.
    pub fn check(&mut self) -> Result<(), DataplaneError> {
        self.connection.table_comment(Family::V4).map(drop)
    }

    /// Has `report` called with [`Event::KernelChanged`] when someone else changes our tables, until it says that nobody
    /// listens.
    ///
    /// # Errors
    /// That no socket or thread could be had, or that the kernel does not permit listening.
    pub fn watch(
        &mut self,
        report: impl Fn(Event) -> bool + Send + Sync + 'static,
    ) -> Result<(), DataplaneError> {
        let own = [self.connection.port()?, self.forgetter.port()];
        self.watcher = Some(Watcher::start(own, report)?);
        Ok(())
    }
}

/// What rules do that stand beside another data plane.
impl Nft {
    /// What the rules of a family do, or will when they are next made.
    pub(super) fn duty(&self, family: Family) -> Duty {
        self.skeletons.get(family).duty()
    }

    /// Says what the rules are to do. They do it from the next [`Dataplane::resync`] or [`Self::make_anew`] on.
    pub(super) fn set_duty(&mut self, family: Family, duty: Duty) {
        if duty != self.duty(family) {
            *self.skeletons.get_mut(family) = Skeleton::with(duty, family, &self.config);
            *self.programs.get_mut(family) = None;
        }
    }

    /// Whether there is a table of rules that do what these are to do; if there is another, they will replace it.
    ///
    /// # Errors
    /// That the kernel cannot be asked.
    pub(super) fn are_ours(&mut self, family: Family) -> Result<bool, DataplaneError> {
        let version = self.skeletons.get(family).version();
        let found = self.connection.table_comment(family)?;
        Ok(found.is_some_and(|comment| comment == version))
    }

    /// Puts rules that do what they are to do in the place of those that are there, in one transaction, with what is held.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn make_anew(&mut self, family: Family, held: &Held) -> Result<(), DataplaneError> {
        self.replace_by(family, held)
    }
}

impl Nft {
    /// Commits elements, and chains that are not there yet. A chain that nothing goes to any more stays, until
    /// the table is made anew: the next Service of its shape finds it there.
    fn commit(
        &mut self,
        family: Family,
        chains: BTreeSet<Chain>,
        elements: &Elements,
    ) -> Result<(), DataplaneError> {
        let program = self.programs.get(family).as_ref();
        let is_known = |chain: &Chain| program.is_some_and(|p| p.chains().contains(chain));
        let mut missing = chains;
        missing.retain(|chain| !is_known(chain));
        let skeleton = self.skeletons.get(family);
        let messages = skeleton.chain_messages(&missing);
        if elements.len() > MOST_HEARD {
            self.unheard(|nft| nft.connection.commit(family, messages, elements))?;
        } else {
            self.connection.commit(family, messages, elements)?;
        }
        if !missing.is_empty() {
            let found = self.made_program(family)?;
            let program = self.programs.get_mut(family).get_or_insert_default();
            program.adopt(found, &missing);
        }
        Ok(())
    }

    /// Commits a delta, with the chains that it needs.
    fn commit_delta(&mut self, family: Family, delta: &Delta) -> Result<(), DataplaneError> {
        let detector = self.skeletons.get(family).detector();
        let chains = elements::chains(delta, detector);
        self.commit(family, chains, &elements(delta))
    }

    /// What our table consists of now that it was made.
    fn made_program(&mut self, family: Family) -> Result<Program, DataplaneError> {
        let found = self.connection.program(family)?;
        found.ok_or_else(netlink::gone)
    }

    /// What others changed in a table since this was last asked.
    fn take_meddling(&mut self, family: Family) -> Meddling {
        let heard = self.watcher.iter().flat_map(|(_, heard)| heard.try_iter());
        for (family, meddling) in heard {
            self.meddling.get_mut(family).add(meddling);
        }
        std::mem::take(self.meddling.get_mut(family))
    }

    /// Makes one commit that the watcher does not hear; it is told of others that came meanwhile.
    fn unheard(
        &mut self,
        commit: impl FnOnce(&mut Self) -> Result<(), DataplaneError>,
    ) -> Result<(), DataplaneError> {
        let Some(watcher) = self.watcher.as_ref().map(|(watcher, _)| watcher.clone()) else {
            return commit(self);
        };
        let before = self.connection.generation()?;
        watcher.deafen()?;
        let result = commit(self);
        watcher.listen_again()?;
        let commits = self.connection.generation()?.wrapping_sub(before);
        if commits > u32::from(result.is_ok()) {
            watcher.report_unheard();
        }
        result
    }

    /// Replaces our table, or makes it, with everything that is desired.
    fn replace(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        let mut held = Held::default();
        held.apply(&diff(&held, desired, &Scope::All));
        self.replace_by(family, &held)?;
        Ok(held)
    }

    /// Replaces our table, or makes it, with what it is to hold, in one transaction. Clients of front ends that are there before and
    /// after keep their endpoints.
    fn replace_by(&mut self, family: Family, held: &Held) -> Result<(), DataplaneError> {
        let delta = between(&Held::default(), held);
        let kept = self.kept(family, held);
        let skeleton = self.skeletons.get(family);
        let mut table = skeleton.messages(&elements::chains(&delta, skeleton.detector()));
        table.extend(kept);
        let elements = elements(&delta);
        *self.programs.get_mut(family) = None;
        self.unheard(|nft| nft.connection.replace(family, table, &elements))?;
        *self.programs.get_mut(family) = Some(self.made_program(family)?);
        Ok(())
    }

    /// Messages that have the clients remembered that the table which is there remembers, if there is one.
    fn kept(&mut self, family: Family, held: &Held) -> Vec<Flagged> {
        let mut verdicts = held.entries.values().filter_map(|entry| entry.verdict);
        if !verdicts.any(|verdict| verdict.affinity().is_some()) {
            return Vec::new();
        }
        let choices = self.connection.choices_if_any(family);
        let choices = choices.unwrap_or_else(|error| {
            tracing::warn!("{family}: clients lose their endpoints: {error}");
            Vec::new()
        });
        let kept = forget::kept(&choices, held);
        let messages = encode::remember(&kept);
        messages.map(|message| (message, NLM_F_CREATE)).collect()
    }

    /// What our table holds, if it is as we made it.
    fn adopt(&mut self, family: Family) -> Result<Option<Held>, DataplaneError> {
        let Some(program) = self.connection.program(family)? else {
            return Ok(None);
        };
        let known = self.programs.get_mut(family);
        if known.get_or_insert_with(|| program.clone()) != &program {
            return Ok(None);
        }
        let Some(held) = self.connection.read_back(family)? else {
            return Ok(None);
        };
        // Those of back ends that left while no agent was there.
        let unknown = Forgotten::unknown_to(&held);
        self.forgetter.send(family, unknown);
        Ok(Some(held))
    }
}

impl Dataplane for Nft {
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        // What comes from now on is heard anew.
        self.take_meddling(family);
        let skeleton = self.skeletons.get(family);
        match self.connection.table_comment(family)? {
            Some(comment) if comment == skeleton.version() => {
                if let Some(held) = self.adopt(family)? {
                    return Ok(held);
                }
                tracing::warn!("{family}: the table was changed by someone else; replacing it");
                self.replace(family, desired)
            }
            Some(comment) => {
                tracing::info!("{family}: replacing the table of another version ({comment:?})");
                self.replace(family, desired)
            }
            None => self.replace(family, desired),
        }
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        self.commit_delta(family, delta)?;
        // After the commit, so that no new client comes to a back end that is gone.
        self.forgetter.send(family, Forgotten::by(held, delta));
        Ok(())
    }

    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError> {
        let meddling = self.take_meddling(family);
        self.put_back(family, held, &meddling)
    }

    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError> {
        *self.programs.get_mut(family) = None;
        let was_there = self.connection.delete_table(family)?;
        let done = if was_there { "removed" } else { "there is no" };
        tracing::info!(
            "{done} table {} {}",
            self.skeletons.get(family).nft_family(),
            skeleton::TABLE
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
