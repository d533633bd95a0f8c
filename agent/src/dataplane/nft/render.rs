//! Skeleton and deltas → text that `nft -f` loads.
//!
//! Pure; the same input gives the same bytes.

use std::fmt::Write as _;

use super::elements::{Element, chains, elements};
use super::rule::BEYOND_NFT;
use super::skeleton::{Skeleton, TABLE};
use crate::diff::Delta;

/// Commands that put an empty table in the place of whatever table of ours is there, with the chains that a
/// delta's additions go to.
pub fn program(skeleton: &Skeleton, delta: &Delta) -> String {
    let ip = skeleton.nft_family();
    let mut chains = chains(delta, skeleton.detector());
    chains.retain(|chain| !chain.is_beyond_nft(skeleton.family()));
    // "add" first, so that "delete" finds a table in any case.
    let mut text = format!("add table {ip} {TABLE}\ndelete table {ip} {TABLE}\n");
    text += &skeleton.text(&chains);
    if !chains.is_empty() {
        text += "\n# One chain for each policy and number of endpoints that some Service has.\n";
        text += &skeleton.chains_text(&chains);
    }
    text
}

/// Commands that add what a delta adds, one for each map. What nft cannot load is a comment.
pub fn add_elements(skeleton: &Skeleton, delta: &Delta) -> String {
    let (ip, family) = (skeleton.nft_family(), skeleton.family());
    let mut text = String::new();
    let mut added = elements(delta).added;
    added.sort_by_key(|element| (element.set, element.is_beyond_nft(family)));
    let is_alike = |a: &Element, b: &Element| {
        (a.set, a.is_beyond_nft(family)) == (b.set, b.is_beyond_nft(family))
    };
    for run in added.chunk_by(is_alike) {
        let name = run[0].set.name();
        let lines: Vec<String> = run.iter().map(|element| format!("\t{element}")).collect();
        let write = if run[0].is_beyond_nft(family) {
            let elements: Vec<String> = run.iter().map(ToString::to_string).collect();
            writeln!(text, "{BEYOND_NFT}{name} {{ {} }}", elements.join(", "))
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
