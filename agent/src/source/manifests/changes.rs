//! What changed in manifests from one reading to the next, for the log. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::parse::{Found, Object};

/// The most objects that are named; others are counted.
const MOST_NAMED: usize = 5;

/// What changed, by file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// The first ones, in the files' order: the file, what each object is, and what became of it.
    named: Vec<(PathBuf, String, &'static str)>,
    count: usize,
}

impl Changes {
    /// What is other now than before.
    pub(super) fn between(
        before: &BTreeMap<PathBuf, Vec<Found>>,
        now: &BTreeMap<PathBuf, Vec<Found>>,
    ) -> Self {
        let mut changes = Self::default();
        let gone = before.keys().filter(|file| !now.contains_key(*file));
        let mut files: Vec<&PathBuf> = now.keys().chain(gone).collect();
        files.sort();
        for file in files {
            changes.of_file(file, before.get(file), now.get(file));
        }
        changes
    }

    /// Whether nothing changed.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn of_file(&mut self, file: &Path, before: Option<&Vec<Found>>, now: Option<&Vec<Found>>) {
        let by_key = |found: Option<&'_ Vec<Found>>| -> BTreeMap<_, Object> {
            let found = found.into_iter().flatten();
            let objects = found.map(|found| (found.object.key(), found.object.clone()));
            objects.collect()
        };
        let mut before = by_key(before);
        for (key, object) in by_key(now) {
            match before.remove(&key) {
                None => self.note(file, &key, "is new"),
                Some(old) if old != object => self.note(file, &key, "changed"),
                Some(_) => {}
            }
        }
        for key in before.keys() {
            self.note(file, key, "is gone");
        }
    }

    fn note(
        &mut self,
        file: &Path,
        (kind, name): &(&'static str, crate::model::ObjectName),
        what: &'static str,
    ) {
        self.count += 1;
        if self.named.len() < MOST_NAMED {
            let object = format!("{kind} {name}");
            self.named.push((file.to_owned(), object, what));
        }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last: Option<&Path> = None;
        for (file, object, what) in &self.named {
            match last {
                Some(last) if last == file => f.write_str(", ")?,
                Some(_) => write!(f, "; {}: ", file.display())?,
                None => write!(f, "{}: ", file.display())?,
            }
            write!(f, "{object} {what}")?;
            last = Some(file);
        }
        match self.count - self.named.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn read(files: &[(&str, &str)]) -> BTreeMap<PathBuf, Vec<Found>> {
        let read = files.iter().map(|(name, text)| {
            let path = PathBuf::from(name);
            let found = parse::file(&path, text).found;
            (path, found)
        });
        read.collect()
    }

    fn service(name: &str, ip: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}}}\n"
        )
    }

    #[test]
    fn changed_objects_are_named_by_their_files() {
        let [web, api] = [service("web", "10.96.0.1"), service("api", "10.96.0.2")];
        let before = read(&[
            ("a.yaml", &(web.clone() + &api)),
            ("b.yaml", &service("old", "10.96.0.3")),
        ]);
        assert!(Changes::between(&before, &before).is_empty());
        // The order and place of objects say nothing.
        let moved = read(&[
            ("a.yaml", &(api.clone() + &web)),
            ("b.yaml", &service("old", "10.96.0.3")),
        ]);
        assert!(Changes::between(&before, &moved).is_empty());
        let now = read(&[
            ("a.yaml", &(service("web", "10.96.0.9") + &api)),
            ("c.yaml", &service("new", "10.96.0.4")),
        ]);
        assert_eq!(
            Changes::between(&before, &now).to_string(),
            "a.yaml: Service default/web changed; b.yaml: Service default/old is gone; \
             c.yaml: Service default/new is new"
        );
    }

    #[test]
    fn at_most_five_are_named() {
        let text: String = (1..=7)
            .map(|i| service(&format!("s{i}"), &format!("10.96.0.{i}")))
            .collect();
        let changes = Changes::between(&BTreeMap::new(), &read(&[("a.yaml", &text)]));
        assert_eq!(
            changes.to_string(),
            "a.yaml: Service default/s1 is new, Service default/s2 is new, Service default/s3 is new, \
             Service default/s4 is new, Service default/s5 is new; and 2 more"
        );
    }
}
