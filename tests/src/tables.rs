//! The agent's tables as `nft` lists them, taken apart so that two can be compared.
//!
//! Counters are left out, and elements come in order: the kernel lists them by a hash with a random seed.

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::nft;
use crate::netns::Netns;

/// The agent's table of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The rules of each chain, in order.
    pub chains: BTreeMap<String, Vec<String>>,
    /// The elements of each map and set.
    pub elements: BTreeMap<String, BTreeSet<String>>,
}

impl Table {
    /// Lists the table of a family (`ip` or `ip6`) in a namespace.
    ///
    /// # Panics
    /// If it is not there, or nft cannot list it.
    #[track_caller]
    pub fn of(netns: &Netns, family: &str) -> Self {
        Self::parse(&nft(netns, &["list", "table", family, "proxyd"], ""))
    }

    /// As [`of`](Self::of); `None` if it is not there now.
    ///
    /// # Panics
    /// If nft is not installed.
    pub fn find(netns: &Netns, family: &str) -> Option<Self> {
        let args = ["list", "table", family, "proxyd"];
        let output = netns.run("nft", &args, "").expect("nft is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        output.status.success().then(|| Self::parse(&text))
    }

    /// Takes apart what nft printed.
    fn parse(text: &str) -> Self {
        let mut table = Self {
            chains: BTreeMap::new(),
            elements: BTreeMap::new(),
        };
        for block in text.split("\n\t}") {
            // A chain without rules has no lines.
            let (head, body) = match block.split_once(" {\n\t\t") {
                Some(parts) => parts,
                None => (block.trim_end_matches(" {"), ""),
            };
            let head = head.rsplit('\n').next().unwrap_or_default().trim();
            match head.split_once(' ') {
                Some(("chain", name)) => {
                    let rules = body.lines().map(|line| line.trim().to_owned());
                    table.chains.insert(name.to_owned(), rules.collect());
                }
                Some(("map" | "set", name)) => {
                    let elements = body.split_once("elements = {").map(|(_, elements)| {
                        let elements = elements.trim_end().trim_end_matches('}').split(',');
                        elements.map(element).collect()
                    });
                    table
                        .elements
                        .insert(name.to_owned(), elements.unwrap_or_default());
                }
                _ => {}
            }
        }
        table
    }

    /// The names of the chains that were made for a shape: for a policy and a number of endpoints, or for a
    /// time to remember clients.
    pub fn shapes(&self) -> BTreeSet<&str> {
        let parts = ["lb-", "cluster-", "external-", "node-port-", "remember-"];
        let names = self.chains.keys().map(String::as_str);
        names
            .filter(|name| parts.iter().any(|part| name.starts_with(part)))
            .collect()
    }

    /// The names of the other chains, which are always there.
    pub fn skeleton(&self) -> BTreeSet<&str> {
        let shapes = self.shapes();
        let names = self.chains.keys().map(String::as_str);
        names.filter(|name| !shapes.contains(name)).collect()
    }

    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.chains.values().map(Vec::len).sum()
    }

    /// The elements of a map or set.
    ///
    /// # Panics
    /// If there is no such map or set.
    #[track_caller]
    pub fn set(&self, name: &str) -> &BTreeSet<String> {
        let elements = self.elements.get(name);
        elements.unwrap_or_else(|| panic!("there is no map or set {name}"))
    }

    /// The elements, without the place that each endpoint has among those of its list: an endpoint that stays keeps
    /// its place, so places depend on what was before.
    pub fn without_places(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all = self.elements.clone();
        for name in ["endpoints", "node-port-endpoints"] {
            let elements = all.remove(name).unwrap_or_default();
            let elements = elements.iter().map(|element| without_place(element));
            all.insert(name.to_owned(), elements.collect());
        }
        all
    }
}

/// One element in one line, without its counter.
fn element(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut kept = Vec::new();
    let mut rest = words.as_slice();
    while let [word, after @ ..] = rest {
        rest = match (word, after) {
            (&"counter", [_, _, _, _, after @ ..]) => after,
            _ => {
                kept.push(*word);
                after
            }
        };
    }
    kept.join(" ")
}

/// An endpoint's element, without its index but for the list that the index is of.
fn without_place(element: &str) -> String {
    let split = element.split_once(" : ");
    let Some(((key, index), endpoint)) =
        split.and_then(|(key, endpoint)| Some((key.rsplit_once(" . ")?, endpoint)))
    else {
        return element.to_owned();
    };
    let number = match index.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => index.parse(),
    };
    let is_local = number.is_ok_and(|number| number >= 32_768);
    format!("{key}, local {is_local} : {endpoint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_taken_apart() {
        let table = Table::parse(
            "table ip proxyd {\n\tcomment \"proxyd 0\"\n\tmap services {\n\t\ttypeof ip daddr : verdict\n\t\tcounter\n\
             \t\telements = { 10.96.0.2 . tcp . 80 counter packets 7 bytes 420 : goto cluster-1,\n\
             \t\t\t     10.96.0.1 . tcp . 80 counter packets 0 bytes 0 : drop }\n\t}\n\n\
             \tmap endpoints {\n\t\ttypeof x\n\t\telements = { 10.96.0.2 . tcp . 80 . 0 : 10.1.0.1 . 8080,\n\
             \t\t\t     10.96.0.2 . tcp . 80 . 32768 : 10.1.0.2 . 8080 }\n\t}\n\n\
             \tset guarded {\n\t\ttypeof x\n\t}\n\n\tchain cluster-1 {\n\t\tdrop\n\t}\n\n\
             \tchain balance {\n\t\ta\n\t\tb\n\t}\n}\n",
        );
        assert_eq!(table.shapes(), BTreeSet::from(["cluster-1"]));
        assert_eq!(table.skeleton(), BTreeSet::from(["balance"]));
        assert_eq!(table.rule_count(), 3);
        let services: Vec<_> = table.set("services").iter().collect();
        assert_eq!(
            services,
            [
                "10.96.0.1 . tcp . 80 : drop",
                "10.96.0.2 . tcp . 80 : goto cluster-1"
            ]
        );
        let endpoints = &table.without_places()["endpoints"];
        let endpoints: Vec<_> = endpoints.iter().collect();
        assert_eq!(
            endpoints,
            [
                "10.96.0.2 . tcp . 80, local false : 10.1.0.1 . 8080",
                "10.96.0.2 . tcp . 80, local true : 10.1.0.2 . 8080"
            ]
        );
        assert!(table.set("guarded").is_empty());
    }
}
