//! Events from files: YAML with several documents, JSON, and Lists as kubectl prints them.
//!
//! One bad document costs only itself. The live agent reads everything anew when a file changes. While
//! something in a file is bad, objects that it held before and that are missing now stay in force: an editor
//! may be in the middle of it.

mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tracing::{debug, warn};

pub use parse::ManifestError;

use crate::event::Event;
use crate::model::translate::Objects;

/// Files and directories that hold manifests, with what each file held when it was last read.
#[derive(Debug)]
pub struct Manifests {
    paths: Vec<PathBuf>,
    stdin: Option<String>,
    before: BTreeMap<PathBuf, Vec<parse::Found>>,
}

impl Manifests {
    /// Manifests at these paths; nothing is read yet.
    ///
    /// # Errors
    /// The first path that cannot be read: what it holds would seem to be gone.
    pub fn at(paths: &[PathBuf]) -> Result<Self, ManifestError> {
        for path in paths.iter().filter(|path| *path != Path::new("-")) {
            let readable = if path.is_dir() {
                std::fs::read_dir(path).map(drop)
            } else {
                std::fs::File::open(path).map(drop)
            };
            readable.map_err(|error| ManifestError::unreadable(path, &error))?;
        }
        Ok(Self {
            paths: paths.to_vec(),
            stdin: None,
            before: BTreeMap::new(),
        })
    }

    /// Reads everything: what is good, and what is wrong with the rest.
    pub fn read(&mut self) -> (Objects, Vec<ManifestError>) {
        let mut errors = Vec::new();
        let mut files = BTreeMap::new();
        for file in self.files(&mut errors) {
            let (mut found, mut failed) = self.read_file(&file);
            let before = self.before.remove(&file).unwrap_or_default();
            if !failed.is_empty() && parse::keep_missing(&mut found, before) {
                failed.iter_mut().for_each(ManifestError::note_kept);
            }
            errors.append(&mut failed);
            files.insert(file, found);
        }
        let objects = parse::collect(&files, &mut errors);
        self.before = files;
        (objects, errors)
    }

    /// The files at the paths, in order, each once.
    fn files(&self, errors: &mut Vec<ManifestError>) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        for path in &self.paths {
            if !path.is_dir() {
                files.insert(path.clone());
                continue;
            }
            match std::fs::read_dir(path) {
                Ok(entries) => {
                    let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
                    files.extend(entries.filter(|path| is_manifest(path) && path.is_file()));
                }
                Err(error) => {
                    errors.push(ManifestError::unreadable(path, &error));
                    // None of them counts as removed.
                    let before = self
                        .before
                        .keys()
                        .filter(|file| file.parent() == Some(path));
                    files.extend(before.cloned());
                }
            }
        }
        files
    }

    fn read_file(&mut self, file: &Path) -> (Vec<parse::Found>, Vec<ManifestError>) {
        if file == Path::new("-") {
            // Standard input can be read only once.
            if self.stdin.is_none() {
                let mut text = String::new();
                if let Err(error) = std::io::stdin().read_to_string(&mut text) {
                    return (Vec::new(), vec![ManifestError::unreadable(file, &error)]);
                }
                self.stdin = Some(text);
            }
            return parse::file(file, self.stdin.as_deref().unwrap_or_default());
        }
        match std::fs::read_to_string(file) {
            Ok(text) => parse::file(file, &text),
            Err(error) => (Vec::new(), vec![ManifestError::unreadable(file, &error)]),
        }
    }

    /// The directories to watch for changes.
    fn directories(&self) -> BTreeSet<PathBuf> {
        let of_path = |path: &PathBuf| match path.parent() {
            _ if path.is_dir() => path.clone(),
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        self.paths
            .iter()
            .filter(|path| *path != Path::new("-"))
            .map(of_path)
            .collect()
    }
}

/// Manifests whose files are watched.
#[derive(Debug)]
pub struct Watched {
    manifests: Manifests,
    changes: mpsc::Receiver<()>,
    /// Ends the watch when it is dropped.
    _watcher: RecommendedWatcher,
}

impl Watched {
    /// Begins to watch, before anything is read, so that no change is missed.
    ///
    /// # Errors
    /// That the kernel cannot watch as many files.
    pub fn new(manifests: Manifests) -> notify::Result<Self> {
        let (changed, changes) = mpsc::channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // After an error, too, something may have changed.
                if event.map_or(true, |event| is_complete(event.kind)) {
                    // Nobody listens any more when the agent stops.
                    let _ = changed.send(());
                }
            })?;
        for directory in manifests.directories() {
            watcher.watch(&directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self {
            manifests,
            changes,
            _watcher: watcher,
        })
    }

    /// Sends everything now and after each change of a file, for as long as events are taken. Blocks.
    pub fn run(mut self, node_name: &str, send: impl Fn(Event) -> bool) {
        let mut reported = Vec::new();
        loop {
            let (objects, errors) = self.manifests.read();
            errors
                .iter()
                .filter(|error| !reported.contains(*error))
                .for_each(|error| warn!("{error}"));
            reported = errors;
            let taken = send(Event::ServicesListed(objects.parsed_services()))
                && send(Event::SlicesListed(objects.parsed_slices(node_name)))
                && send(Event::NodeChanged(objects.own_node(node_name)));
            if !taken || self.changes.recv().is_err() {
                return;
            }
            while self.changes.try_recv().is_ok() {}
            debug!("a manifest changed; reading all of them again");
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e))
}

/// Whether an event of the file system means that a file is whole again: written and closed, or moved, made
/// or removed. In the middle of writing it is not.
fn is_complete(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(kind) => matches!(kind, ModifyKind::Name(_)),
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Any | EventKind::Other => false,
    }
}
