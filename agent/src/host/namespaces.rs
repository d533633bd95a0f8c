//! The network namespaces of the machine. I/O: `/proc`, `/run`, and `setns`.
//!
//! The kernel has no list of them. A namespace is found by a process or a thread in it, or by a name that a container
//! runtime gave it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where runtimes keep names: iproute2, containerd and CRI-O; Docker.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// What came of a visit to all of them.
#[derive(Debug, Default)]
pub struct Visited {
    /// How many there were.
    pub count: usize,
    /// Why one could not be entered; others were all the same.
    pub refused: Option<io::Error>,
}

/// Does `work` in one namespace after the other, the caller's first, until it breaks off. The calling thread is in
/// its own again afterwards; it must be one that others do not share, as tasks of a runtime do.
///
/// # Errors
/// That the thread's own namespace cannot be opened, or entered again.
pub fn visit(mut work: impl FnMut() -> ControlFlow<()>) -> io::Result<Visited> {
    let own = File::open(OWN)?;
    let mut seen = BTreeSet::new();
    let mut visited = Visited::default();
    for path in paths() {
        let id = match fs::metadata(&path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            Err(error) => {
                visited.note(error);
                continue;
            }
        };
        if seen.contains(&id) {
            continue;
        }
        // One that goes while it is entered may still be there by another process.
        if let Err(error) = enter(&path) {
            visited.note(error);
            continue;
        }
        seen.insert(id);
        visited.count += 1;
        if work().is_break() {
            break;
        }
    }
    setns(&own, CloneFlags::CLONE_NEWNET)?;
    Ok(visited)
}

impl Visited {
    /// Notes why a namespace was not entered, unless it is gone, or a file is left where it was.
    fn note(&mut self, error: io::Error) {
        let gone = [Errno::ENOENT, Errno::ESRCH, Errno::EINVAL].map(|errno| errno as i32);
        if !error.raw_os_error().is_some_and(|n| gone.contains(&n)) {
            self.refused.get_or_insert(error);
        }
    }
}

fn enter(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}

/// Files that stand for namespaces, most of them several times. Threads come last: few are elsewhere than their process.
fn paths() -> impl Iterator<Item = PathBuf> {
    let own = [OWN.into()].into_iter();
    let named = NAMED.into_iter().flat_map(entries);
    let processes = || entries("/proc").filter(|path| is_number(path));
    let of_processes = processes().map(|process| process.join("ns/net"));
    let threads = processes().flat_map(|process| entries(process.join("task")));
    let of_threads = threads.map(|thread| thread.join("ns/net"));
    own.chain(named).chain(of_processes).chain(of_threads)
}

/// What is in a directory; nothing if it is not there.
fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn is_number(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}
