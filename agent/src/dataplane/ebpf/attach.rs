//! Loads the programs and attaches them to a cgroup. I/O: system calls, and a BPF filesystem.
//!
//! Programs and maps are pinned, so they outlive the agent. A new agent loads its own programs with the maps that are
//! there, attaches them beside the old ones and then takes those away: a socket that meets both is balanced by the first,
//! since the second does not know a back end's address as a Service's.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::mount::{MsFlags, mount};
use proxyd_ebpf_common as bpf;
use tracing::{info, warn};

use super::super::DataplaneError;
use super::Places;
use super::devices::Selection;
use super::hooks::{self, Follower, Hooks};
use super::links::Links;
use super::maps::Maps;
use super::probe::{BPF_ROOT, probe};
use crate::host::ports;
use crate::model::{Family, PerFamily};
use crate::plan::Detector;

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
const LAYOUT: u32 = 4;

/// The maps, which are pinned by their names.
const MAPS: [&str; 22] = [
    "settings",
    "frontends",
    "backends",
    "members",
    "tables",
    "table_backends",
    "node_addresses",
    "affinity_keys",
    "affinity",
    "udp_choices",
    "tcp_peers",
    "udp_peers",
    "pod_networks",
    "allowed",
    "devices",
    "source_affinity",
    "ingress_flows",
    "egress_flows",
    "begun",
    "closed",
    "fragments",
    "counters",
];

/// Those with an entry for each connection that devices carry.
const FLOWS: [&str; 3] = ["ingress_flows", "egress_flows", "begun"];

/// Loads and attaches all programs, in place of those of an earlier agent.
pub(super) fn attach(
    places: &Places,
    detector: &PerFamily<Detector>,
) -> Result<(Maps, Links, Follower), DataplaneError> {
    let started = Instant::now();
    // A loader reads what the kernel says of its own types, which takes as long as much of the rest.
    let (mut loader, found) = thread::scope(|scope| {
        let found = scope.spawn(|| probe(places));
        let loader = EbpfLoader::new();
        (loader, found.join().expect("looking does not panic"))
    });
    let usable = found.usable()?;
    let cgroup = fs::File::open(&usable.cgroup).map_err(|error| {
        DataplaneError::bpf(format!("opening {}", usable.cgroup.display()), error)
    })?;
    if usable.is_to_mount {
        mount_bpf()?;
    }
    let pins = Pins::make(&places.pins)?;
    for name in MAPS {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    for name in FLOWS {
        loader.map_max_entries(name, places.connections);
    }
    let mut loaded = loader
        .load(OBJECT)
        .map_err(|error| DataplaneError::bpf("loading the maps", error))?;
    tell_of_other_size(&loaded, places.connections);
    let settings = bpf::Settings {
        node_namespace: usable.node_namespace,
        knows_pods: Family::ALL.map(|family| detector.get(family).knows_pods().into()),
        has_fast_path: places.fast_path.into(),
        padding: 0,
    };
    set(&mut loaded, settings)?;
    load(&mut loaded)?;
    let mut links = Vec::new();
    for name in PROGRAMS {
        let link = link(&mut loaded, name, &cgroup)
            .map_err(|error| DataplaneError::bpf(format!("attaching {name}"), error))?;
        links.push((name, link));
    }
    reserve_ports();
    let maps = Maps::take(&mut loaded)?;
    let hooks = Hooks::new(loaded, pins.links(), places.tcx)?;
    let follower = hooks.follow(Selection {
        names: places.devices.clone(),
        detector: detector.clone(),
    })?;
    let links = Links::new(pins.replace(links)?)?;
    pins.remove_other_maps()?;
    info!(
        "programs loaded and attached in {} ms",
        started.elapsed().as_millis()
    );
    Ok((maps, links, follower))
}

/// The first and the last port that connections are masqueraded with.
fn masquerade_ports() -> (u16, u16) {
    let (first, count) = bpf::MASQUERADE_PORTS;
    (first, first + (count - 1))
}

/// Opens a map of this layout that is pinned.
pub(super) fn open_map<K: aya::Pod, V: aya::Pod>(
    places: &Places,
    name: &str,
) -> Result<HashMap<MapData, K, V>, DataplaneError> {
    let path = Pins(&places.pins).maps().join(name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data);
    map.and_then(HashMap::try_from)
        .map_err(|error| DataplaneError::bpf(format!("opening {}", path.display()), error))
}

/// Takes programs and maps away; tells whether there were any.
pub(super) fn detach(places: &Places) -> Result<bool, DataplaneError> {
    hooks::remove_all_filters();
    let (first, last) = masquerade_ports();
    if let Err(error) = ports::release(first, last) {
        warn!("ports {first} to {last} stay reserved: {error}");
    }
    match fs::remove_dir_all(&places.pins) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataplaneError::bpf(
            format!("removing {}", places.pins.display()),
            error,
        )),
    }
}

