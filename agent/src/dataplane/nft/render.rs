//! Skeleton and deltas → text that `nft -f` loads.
//!
//! Pure; the same input gives the same bytes.

use std::fmt::Write as _;

use super::elements::{chains, elements};
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
    let chains = chains(delta);
    // "add" first, so that "delete" finds a table in any case.
    let mut text = format!("add table {ip} {TABLE}\ndelete table {ip} {TABLE}\n");
    text += &skeleton.text();
    if !chains.is_empty() {
        text += "\n# One chain for each number of endpoints that some Service has.\n";
        text += &skeleton.chains_text(&chains);
    }
    text
}

/// Commands that add what a delta adds, one for each run of elements of the same map.
pub fn add_elements(skeleton: &Skeleton, delta: &Delta) -> String {
    let ip = skeleton.nft_family();
    let mut text = String::new();
    for run in elements(delta).added.chunk_by(|a, b| a.set == b.set) {
        let set = run[0].set.name();
        let write = if let [element] = run {
            writeln!(text, "add element {ip} {TABLE} {set} {{ {element} }}")
        } else {
            let lines: Vec<String> = run.iter().map(|element| format!("\t{element}")).collect();
            writeln!(
                text,
                "add element {ip} {TABLE} {set} {{\n{}\n}}",
                lines.join(",\n")
            )
        };
        write.expect("writing to a String never fails");
    }
    text
}
