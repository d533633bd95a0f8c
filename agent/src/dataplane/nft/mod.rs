//! The nftables back end: constant rules, state in named maps.
//!
//! `skeleton` is the program (text, loaded by `nft`); `elements` turns deltas into elements of its maps; `render`
//! prints both as text; `encode`, `chains` and `decode` are the netlink messages. Only `process`, `netlink` and
//! `forgetter` do I/O. Needs Linux 5.10 (comments of tables) and nft 1.0.1 or later; tried with 6.18 and 1.0.6.

mod chains;
mod decode;
mod elements;
mod encode;
#[doc(hidden)]
pub mod encoded;
mod expressions;
mod forget;
mod forgetter;
mod netlink;
mod process;
pub mod render;
mod shapes;
mod skeleton;

use std::collections::BTreeSet;

pub use skeleton::{Skeleton, SkeletonConfig};

use crate::diff::{Delta, Held, diff};
use crate::model::{Family, PerFamily, Scope};
use crate::plan::Tables;

use super::{Dataplane, DataplaneError};
use elements::{Elements, elements};
use forget::Forgotten;
use forgetter::Forgetter;
use netlink::Connection;
use shapes::Chain;

/// The nftables rules of the network namespace that this was made in.
#[derive(Debug)]
pub struct Nft {
    skeletons: PerFamily<Skeleton>,
    /// The chains made for shapes, as far as they are known to be in the kernel.
    chains: PerFamily<BTreeSet<Chain>>,
    connection: Connection,
    forgetter: Forgetter,
}

impl Nft {
    /// Connects to the kernel. Nothing is changed yet.
    ///
    /// # Errors
    /// That the kernel has no nftables, or no socket could be had.
    pub fn new(config: &SkeletonConfig) -> Result<Self, DataplaneError> {
        Ok(Self {
            skeletons: PerFamily::from_fn(|family| Skeleton::new(family, config)),
            chains: PerFamily::default(),
            connection: Connection::open()?,
            forgetter: Forgetter::start()?,
        })
    }

    /// Makes sure that proxyd may and can change the rules.
    ///
    /// # Errors
    /// That the kernel does not permit it, or that there is no `nft` program.
    pub fn check(&mut self) -> Result<(), DataplaneError> {
        self.connection.table_comment(Family::V4)?;
        process::load("")
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
        let known = self.chains.get_mut(family);
        let missing: Vec<Chain> = chains.difference(known).copied().collect();
        let detector = self.skeletons.get(family).detector();
        let messages = missing
            .iter()
            .flat_map(|chain| chains::messages(*chain, family, detector));
        self.connection
            .commit(family, messages.collect(), elements)?;
        known.extend(missing);
        Ok(())
    }
}

impl Dataplane for Nft {
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        let skeleton = self.skeletons.get(family);
        match self.connection.table_comment(family)? {
            Some(comment) if comment == skeleton.version() => {
                if let Some((held, chains)) = self.connection.read_back(family)? {
                    *self.chains.get_mut(family) = chains;
                    // Those of back ends that left while no agent was there.
                    let unknown = Forgotten::unknown_to(&held);
                    self.forgetter.send(family, unknown);
                    return Ok(held);
                }
                tracing::warn!("{family}: the table was changed by someone else; replacing it");
            }
            Some(comment) => {
                tracing::info!("{family}: replacing the table of another version ({comment:?})");
            }
            None => {
                process::load(&skeleton.text())?;
                self.chains.get_mut(family).clear();
                return Ok(Held::default());
            }
        }
        let mut held = Held::default();
        let delta = diff(&held, desired, &Scope::All);
        process::load(&render::replacement(skeleton, &delta))?;
        let (beyond, elements) = render::beyond_nft(skeleton, &delta);
        let mut loaded = elements::chains(&delta, skeleton.knows_pods());
        loaded.retain(|chain| !beyond.contains(chain));
        *self.chains.get_mut(family) = loaded;
        self.commit(family, beyond, &elements)?;
        held.apply(&delta);
        Ok(held)
    }

    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError> {
        let knows_pods = self.skeletons.get(family).knows_pods();
        let chains = elements::chains(delta, knows_pods);
        self.commit(family, chains, &elements(delta))?;
        // After the commit, so that no new client comes to a back end that is gone.
        self.forgetter.send(family, Forgotten::by(held, delta));
        Ok(())
    }

    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError> {
        self.chains.get_mut(family).clear();
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
