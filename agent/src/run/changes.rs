//! The file of `--config`, watched: the agent ends when it changes, to be started anew with what it says then.
//!
//! As kube-proxy, but that a file which cannot be used ends nothing: the agent says so and goes on with what it was
//! started with.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tracing::warn;

use crate::cli::Cli;
use crate::config::{Config, ConfigFile};

/// How long nothing may change before the file is read: editors and tools take less between their steps.
const QUIET: Duration = Duration::from_millis(100);

/// How long to wait for that at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The file, and who tells that it may have changed.
#[derive(Debug)]
pub(super) struct Changes {
    file: ConfigFile,
    changes: mpsc::Receiver<()>,
    watcher: RecommendedWatcher,
}

impl Changes {
    /// Begins to watch. A machine that can watch no more files only says so.
    pub(super) fn of(file: &ConfigFile) -> Option<Self> {
        let (changed, changes) = mpsc::channel();
        let watcher = notify::recommended_watcher(move |_| {
            // Nobody listens any more when the agent stops.
            let _ = changed.send(());
        });
        let watched = watcher.and_then(|watcher| {
            let file = file.clone();
            let mut changes = Self {
                file,
                changes,
                watcher,
            };
            changes.watch()?;
            Ok(changes)
        });
        watched
            .map_err(|error| {
                let path = file.path.display();
                warn!("--config {path}: cannot be watched ({error}); a change counts at the next start");
            })
            .ok()
    }

    /// Watches the directory, where names come and go, such as the link that a ConfigMap's files are behind; and the file
    /// itself, which may be mounted alone.
    fn watch(&mut self) -> notify::Result<()> {
        let path = &self.file.path;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        self.watcher.watch(directory, RecursiveMode::NonRecursive)?;
        // Whoever moved another file here is heard of by the directory.
        let _ = self.watcher.watch(path, RecursiveMode::NonRecursive);
        Ok(())
    }

    /// Returns when the file says something else that can be used. Blocks.
    pub(super) fn wait(mut self) -> String {
        let path = self.file.path.display().to_string();
        let mut refused = None;
        while self.changes.recv().is_ok() {
            let began = Instant::now();
            while began.elapsed() < LONGEST_WAIT && self.changes.recv_timeout(QUIET).is_ok() {}
            let _ = self.watch();
            // One that is missing now comes back, or stays away; neither says anything else.
            let Ok(text) = fs::read_to_string(&self.file.path) else {
                continue;
            };
            if text == self.file.text || refused.as_ref() == Some(&text) {
                continue;
            }
            let usable = Cli::try_parse().map_err(|error| error.to_string());
            let usable =
                usable.and_then(|cli| Config::from_cli(cli).map_err(|error| error.to_string()));
            match usable {
                Ok(_) => return format!("{path} changed"),
                Err(error) => warn!(
                    "{path} changed and cannot be used: {error}; what it said at the start still counts"
                ),
            }
            refused = Some(text);
        }
        format!("the watch of {path} ended")
    }
}
