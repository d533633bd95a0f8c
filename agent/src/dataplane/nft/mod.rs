//! The nftables back end: constant rules, state in named maps.
//!
//! `skeleton` is the program (text, loaded by `nft`); `elements` turns deltas into elements of its maps; `render`
//! prints both as text; `encode`, `chains` and `decode` are the netlink messages. Only `process` and `netlink` do
//! I/O. Needs Linux 5.10 (comments of tables) and nft 1.0.1 or later; tried with 6.18 and 1.0.6.

mod chains;
mod decode;
mod elements;
mod encode;
mod netlink;
mod process;
pub mod render;
mod skeleton;

use std::collections::BTreeSet;

use elements::Chain;
pub use skeleton::{Detector, Skeleton, SkeletonConfig};

use crate::diff::{Delta, Held, diff};
use crate::model::{Family, PerFamily, Scope};
use crate::plan::Tables;

use super::{Dataplane, DataplaneError};
use elements::elements;
use netlink::Connection;

/// The nftables rules of the network namespace that this was made in.
#[derive(Debug)]
pub struct Nft {
    skeletons: PerFamily<Skeleton>,
    /// The chains that balance, as far as they are known to be in the kernel.
    chains: PerFamily<BTreeSet<Chain>>,
    connection: Connection,
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

impl Dataplane for Nft {
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError> {
        let skeleton = self.skeletons.get(family);
        match self.connection.table_comment(family)? {
            Some(comment) if comment == skeleton.version() => {
                if let Some((held, chains)) = self.connection.read_back(family)? {
                    *self.chains.get_mut(family) = chains;
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
        *self.chains.get_mut(family) = elements::chains(&delta);
        held.apply(&delta);
        Ok(held)
    }

    fn apply(&mut self, family: Family, delta: &Delta) -> Result<(), DataplaneError> {
        // A chain that nothing goes to any more stays, until the table is made anew: the next Service with
        // so many endpoints finds it there.
        let known = self.chains.get_mut(family);
        let missing: Vec<Chain> = elements::chains(delta).difference(known).copied().collect();
        let has_pod_networks = self.skeletons.get(family).has_pod_networks();
        let chains = missing
            .iter()
            .flat_map(|chain| chains::messages(*chain, family, has_pod_networks));
        self.connection
            .commit(family, chains.collect(), &elements(delta))?;
        known.extend(missing);
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
