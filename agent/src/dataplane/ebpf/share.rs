//! Which part of what is held is in the rules beside the programs.
//!
//! Pure. Rules that balance hold everything; those that only refuse hold what is refused or dropped, and what maps cannot say:
//! the sets beside the front ends. The programs' maps hold the rest, and each front end is in one of the two.

use std::borrow::Cow;

use super::super::nft::Duty;
use crate::diff::{Change, Delta, Entry, Held, Verdict};
use crate::model::{Frontend, Protocol};
use crate::plan::{Rule, Tables};

/// What rules beside the programs have to do for what is planned.
pub(super) fn duty_for(tables: &Tables) -> Duty {
    let mut rules = tables.rules.iter();
    if rules.any(|(frontend, rule)| is_for_rules(*frontend, Verdict::of(rule))) {
        Duty::Balance
    } else {
        Duty::Refuse
    }
}

/// Whether only rules balance a front end.
pub(super) fn is_for_rules(frontend: Frontend, verdict: Verdict) -> bool {
    frontend.protocol() == Protocol::Sctp && balances(verdict)
}

/// What rules beside the programs do for what is planned, and the part of it that they hold.
pub fn rules_beside(tables: &Tables) -> (Duty, Cow<'_, Tables>) {
    let duty = duty_for(tables);
    (duty, of_tables(duty, tables))
}

/// The rules' part of what is planned.
pub(super) fn of_tables(duty: Duty, tables: &Tables) -> Cow<'_, Tables> {
    if duty == Duty::Balance {
        return Cow::Borrowed(tables);
    }
    let rules = tables.rules.iter();
    let refused = rules.filter(|(_, rule)| !matches!(rule, Rule::Balance(_)));
    Cow::Owned(Tables {
        rules: refused
            .map(|(frontend, rule)| (*frontend, rule.clone()))
            .collect(),
        members: tables.members.clone(),
    })
}

/// The rules' part of what is held.
pub(super) fn of_held(duty: Duty, held: &Held) -> Cow<'_, Held> {
    if duty == Duty::Balance {
        return Cow::Borrowed(held);
    }
    let refused = held.entries.iter().filter_map(|(frontend, entry)| {
        let verdict = entry.verdict.filter(|verdict| !balances(*verdict))?;
        let entry = Entry {
            verdict: Some(verdict),
            ..Entry::default()
        };
        Some((*frontend, entry))
    });
    Cow::Owned(Held {
        entries: refused.collect(),
        members: held.members.clone(),
    })
}

/// What is held of front ends and no part of the rules'.
pub(super) fn beside_rules(duty: Duty, held: Held) -> impl Iterator<Item = (Frontend, Entry)> {
    let entries = held.entries.into_iter();
    entries.filter(move |(_, entry)| duty == Duty::Refuse && entry.verdict.is_some_and(balances))
}

/// The rules' part of a delta.
pub(super) fn of_delta(duty: Duty, delta: &Delta) -> Cow<'_, Delta> {
    if duty == Duty::Balance {
        return Cow::Borrowed(delta);
    }
    let refused = |verdict: Option<Verdict>| verdict.filter(|verdict| !balances(*verdict));
    let rules = delta.rules.iter().filter_map(|change| {
        let [from, to] = [change.from, change.to].map(refused);
        Change::between(change.key, from, to)
    });
    Cow::Owned(Delta {
        rules: rules.collect(),
        backends: Vec::new(),
        members: delta.members.clone(),
    })
}

fn balances(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Balance { .. })
}
