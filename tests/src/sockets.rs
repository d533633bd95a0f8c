//! A cgroup and a place for pins, for an agent whose programs balance sockets.
//!
//! Threads that enter one of the namespaces of [`Sockets::of`] are in the cgroup, and so are the sockets that they make.
//! Names hold the process id; what a test left that was killed is removed by the next one.
//!
//! Needs root, cgroup v2 and a kernel with BPF.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::netns::Netns;
use crate::wait::poll;
use crate::world::PATIENCE;

/// How names of ours begin.
const PREFIX: &str = "proxyd-test-";

const BPF_ROOT: &str = "/sys/fs/bpf";

/// A cgroup and a directory for pins; removed when dropped.
#[derive(Debug)]
pub struct Sockets {
    cgroup: PathBuf,
    pins: PathBuf,
}

impl Sockets {
    /// Makes a cgroup that the threads of these namespaces are in from now on. Its directory for pins is not made.
    ///
    /// # Panics
    /// Without root or cgroup v2.
    pub fn of(namespaces: &[&Netns]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static ONCE: OnceLock<PathBuf> = OnceLock::new();
        let parent = ONCE.get_or_init(|| {
            let parent = own_cgroup();
            mount_bpf();
            sweep(&parent);
            sweep(Path::new(BPF_ROOT));
            parent
        });
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{count}", std::process::id());
        let sockets = Self {
            cgroup: parent.join(&name),
            pins: Path::new(BPF_ROOT).join(&name),
        };
        sockets.make_cgroup();
        for netns in namespaces {
            netns.join_cgroup(&sockets.cgroup);
        }
        sockets
    }

    fn make_cgroup(&self) {
        fs::create_dir(&self.cgroup).expect("a cgroup can be made");
        // Only then can single threads be in it.
        fs::write(self.cgroup.join("cgroup.type"), "threaded")
            .expect("the cgroup can be one of threads");
    }

    /// Removes the cgroup, and with it what is attached there, and makes another one in its place.
    ///
    /// # Panics
    /// If a thread is in it.
    pub fn remake_cgroup(&self) {
        remove(&self.cgroup);
        self.make_cgroup();
    }

    /// The arguments that make an agent balance these sockets.
    pub fn args(&self) -> [&str; 6] {
        [
            "--backend",
            "ebpf",
            "--cgroup",
            path(&self.cgroup),
            "--bpf-path",
            path(&self.pins),
        ]
    }

    /// Where a map of the programs is pinned.
    ///
    /// # Panics
    /// If no agent has made it.
    pub fn map(&self, name: &str) -> PathBuf {
        let entries = fs::read_dir(&self.pins).expect("an agent has pinned something");
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path().join(name)));
        let path = paths.find(|path| path.exists());
        path.expect("an agent has pinned its maps")
    }

    /// Where programs and maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        remove(&self.pins);
        remove(&self.cgroup);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the path is made of ASCII")
}

/// The cgroup of this process in the hierarchy of version 2.
fn own_cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is there");
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let root = mounts
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .expect("cgroup v2 is mounted")[1]
        .to_owned();
    let cgroups = fs::read_to_string("/proc/self/cgroup").expect("/proc is there");
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"));
    Path::new(&root).join(own.expect("every process is in a cgroup"))
}

fn mount_bpf() {
    let is_mounted = statfs(BPF_ROOT).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
    if !is_mounted {
        mount(
            Some("bpf"),
            BPF_ROOT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("a BPF filesystem can be mounted");
    }
}

/// Removes what tests left that are no more.
fn sweep(directory: &Path) {
    let entries = fs::read_dir(directory).expect("the directory can be read");
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a directory of a BPF filesystem, or a cgroup, whose files cannot be removed and go with it. A thread that was
/// joined may take a moment longer to leave its cgroup.
fn remove(directory: &Path) {
    let is_gone = || {
        let _ = fs::remove_dir_all(directory);
        let _ = fs::remove_dir(directory);
        (!directory.exists()).then_some(())
    };
    if poll(PATIENCE, is_gone).is_none() {
        eprintln!("{} cannot be removed", directory.display());
    }
}
