//! Loads the programs and attaches them to a cgroup. I/O: system calls, and a BPF filesystem.
//!
//! Programs and maps are pinned, so they outlive the agent. A new agent loads its own programs with the maps that are
//! there, attaches them beside the old ones and then takes those away: a socket that meets both is balanced by the first,
//! since the second does not know a back end's address as a Service's.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::maps::Array;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use nix::{getsockopt_impl, sockopt_impl};
use proxyd_ebpf_common as bpf;

use super::super::DataplaneError;
use super::Places;
use super::links::Links;
use super::maps::Maps;

/// The programs, as `cargo xtask ebpf build` makes them.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/objects/proxyd-ebpf.o"
));

/// The programs, by the names of their functions, which are those of the hooks.
const PROGRAMS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// What the maps' keys and values look like. Who changes them, or the maps' kinds, counts this up: maps of another layout
/// are not taken over.
const LAYOUT: u32 = 1;

/// The maps, which are pinned by their names.
const MAPS: [&str; 9] = [
    "settings",
    "frontends",
    "backends",
    "members",
    "node_addresses",
    "affinity",
    "flows",
    "tcp_peers",
    "udp_peers",
];

/// Where cgroup v2 is mounted, in the order in which it is looked for.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

sockopt_impl!(
    /// The cookie of a socket's network namespace (Linux 5.14).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Loads and attaches all programs, in place of those of an earlier agent.
pub(super) fn attach(places: &Places) -> Result<(Maps, Links), DataplaneError> {
    let cgroup = cgroup(places.cgroup.as_deref())?;
    let pins = Pins::make(&places.pins)?;
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    let mut loaded = loader
        .load(OBJECT)
        .map_err(|error| DataplaneError::bpf("loading the maps", error))?;
    let settings = bpf::Settings {
        node_namespace: node_namespace()?,
    };
    set(&mut loaded, settings)?;
    let mut links = Vec::new();
    for name in PROGRAMS {
        let link = link(&mut loaded, name, &cgroup)
            .map_err(|error| DataplaneError::bpf(format!("attaching {name}"), error))?;
        links.push((name, link));
    }
    let maps = Maps::take(&mut loaded)?;
    let links = Links::new(pins.replace(links)?)?;
    pins.remove_other_maps()?;
    Ok((maps, links))
}

/// Where maps of this layout are, below the directory where everything is pinned.
pub(super) fn maps(pins: &Path) -> PathBuf {
    pins.join(format!("maps-{LAYOUT}"))
}

/// Takes programs and maps away; tells whether there were any.
pub(super) fn detach(places: &Places) -> Result<bool, DataplaneError> {
    match fs::remove_dir_all(&places.pins) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataplaneError::bpf(
            format!("removing {}", places.pins.display()),
            error,
        )),
    }
}

/// Opens the cgroup whose sockets are balanced.
fn cgroup(given: Option<&Path>) -> Result<fs::File, DataplaneError> {
    let is_v2 =
        |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let path = match given {
        Some(path) => Some(path.to_owned()),
        None => CGROUP_ROOTS.iter().map(PathBuf::from).find(|p| is_v2(p)),
    };
    let path = path.ok_or_else(|| DataplaneError::Lacking {
        what: "cgroup v2 is not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified; name a cgroup with --cgroup",
    })?;
    if !is_v2(&path) {
        return Err(DataplaneError::bpf(
            format!("--cgroup {}", path.display()),
            "not a directory of cgroup v2",
        ));
    }
    fs::File::open(&path)
        .map_err(|error| DataplaneError::bpf(format!("opening {}", path.display()), error))
}

/// The cookie of the network namespace that the agent is in.
fn node_namespace() -> Result<u64, DataplaneError> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let cookie = socket.and_then(|socket| getsockopt(&socket, NetnsCookie));
    cookie.map_err(|errno| match errno {
        Errno::ENOPROTOOPT => DataplaneError::Lacking {
            what: "this kernel has no cookies of network namespaces (Linux 5.14)",
        },
        errno => DataplaneError::bpf("asking for the network namespace", errno),
    })
}

fn set(loaded: &mut Ebpf, settings: bpf::Settings) -> Result<(), DataplaneError> {
    let map = loaded.map_mut("settings").expect("the object has this map");
    let set = Array::try_from(map).and_then(|mut map| map.set(0, settings, 0));
    set.map_err(|error| DataplaneError::bpf("writing the settings", error))
}

/// Loads one program and attaches it. It is detached when what is returned is dropped.
fn link(
    loaded: &mut Ebpf,
    name: &str,
    cgroup: &fs::File,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    let program = loaded
        .program_mut(name)
        .expect("the object has this program");
    let program: &mut CgroupSockAddr = program.try_into()?;
    program.load()?;
    // A link of its own, which others' do not replace.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(program.take_link(id)?.try_into()?)
}

/// The directory where everything is pinned.
struct Pins<'a>(&'a Path);

impl<'a> Pins<'a> {
    /// Makes it, in a BPF filesystem, which is mounted where the usual one is not.
    fn make(path: &'a Path) -> Result<Self, DataplaneError> {
        let root = Path::new("/sys/fs/bpf");
        let is_bpf = |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
        if path.starts_with(root) && !is_bpf(root) {
            mount(
                Some("bpf"),
                root,
                Some("bpf"),
                MsFlags::empty(),
                None::<&str>,
            )
            .map_err(|errno| DataplaneError::bpf("mounting /sys/fs/bpf", errno))?;
        }
        if !path.ancestors().find(|p| p.exists()).is_some_and(is_bpf) {
            return Err(DataplaneError::bpf(
                format!("--bpf-path {}", path.display()),
                "not in a BPF filesystem",
            ));
        }
        let pins = Self(path);
        for directory in [path.join("links"), pins.maps()] {
            fs::create_dir_all(&directory).map_err(|error| {
                DataplaneError::bpf(format!("making {}", directory.display()), error)
            })?;
        }
        Ok(pins)
    }

    /// Where maps of this layout are.
    fn maps(&self) -> PathBuf {
        maps(self.0)
    }

    /// Removes maps of other layouts, which no program uses any more.
    fn remove_other_maps(&self) -> Result<(), DataplaneError> {
        let what = || format!("removing old maps from {}", self.0.display());
        let entries = fs::read_dir(self.0).map_err(|error| DataplaneError::bpf(what(), error))?;
        let is_other = |path: &PathBuf| *path != self.maps() && !path.ends_with("links");
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .filter(is_other)
            .try_for_each(fs::remove_dir_all)
            .map_err(|error| DataplaneError::bpf(what(), error))
    }

    /// Pins links in place of those that are there, which are detached by that. All were attached before.
    fn replace(
        &self,
        links: Vec<(&str, FdLink)>,
    ) -> Result<Vec<(PathBuf, PinnedLink, u32)>, DataplaneError> {
        let replace = |(name, link): (&str, FdLink)| {
            let path = self.0.join("links").join(name);
            // Such a filesystem takes no names with a dot.
            let new = self.0.join("links").join(format!("{name}-new"));
            let what = || format!("pinning {}", path.display());
            // One that an agent left when it was killed here.
            let _ = fs::remove_file(&new);
            let number = link
                .info()
                .map_err(|error| DataplaneError::bpf(what(), error))?
                .id();
            let pinned = link
                .pin(&new)
                .map_err(|error| DataplaneError::bpf(what(), error))?;
            fs::rename(&new, &path).map_err(|error| DataplaneError::bpf(what(), error))?;
            Ok((path, pinned, number))
        };
        links.into_iter().map(replace).collect()
    }
}
