//! Events from files: YAML with several documents, JSON, and Lists as kubectl prints them.
//!
//! One bad document costs only itself. The live agent reads everything anew when a file changes. While
//! something in a file is bad, objects that it held before and that are missing now stay in force: an editor
//! may be in the middle of it.

mod changes;
mod incumbents;
mod kinds;
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tracing::{debug, info, warn};

pub use parse::ManifestError;

use crate::event::Event;
use crate::model::translate::{Objects, strays};
use changes::Changes;
use incumbents::Incumbents;

/// How long nothing may change before files are read: editors and tools take less between their steps.
const QUIET: Duration = Duration::from_millis(100);

/// How long to wait for that at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The most errors of one reading that are logged; others are counted.
const MOST_LOGGED: usize = 20;

/// Files and directories that hold manifests, with what each file held when it was last read.
#[derive(Debug)]
pub struct Manifests {
    paths: Vec<PathBuf>,
    /// Those of the paths that were directories at the start. One that is missing later is an error.
    directories: BTreeSet<PathBuf>,
    stdin: Option<String>,
    before: BTreeMap<PathBuf, Vec<parse::Found>>,
    incumbents: Incumbents,
}

/// What a reading came to.
#[derive(Debug)]
pub struct Reading {
    /// What is good.
    pub objects: Objects,
    /// What is wrong with the rest, and hints.
    pub errors: Vec<ManifestError>,
    /// How many documents there are that are not empty.
    pub documents: usize,
    /// How many objects there are of kinds that do not matter.
    pub others: BTreeMap<String, usize>,
    changes: Changes,
}

impl Reading {
    /// How many documents and objects were refused.
    pub fn refused(&self) -> usize {
        let refusals = self.errors.iter().filter(|error| error.is_refusal());
        refusals.count()
    }

    /// Why there is nothing to make rules of, if there is no Service and that cannot have been meant; a list that
    /// says that there are none may be.
    pub fn without_services(&self) -> Option<String> {
        let refused = self.refused();
        let others: usize = self.others.values().sum();
        let unusable = self.objects.slices.len() + self.objects.endpoints.len();
        if !self.objects.services.is_empty()
            || (self.documents > 0 && refused + others + unusable == 0)
        {
            return None;
        }
        let mut why = Vec::new();
        if refused > 0 {
            why.push(format!("documents or objects refused: {refused}"));
        }
        if unusable > 0 {
            why.push(format!("EndpointSlices and Endpoints: {unusable}"));
        }
        if others > 0 {
            let kinds: Vec<&str> = self.others.keys().take(5).map(String::as_str).collect();
            let kinds = kinds.join(", ");
            why.push(format!("objects of other kinds ({kinds}): {others}"));
        }
        if why.is_empty() {
            why.push("there is no document in it".to_owned());
        }
        let why = why.join("; ");
        Some(format!("no Service was read, so there are no rules: {why}"))
    }
}

impl Manifests {
    /// Manifests at these paths; nothing is read yet.
    ///
    /// # Errors
    /// The first path that cannot be read: what it holds would seem to be gone.
    pub fn at(paths: &[PathBuf]) -> Result<Self, ManifestError> {
        let mut directories = BTreeSet::new();
        for path in paths.iter().filter(|path| !parse::is_stdin(path)) {
            let readable = if path.is_dir() {
                directories.insert(path.clone());
                std::fs::read_dir(path).map(drop)
            } else {
                std::fs::File::open(path).map(drop)
            };
            readable.map_err(|error| ManifestError::unreadable(path, &error))?;
        }
        Ok(Self {
            paths: paths.to_vec(),
            directories,
            stdin: None,
            before: BTreeMap::new(),
            incumbents: Incumbents::default(),
        })
    }

