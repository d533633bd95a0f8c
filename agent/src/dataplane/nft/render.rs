//! Skeleton and deltas → text that `nft -f` loads.
//!
//! Pure; the same input gives the same bytes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::elements::{Elements, chains, elements};
use super::shapes::Chain;
use super::skeleton::{Skeleton, TABLE};
use crate::diff::Delta;

/// Commands that put a table that holds what a delta adds in the place of whatever table of ours is there,
/// in one transaction.
pub(super) fn replacement(skeleton: &Skeleton, delta: &Delta) -> String {
    program(skeleton, delta) + &add_elements(skeleton, delta)
}

/// Commands that put an empty table in the place of whatever table of ours is there, with the chains that a
/// delta's additions go to.
pub fn program(skeleton: &Skeleton, delta: &Delta) -> String {
    let ip = skeleton.nft_family();
    let can_load = |chain: &Chain| !chain.is_beyond_nft(skeleton.family());
    let chains = chains(delta, skeleton.knows_pods());
    let chains = chains.into_iter().filter(can_load).collect::<BTreeSet<_>>();
    // "add" first, so that "delete" finds a table in any case.
    let mut text = format!("add table {ip} {TABLE}\ndelete table {ip} {TABLE}\n");
    text += &skeleton.text();
    if !chains.is_empty() {
        text += "\n# One chain for each policy and number of endpoints that some Service has.\n";
        text += &skeleton.chains_text(&chains);
    }
    text
}

/// Commands that add what a delta adds, one for each map. What nft cannot load is
/// a comment; see `beyond_nft`.
pub fn add_elements(skeleton: &Skeleton, delta: &Delta) -> String {
    let ip = skeleton.nft_family();
    let mut text = String::new();
    let mut added = elements(delta).added;
    added.sort_by_key(|element| element.set);
    for run in added.chunk_by(|a, b| a.set == b.set) {
        let set = run[0].set;
        let name = set.name();
        let lines: Vec<String> = run.iter().map(|element| format!("\t{element}")).collect();
        let write = if set.is_beyond_nft(skeleton.family()) {
            let elements: Vec<String> = run.iter().map(ToString::to_string).collect();
            writeln!(
                text,
                "# Only the agent can load this, nft 1.0.6 cannot: {name} {{ {} }}",
                elements.join(", ")
            )
        } else if let [element] = run {
            writeln!(text, "add element {ip} {TABLE} {name} {{ {element} }}")
        } else {
            writeln!(
                text,
                "add element {ip} {TABLE} {name} {{\n{}\n}}",
                lines.join(",\n")
            )
        };
        write.expect("writing to a String never fails");
    }
    text
}

/// What a delta adds that nft cannot load: chains and elements for the agent to commit by netlink.
pub(super) fn beyond_nft(skeleton: &Skeleton, delta: &Delta) -> (BTreeSet<Chain>, Elements) {
    let family = skeleton.family();
    let mut chains = chains(delta, skeleton.knows_pods());
    chains.retain(|chain| chain.is_beyond_nft(family));
    let mut added = elements(delta).added;
    added.retain(|element| element.set.is_beyond_nft(family));
    let removed = Vec::new();
    (chains, Elements { removed, added })
}
