//! The links that hold programs at their hooks: whether they still do. I/O: files of `/proc`, and a thread that looks now
//! and then.
//!
//! The kernel tells nobody that a program was detached (by `bpftool link detach`, or because the cgroup was removed), or that a
//! pin was.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use aya::programs::links::PinnedLink;

use super::super::DataplaneError;
use crate::event::Event;
use crate::model::Family;

/// How often the watcher looks. It takes four system calls for each link.
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
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // They have just been opened, so they are among those with the highest numbers.
        paths.sort_by_key(|path| Reverse(number_of(path)));
        let links = links.into_iter().map(|(pin, open, number)| {
            let number = number.to_string();
            let shows_it = |path: &&PathBuf| value(&shown(path), "link_id:") == Some(&*number);
            let path = paths.iter().find(shows_it).cloned();
            Ok(Link {
                pin,
                _open: open,
                shown: path.ok_or_else(|| unreadable(ErrorKind::NotFound.into()))?,
            })
        });
        Ok(Self(links.collect::<Result<_, DataplaneError>>()?))
    }

    /// Whether all of them are attached and pinned.
    pub(super) fn are_whole(&self) -> bool {
        self.0.iter().all(|link| {
            // A link whose cgroup or device is gone, or that was detached, shows none.
            let shown = shown(&link.shown);
            let places = ["cgroup_id:", "ifindex:"].map(|name| value(&shown, name));
            let mut places = places.into_iter().flatten();
            places.any(|id| !id.starts_with("0")) && link.pin.exists()
        })
    }
}

/// The number of the descriptor that a file of `/proc/self/fdinfo` is about.
fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// What the kernel shows in a file of `/proc/self/fdinfo`, which is shorter than a page; a descriptor may have been closed
/// meanwhile.
fn shown(path: &Path) -> String {
    let mut page = [0; 4_096];
    let read = File::open(path).and_then(|mut file| file.read(&mut page));
    String::from_utf8_lossy(&page[..read.unwrap_or(0)]).into_owned()
}

/// A value of it.
fn value<'a>(shown: &'a str, name: &str) -> Option<&'a str> {
    let line = shown.lines().find_map(|line| line.strip_prefix(name));
    line.map(str::trim)
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