    /// Reads everything.
    pub fn read(&mut self) -> Reading {
        let mut errors = Vec::new();
        let mut files = BTreeMap::new();
        let mut documents = 0;
        let mut others: BTreeMap<String, usize> = BTreeMap::new();
        for file in self.files(&mut errors) {
            let mut contents = self.read_file(&file);
            let is_bad = contents.errors.iter().any(ManifestError::is_refusal);
            let before = self.before.get(&file).filter(|_| is_bad);
            let before = before.cloned().unwrap_or_default();
            if parse::keep_missing(&mut contents.found, before) {
                contents
                    .errors
                    .iter_mut()
                    .for_each(ManifestError::note_kept);
            }
            documents += contents.documents;
            for (kind, count) in contents.others {
                *others.entry(kind).or_default() += count;
            }
            errors.append(&mut contents.errors);
            files.insert(file, contents.found);
        }
        let mut objects = parse::collect(&files, &mut errors);
        self.incumbents.date(&mut objects.services);
        let changes = Changes::between(&self.before, &files);
        self.before = files;
        Reading {
            objects,
            errors,
            documents,
            others,
            changes,
        }
    }

    /// The files at the paths, in order, each once.
    fn files(&self, errors: &mut Vec<ManifestError>) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        for path in &self.paths {
            if !self.directories.contains(path) {
                files.insert(path.clone());
                continue;
            }
            match std::fs::read_dir(path) {
                Ok(entries) => {
                    let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
                    for entry in entries {
                        if is_manifest(&entry) && entry.is_file() {
                            files.insert(entry);
                        } else if holds_manifests(&entry) {
                            let hint = "a directory in a directory is not read; give it by a --manifests of its own";
                            errors.push(ManifestError::hint(&entry, hint));
                        }
                    }
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

    fn read_file(&mut self, file: &Path) -> parse::Contents {
        let unreadable = |error: &std::io::Error| parse::Contents {
            errors: vec![ManifestError::unreadable(file, error)],
            ..parse::Contents::default()
        };
        if parse::is_stdin(file) {
            // Standard input can be read only once.
            if self.stdin.is_none() {
                let mut text = String::new();
                if let Err(error) = std::io::stdin().read_to_string(&mut text) {
                    return unreadable(&error);
                }
                self.stdin = Some(text);
            }
            return parse::file(file, self.stdin.as_deref().unwrap_or_default());
        }
        match std::fs::read_to_string(file) {
            Ok(text) => parse::file(file, &text),
            Err(error) => unreadable(&error),
        }
    }

    /// The directories whose entries matter: those given, and those of the files given.
    fn places(&self) -> BTreeSet<PathBuf> {
        let of_path = |path: &PathBuf| match path.parent() {
            _ if self.directories.contains(path) => path.clone(),
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let paths = self.paths.iter().filter(|path| !parse::is_stdin(path));
        // As the watcher names what changed.
        paths
            .map(of_path)
            .filter_map(|place| std::path::absolute(place).ok())
            .collect()
    }
}

/// Manifests whose files are watched.
#[derive(Debug)]
pub struct Watched {
    manifests: Manifests,
    places: BTreeSet<PathBuf>,
    changes: mpsc::Receiver<()>,
    watcher: RecommendedWatcher,
}

impl Watched {
    /// Begins to watch, before anything is read, so that no change is missed.
    ///
    /// # Errors
    /// That the kernel cannot watch as many files.
    pub fn new(manifests: Manifests) -> notify::Result<Self> {
        let (changed, changes) = mpsc::channel();
        let places = manifests.places();
        let relevant = places.clone();
        let given = manifests.paths.iter();
        let given = given.filter_map(|path| std::path::absolute(path).ok());
        let given: BTreeSet<PathBuf> = given.collect();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // After an error, too, something may have changed.
            if event.map_or(true, |event| matters(&event, &relevant, &given)) {
                // Nobody listens any more when the agent stops.
                let _ = changed.send(());
            }
        })?;
        let mut watched = Self {
            manifests,
            places,
            changes,
            watcher,
        };
        watched.watch()?;
        Ok(watched)
    }

    /// Watches every place, and the directory that it is in: a place may be removed and made anew, or be a
    /// symbolic link that is pointed elsewhere, and is another one then.
    ///
    /// # Errors
    /// The first place that cannot be watched; the others are all the same.
    fn watch(&mut self) -> notify::Result<()> {
        let with_parents = self
            .places
            .iter()
            .flat_map(|place| place.parent().into_iter().chain([place.as_path()]));
        let watcher = &mut self.watcher;
        let results: Vec<_> = with_parents
            .map(|path| watcher.watch(path, RecursiveMode::NonRecursive))
            .collect();
        results.into_iter().collect()
    }

    /// Sends everything now and after each change of a file, for as long as events are taken. Blocks.
    pub fn run(mut self, node_name: &str, send: impl Fn(Event) -> bool) {
        let mut reported = Vec::new();
        let mut strays: Vec<strays::Stray> = Vec::new();
        let mut whole = false;
        let mut is_first = true;
        loop {
            let is_again = !std::mem::take(&mut is_first);
            if is_again {
                debug!("files changed; reading all manifests again");
            }
            let reading = self.manifests.read();
            if is_again {
                log_changes(&reading.changes);
            }
            log_errors(&reported, &reading.errors);
            let strays_now = strays::strays(&reading.objects);
            let news = strays_now.iter().filter(|stray| !strays.contains(stray));
            news.take(MOST_LOGGED).for_each(|stray| warn!("{stray}"));
            strays = strays_now;
            let refused = reading.refused();
            // Later, what breaks is remembered from before.
            whole |= refused == 0;
            if !whole && reading.errors != reported {
                warn!(
                    "until all manifests can be read, rules are added, and none is changed or removed"
                );
            }
            let objects = reading.objects;
            reported = reading.errors;
            let taken = send(Event::AllListed {
                services: objects.parsed_services(),
                slices: objects.parsed_slices(node_name),
                service_cidrs: objects.parsed_service_cidrs(),
                node: objects.own_node(node_name),
                whole,
                refused,
            });
            if !taken || self.changes.recv().is_err() {
                return;
            }
            self.wait_until_quiet();
            // A place that is missing now is told of when it is read, and watched when it is made anew.
            let _ = self.watch();
        }
    }

    /// Waits until nothing changes any more: whoever saves a file writes it in pieces, or moves the old one
    /// away first.
    fn wait_until_quiet(&self) {
        let began = Instant::now();
        while began.elapsed() < LONGEST_WAIT && self.changes.recv_timeout(QUIET).is_ok() {}
    }
}

fn log_changes(changes: &Changes) {
    if changes.is_empty() {
        debug!("manifests were read again; no object changed");
    } else {
        info!("manifests changed: {changes}");
    }
}

/// Logs what is wrong now and was not before, and which files are mended.
fn log_errors(before: &[ManifestError], now: &[ManifestError]) {
    let news: Vec<_> = now.iter().filter(|error| !before.contains(error)).collect();
    news.iter()
        .take(MOST_LOGGED)
        .for_each(|error| warn!("{error}"));
    if let more @ 1.. = news.len().saturating_sub(MOST_LOGGED) {
        warn!(
            "and {more} more errors in manifests; proxyd --dry-run --manifests tells all of them"
        );
    }
    let bad = |errors: &[ManifestError]| -> BTreeSet<PathBuf> {
        let refusals = errors.iter().filter(|error| error.is_refusal());
        refusals.map(|error| error.file().to_owned()).collect()
    };
    for file in bad(before).difference(&bad(now)).take(MOST_LOGGED) {
        info!("{}: nothing in it is refused any more", file.display());
    }
}

/// Whether a path is a directory with manifests in it. Hidden ones are not meant to be read: so are those that a
/// ConfigMap's files are links into.
fn holds_manifests(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    if is_hidden || !path.is_dir() {
        return false;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten();
    entries.flatten().any(|entry| is_manifest(&entry.path()))
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e))
}

/// Whether an event of the file system may have changed what is in these places. What is written to other files than
/// manifests and those that were given does not matter: it may be the agent's own log.
fn matters(event: &notify::Event, places: &BTreeSet<PathBuf>, given: &BTreeSet<PathBuf>) -> bool {
    let is_here = |path: &&PathBuf| places.iter().any(|place| path.starts_with(place));
    let mut here = event.paths.iter().filter(is_here);
    let is_read = |path: &PathBuf| is_manifest(path) || given.contains(path);
    let is_change = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => here.any(is_read),
        EventKind::Access(_) => false,
        // A name that comes or goes may be a link to what is read.
        _ => here.next().is_some(),
    };
    event.need_rescan() || is_change
}
