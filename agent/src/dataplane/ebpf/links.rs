//! The links that hold programs at their hooks: whether they still do. I/O: files of `/proc`, and a thread that looks now
//! and then.
//!
//! The kernel tells nobody that a program was detached (by `bpftool link detach`, or because the cgroup was removed), or that a
//! pin was.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use aya::programs::links::PinnedLink;

use super::super::DataplaneError;
use crate::event::Event;
use crate::model::Family;

/// How often the watcher looks. It takes some ten microseconds.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// Links that were made together.
#[derive(Debug)]
pub(super) struct Links(Vec<Link>);

#[derive(Debug)]
struct Link {
    pin: PathBuf,
    /// Kept open, so that it does not go with its pin.
    _open: PinnedLink,
    /// What the kernel shows of it.
    shown: PathBuf,
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    _end: Sender<()>,
}

impl Links {
    /// Takes over links by their pins, with their numbers.
    ///
    /// # Errors
    /// That the kernel does not show them.
    pub(super) fn new(links: Vec<(PathBuf, PinnedLink, u32)>) -> Result<Self, DataplaneError> {
        let unreadable = |error| DataplaneError::bpf("reading /proc/self/fdinfo", error);
        let entries = fs::read_dir("/proc/self/fdinfo").map_err(unreadable)?;
        let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let links = links.into_iter().map(|(pin, open, number)| {
            let number = number.to_string();
            let shows_it = |path: &&PathBuf| value(path, "link_id:").as_ref() == Some(&number);
            let shown = paths.iter().find(shows_it).cloned();
            let shown = shown.ok_or_else(|| unreadable(ErrorKind::NotFound.into()))?;
            Ok(Link {
                pin,
                _open: open,
                shown,
            })
        });
        Ok(Self(links.collect::<Result<_, DataplaneError>>()?))
    }

    /// Whether all of them are attached and pinned.
    pub(super) fn are_whole(&self) -> bool {
        self.0.iter().all(|link| {
            // A link whose cgroup or device is gone, or that was detached, shows none.
            let places = ["cgroup_id:", "ifindex:"].map(|name| value(&link.shown, name));
            let mut places = places.into_iter().flatten();
            places.any(|id| !id.starts_with("0")) && link.pin.exists()
        })
    }
}

/// A value that the kernel shows in a file of `/proc/self/fdinfo`.
fn value(path: &Path, name: &str) -> Option<String> {
    // A descriptor may have been closed meanwhile.
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map(|value| value.trim().to_owned())
}

impl Watcher {
    /// Starts a thread that reports when links are not whole any more, once for these.
    ///
    /// # Errors
    /// That no thread could be had.
    pub(super) fn start(
        links: Arc<Links>,
        report: Arc<dyn Fn(Event) -> bool + Send + Sync>,
    ) -> Result<Self, DataplaneError> {
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("watch-programs".to_owned());
        let watch = move || {
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if !links.are_whole() {
                    for family in Family::ALL {
                        let by = "someone".to_owned();
                        report(Event::KernelChanged { family, by });
                    }
                    return;
                }
            }
        };
        thread.spawn(watch).map_err(DataplaneError::Netlink)?;
        Ok(Self { _end: end })
    }
}
