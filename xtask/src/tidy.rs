//! House rules that no linter knows, checked on the repository's text: layers, purity, sizes, documents.
//!
//! Run as part of `cargo xtask check` and as a unit test. Rules are functions of a [`Tree`], so each is tested on a few
//! lines in memory. Only [`Tree::read`] touches the disk.

mod files;
mod layers;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::tools;
use source::Source;

/// Files that may break a rule, as (rule, path, why). One that is no longer needed fails too.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "sleeping-tests",
        "tests/src/apiserver/http.rs",
        "a server that answers late on purpose",
    ),
    (
        "sleeping-tests",
        "tests/src/wait.rs",
        "the one place that polls: its waits have a deadline",
    ),
];

const RULES: &[(&str, Rule)] = &[
    ("pure", layers::pure),
    ("layers", layers::layers),
    ("layer-table", layers::table),
    ("wall-clock", layers::wall_clock),
    ("api-types", layers::api_types),
    ("file-length", files::length),
    ("module-docs", files::module_docs),
    ("unfinished", files::unfinished),
    ("sleeping-tests", files::sleeping_tests),
    ("unsafe", files::unsafe_code),
    ("whitespace", files::whitespace),
    ("lock-file", files::lock_file),
    ("documents", files::documents),
];

type Rule = fn(&Tree) -> Vec<Problem>;

/// Directories that hold nothing of ours; the last two are what cargo-fuzz found.
const SKIPPED_DIRS: &[&str] = &[".git", "target", "corpus", "artifacts"];

/// Checks the repository; prints what is wrong and ends in an error if anything is.
pub(crate) fn run() -> anyhow::Result<()> {
    let problems = check(&Tree::read(&tools::root())?, EXCEPTIONS);
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        count => bail!("house rules are broken in {count} places"),
    }
}

/// Every problem that is not excused, with the rule's name in front, and every excuse without a problem.
fn check(tree: &Tree, exceptions: &[(&str, &str, &str)]) -> Vec<String> {
    let mut unused: Vec<_> = exceptions.iter().collect();
    let mut found = Vec::new();
    for (name, rule) in RULES {
        for problem in rule(tree) {
            let excuses = |rule: &str, path: &str| rule == *name && path == problem.path;
            unused.retain(|(rule, path, _)| !excuses(rule, path));
            if !exceptions.iter().any(|(rule, path, _)| excuses(rule, path)) {
                found.push(format!("{name}: {problem}"));
            }
        }
    }
    found.extend(
        unused
            .iter()
            .map(|(rule, path, _)| format!("{rule}: {path} no longer needs its exception")),
    );
    found
}

/// A place where a rule is broken.
#[derive(Debug)]
struct Problem {
    path: String,
    /// From 1; none where it is the whole file.
    line: Option<usize>,
    message: String,
}

impl Problem {
    fn file(path: &str, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            message: message.into(),
        }
    }

    fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: Some(line),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            message,
        } = self;
        match line {
            Some(line) => write!(f, "{path}:{line}: {message}"),
            None => write!(f, "{path}: {message}"),
        }
    }
}

/// The repository's text files by path, `/` between the parts.
#[derive(Default)]
struct Tree(BTreeMap<String, File>);

struct File {
    text: String,
    /// Of `.rs` files alone.
    source: Option<Source>,
}

impl Tree {
    /// Reads all text files below `root`; what is not UTF-8 is left out.
    fn read(root: &Path) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        tree.read_dir(root, "")?;
        Ok(tree)
    }

    fn read_dir(&mut self, dir: &Path, prefix: &str) -> anyhow::Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED_DIRS.contains(&name.as_str()) {
                self.read_dir(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() {
                let bytes =
                    fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
                if let Ok(text) = String::from_utf8(bytes) {
                    self.insert(path, text);
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: String, text: String) {
        let source = path.ends_with(".rs").then(|| Source::new(&text));
        self.0.insert(path, File { text, source });
    }

    /// A file's text, if it is there.
    fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(|file| file.text.as_str())
    }

    /// Every Rust file: its path, its text and what was read from it.
    fn rust(&self) -> impl Iterator<Item = (&str, &str, &Source)> {
        self.0.iter().filter_map(|(path, file)| {
            Some((path.as_str(), file.text.as_str(), file.source.as_ref()?))
        })
    }

    /// Whether there is a file or a directory of that path.
    fn has(&self, path: &str) -> bool {
        let dir = format!("{}/", path.trim_end_matches('/'));
        self.0.contains_key(path) || self.0.keys().any(|file| file.starts_with(&dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            tree.insert((*path).to_owned(), (*text).to_owned());
        }
        tree
    }

    /// Applies one rule to one file.
    pub(super) fn check_rule(rule: Rule, path: &str, text: &str, expected: &[&str]) {
        let found: Vec<_> = rule(&tree(&[(path, text)]))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, expected, "{path}: {text}");
    }

    #[test]
    fn this_repository_is_tidy() {
        let problems = check(&Tree::read(&tools::root()).unwrap(), EXCEPTIONS);
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    #[test]
    fn exceptions_excuse_a_file_from_one_rule_while_it_needs_that() {
        let found = |exceptions: &[_]| {
            let problems = check(
                &tree(&[("xtask/src/a.rs", "//! A.\nunsafe {} \n")]),
                exceptions,
            );
            problems
                .into_iter()
                .filter(|problem| problem.contains("a.rs"))
                .collect::<Vec<_>>()
        };
        let (used, unused) = (
            ("unsafe", "xtask/src/a.rs", "why"),
            ("pure", "xtask/src/a.rs", "why"),
        );
        assert_eq!(found(&[]).len(), 2);
        assert_eq!(
            found(&[used]),
            ["whitespace: xtask/src/a.rs:2: space at the end of the line"]
        );
        assert_eq!(
            found(&[used, unused])[1],
            "pure: xtask/src/a.rs no longer needs its exception"
        );
    }
}
