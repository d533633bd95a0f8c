//! Puts back what others changed, at the cost of what they changed. I/O, by the connection.
//!
//! What was heard says where to look: an element that was changed is asked for by its key; rules are made again of what
//! the kernel showed of them when they were ours; and where the table itself is gone, all of it is made in one
//! transaction. So nothing has to be planned. Where that fails, the engine resyncs.

use std::collections::BTreeSet;

use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::super::{DataplaneError, Restored};
use super::Nft;
use super::batch::Flagged;
use super::elements::{Elements, elements, held_element, held_members};
use super::encode;
use super::forget::Forgotten;
use super::keys::{Subject, subject};
use super::netlink;
use super::notice::Meddling;
use crate::diff::{Held, between};
use crate::model::{Family, Frontend};

/// What had to be done with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// It was as we made it.
    Untouched,
    /// Its rules were made again.
    Mended,
    /// The table was made again, with so many elements.
    Remade(usize),
}

impl Nft {
    /// Makes the kernel hold what it held, where others changed that.
    pub(super) fn put_back(
        &mut self,
        family: Family,
        held: &Held,
        meddling: &Meddling,
    ) -> Result<Restored, DataplaneError> {
        let program = if meddling.program {
            self.put_back_program(family, held)?
        } else {
            Program::Untouched
        };
        let mut restored = match program {
            Program::Remade(changes) => Restored {
                changes,
                frontends: Some(BTreeSet::new()),
            },
            _ if meddling.unheard => self.put_back_everything(family, held)?,
            _ => self.put_back_elements(family, held, meddling)?,
        };
        if program != Program::Untouched {
            restored.changes += 1;
            restored.frontends = None;
        }
        // Others may have chosen for clients, or clients may have come to a back end of theirs.
        self.forgetter.send(family, Forgotten::unknown_to(held));
        Ok(restored)
    }

    /// Makes rules again, or the whole table.
    fn put_back_program(&mut self, family: Family, held: &Held) -> Result<Program, DataplaneError> {
        let known = self.programs.get(family).clone();
        let known = known.ok_or_else(netlink::gone)?;
        let found = self.connection.program(family)?;
        if found.as_ref() == Some(&known) {
            return Ok(Program::Untouched);
        }
        let mended = found.as_ref().and_then(|found| known.mended(found));
        let done = if let Some(messages) = mended {
            let none = Elements::default();
            self.connection.commit(family, messages, &none)?;
            Program::Mended
        } else {
            let old = found.map(|_| (NfTablesMessage::DeleteTable(encode::our_table()), 0));
            let kept = self.kept(family, held);
            let table = old.into_iter().chain(known.messages());
            let messages: Vec<Flagged> = table.chain(kept).collect();
            let all = elements(&between(&Held::default(), held));
            self.unheard(|nft| nft.connection.commit(family, messages, &all))?;
            Program::Remade(all.len())
        };
        let made = self.made_program(family)?;
        if !made.is_like(&known) {
            // Someone was faster, or the kernel shows it otherwise than it takes it.
            return Err(netlink::not_ours());
        }
        *self.programs.get_mut(family) = Some(made);
        Ok(done)
    }

    /// Reads everything back, and puts right what differs.
    fn put_back_everything(
        &mut self,
        family: Family,
        held: &Held,
    ) -> Result<Restored, DataplaneError> {
        let Some(found) = self.connection.read_back(family)? else {
            return Err(netlink::not_ours());
        };
        let delta = between(&found, held);
        if !delta.is_empty() {
            self.commit_delta(family, &delta)?;
        }
        Ok(Restored {
            changes: delta.len(),
            frontends: Some(delta.frontends().collect()),
        })
    }

    /// Makes the elements that were changed what they were.
    fn put_back_elements(
        &mut self,
        family: Family,
        held: &Held,
        meddling: &Meddling,
    ) -> Result<Restored, DataplaneError> {
        let (mut found, mut before) = (Held::default(), Held::default());
        for set in &meddling.intervals {
            let Some(members) = self.connection.intervals(family, *set)? else {
                return Err(netlink::not_ours());
            };
            found.members.extend(members);
            before.members.extend(held_members(*set, held));
        }
        let mut elements = elements(&between(&found, &before));
        let changes = meddling.keys.len() + elements.len();
        let mut removals = Vec::new();
        let mut frontends: BTreeSet<Frontend> = BTreeSet::new();
        for (set, key) in &meddling.keys {
            if self.connection.has(family, *set, key)? {
                removals.push((encode::removal(*set, key), 0));
            }
            let Some(subject) = subject(*set, key, family) else {
                continue;
            };
            elements.added.extend(held_element(*set, subject, held));
            match subject {
                Subject::Frontend(frontend) => frontends.extend([frontend]),
                Subject::Slot(slot) => frontends.extend([slot.frontend]),
                Subject::Member(_) => {}
            }
        }
        self.connection.commit(family, removals, &elements)?;
        Ok(Restored {
            changes,
            frontends: Some(frontends),
        })
    }
}
