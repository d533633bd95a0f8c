//! What people were told of a state that changes, and what of it is news.
//!
//! Pure. Who tells does so at a pace, and a state may change many times in between: what counts then is the difference
//! between what was told and what is. So nothing is told twice, and what went back to what was told is no news.

use std::collections::{BTreeMap, BTreeSet};

/// What was told, by key, and which keys may have news.
#[derive(Debug)]
pub(crate) struct Telling<K, V> {
    told: BTreeMap<K, V>,
    changed: BTreeSet<K>,
}

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct News<K, V> {
    /// What is new or another one.
    pub(crate) new: Vec<(K, V)>,
    /// What was told, and is no more.
    pub(crate) over: Vec<(K, V)>,
}

impl<K, V> Default for Telling<K, V> {
    fn default() -> Self {
        Self {
            told: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Clone, V: Clone> Telling<K, V> {
    /// What is at a key may be another one now.
    pub(crate) fn note(&mut self, key: K) {
        self.changed.insert(key);
    }

    /// How much was told that still stands.
    #[cfg(test)]
    pub(crate) fn told_count(&self) -> usize {
        self.told.len()
    }

    /// Whether there may be news.
    pub(crate) fn has_news(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes the news: `current` is what there is at a key, `is_same` whether it is what was told.
    pub(crate) fn take(
        &mut self,
        current: impl Fn(&K) -> Option<V>,
        is_same: impl Fn(&V, &V) -> bool,
    ) -> News<K, V> {
        let mut news = News {
            new: Vec::new(),
            over: Vec::new(),
        };
        for key in std::mem::take(&mut self.changed) {
            match (current(&key), self.told.get(&key)) {
                (Some(now), Some(told)) if is_same(told, &now) => {}
                (Some(now), _) => {
                    self.told.insert(key.clone(), now.clone());
                    news.new.push((key, now));
                }
                (None, _) => {
                    if let Some(told) = self.told.remove(&key) {
                        news.over.push((key, told));
                    }
                }
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_what_differs_from_what_was_told() {
        let mut telling = Telling::default();
        let mut state = BTreeMap::from([("a", 1), ("b", 2)]);
        let mut check =
            |state: &BTreeMap<&'static str, i32>, changed: &[&'static str], new, over| {
                changed.iter().for_each(|key| telling.note(*key));
                assert_eq!(telling.has_news(), !changed.is_empty());
                let news = telling.take(|key| state.get(key).copied(), |a, b| a == b);
                assert_eq!(news, News { new, over });
                assert!(!telling.has_news());
            };
        check(&state, &["a", "b", "c"], vec![("a", 1), ("b", 2)], vec![]);
        check(&state, &["a"], vec![], vec![]);
        state.insert("a", 3);
        state.remove("b");
        check(&state, &["a", "b"], vec![("a", 3)], vec![("b", 2)]);
        check(&state, &["b"], vec![], vec![]);
        check(&state, &[], vec![], vec![]);
    }
}