/// Mounts a BPF filesystem where it usually is.
fn mount_bpf() -> Result<(), DataplaneError> {
    let (kind, flags) = (Some("bpf"), MsFlags::empty());
    mount(kind, BPF_ROOT, kind, flags, None::<&str>)
        .map_err(|errno| DataplaneError::bpf(format!("mounting {BPF_ROOT}"), errno))
}

fn set(loaded: &mut Ebpf, settings: bpf::Settings) -> Result<(), DataplaneError> {
    let map = loaded.map_mut("settings").expect("the object has this map");
    let set = Array::try_from(map).and_then(|mut map| map.set(0, settings, 0));
    set.map_err(|error| DataplaneError::bpf("writing the settings", error))
}

/// Keeps the ports that programs masquerade with from sockets. Whether that was done; if not, it is logged.
pub fn reserve_ports() -> bool {
    let (first, last) = masquerade_ports();
    let reserved = ports::reserve(first, last);
    if let Err(error) = &reserved {
        warn!("ports {first} to {last} cannot be reserved for masquerade: {error}");
    }
    reserved.is_ok()
}

/// Says so if tables of an earlier agent are kept whose size is not the one that is wanted: connections are in them.
fn tell_of_other_size(loaded: &Ebpf, wanted: u32) {
    for name in FLOWS {
        let map = loaded.map(name).expect("the object has this map");
        if let Map::LruHashMap(map) = map
            && let Ok(size) = map.info().map(|info| info.max_entries())
            && size != wanted
        {
            warn!(
                "{name} of an earlier agent is kept, with room for {size} connections; --connection-table-size {wanted} counts \
                 from the next proxyd --cleanup, or start of the machine, on"
            );
        }
    }
}

/// Loads the programs: the kernel takes as long to verify the largest as all others, so it does both at once.
fn load(loaded: &mut Ebpf) -> Result<(), DataplaneError> {
    let is_wanted = |name: &str| PROGRAMS.contains(&name) || hooks::USUAL.contains(&name);
    let wanted = loaded.programs_mut().filter(|(name, _)| is_wanted(name));
    let (largest, others): (Vec<_>, Vec<_>) = wanted.partition(|(name, _)| *name == hooks::LARGEST);
    let load = |(name, program): (&str, &mut Program)| {
        let result = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => unreachable!("the object has no other programs"),
        };
        result.map_err(|error| DataplaneError::bpf(format!("loading {name}"), error))
    };
    thread::scope(|scope| {
        let others = scope.spawn(move || others.into_iter().try_for_each(load));
        largest.into_iter().try_for_each(load)?;
        others.join().expect("loading does not panic")
    })
}

/// Attaches a program. It is detached when what is returned is dropped.
fn link(
    loaded: &mut Ebpf,
    name: &str,
    cgroup: &fs::File,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    let program = loaded
        .program_mut(name)
        .expect("the object has this program");
    let program: &mut CgroupSockAddr = program.try_into()?;
    // A link of its own, which others' do not replace.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(program.take_link(id)?.try_into()?)
}

/// The directory where everything is pinned.
struct Pins<'a>(&'a Path);

impl<'a> Pins<'a> {
    /// Makes it.
    fn make(path: &'a Path) -> Result<Self, DataplaneError> {
        let pins = Self(path);
        for directory in [pins.links(), pins.maps()] {
            fs::create_dir_all(&directory).map_err(|error| {
                DataplaneError::bpf(format!("making {}", directory.display()), error)
            })?;
        }
        Ok(pins)
    }

    /// Where links are.
    fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    /// Where maps of this layout are.
    fn maps(&self) -> PathBuf {
        self.0.join(format!("maps-{LAYOUT}"))
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
            let path = self.links().join(name);
            // Such a filesystem takes no names with a dot.
            let new = self.links().join(format!("{name}-new"));
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
