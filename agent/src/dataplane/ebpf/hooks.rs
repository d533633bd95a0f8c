//! The programs at devices: attached where they are wanted, and taken away where a device is not wanted any more. I/O: system calls,
//! pins, and a thread that hears of devices.
//!
//! Linux 6.6 has links for that (tcx), which are pinned as those of cgroups are, and whose program is replaced in place. Before, programs
//! are filters of a queueing discipline (clsact) and stay until they are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::util::KernelVersion;
use nix::net::if_::{if_nameindex, if_nametoindex};
use proxyd_ebpf_common as bpf;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::super::DataplaneError;
use super::devices::{self, Selection, Wanted};
use super::links::{self, Links};
use crate::host::devices::watch;
use crate::model::Device;

/// Both ways, with the name of the program at devices with an Ethernet header, and at those without.
const DIRECTIONS: [(TcAttachType, &str, &str); 2] = [
    (TcAttachType::Ingress, "proxyd_in", "proxyd_in_l3"),
    (TcAttachType::Egress, "proxyd_out", "proxyd_out_l3"),
];

/// Those that are attached nearly everywhere. Others are loaded where they are wanted.
pub(super) const USUAL: [&str; 2] = [DIRECTIONS[0].1, DIRECTIONS[1].1];

/// The one that the kernel takes longest to verify.
pub(super) const LARGEST: &str = USUAL[0];

/// The kernel that has links for devices.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// The place of our filters where there is no tcx.
const PRIORITY: u16 = 40_100;
const HANDLE: TcHandle = TcHandle::new(0, 1);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The programs, and where they are attached.
pub(super) struct Hooks {
    loaded: Ebpf,
    told: HashMap<MapData, u32, bpf::Device>,
    pins: PathBuf,
    has_tcx: bool,
    attached: BTreeMap<u32, Attached>,
}

struct Attached {
    wanted: Wanted,
    /// None without tcx.
    links: Option<Links>,
}

/// The thread that follows devices. It ends when this is dropped; programs stay where they are.
#[derive(Debug)]
pub(super) struct Follower {
    _end: oneshot::Sender<()>,
}

impl Hooks {
    /// Takes what was loaded. The programs are attached nowhere yet.
    pub(super) fn new(mut loaded: Ebpf, pins: PathBuf, tcx: bool) -> Result<Self, DataplaneError> {
        let map = loaded.take_map("devices").expect("the object has this map");
        let told = HashMap::try_from(map)
            .map_err(|error| DataplaneError::bpf("opening the map devices", error))?;
        Ok(Self {
            loaded,
            told,
            pins,
            has_tcx: tcx && KernelVersion::current().is_ok_and(|kernel| kernel >= TCX),
            attached: BTreeMap::new(),
        })
    }

    /// Attaches the programs to devices as they are now, and follows them from then on.
    ///
    /// # Errors
    /// That devices are not known, or the kernel's refusal to attach.
    pub(super) fn follow(mut self, selection: Selection) -> Result<Follower, DataplaneError> {
        let (end, mut ended) = oneshot::channel();
        let (first, result) = mpsc::channel();
        let thread = thread::Builder::new().name("follow-devices".to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DataplaneError::Netlink)?;
        let run = move || {
            let failed = first.clone();
            let mut first = Some(first);
            let take = |devices: &[Device]| {
                let node = devices::of_node(devices);
                let result = self.set(node, selection.of(devices), first.is_some());
                match (first.take(), result) {
                    (Some(first), result) => first.send(result).is_ok(),
                    (None, Err(error)) => {
                        warn!("{error}; trying again");
                        true
                    }
                    (None, Ok(())) => true,
                }
            };
            let follow = async {
                let mut take = take;
                while let Err(error) = watch(links::INTERVAL, &mut take).await {
                    warn!("{error}; trying again");
                    // Somebody waits for that at the first time only.
                    let _ = failed.send(Err(DataplaneError::bpf("asking for devices", error)));
                    tokio::time::sleep(links::INTERVAL).await;
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = &mut ended => {}
                    () = follow => {}
                }
            });
        };
        thread.spawn(run).map_err(DataplaneError::Netlink)?;
        let ended = |_| DataplaneError::bpf("following devices", "the thread ended");
        result.recv().map_err(ended)??;
        Ok(Follower { _end: end })
    }

    /// Attaches the programs to these devices and no others. A device that is gone meanwhile is none. At the first time, one
    /// that refuses is an error; later it costs only itself.
    fn set(
        &mut self,
        node: bpf::Device,
        wanted: BTreeMap<u32, Wanted>,
        is_first: bool,
    ) -> Result<(), DataplaneError> {
        self.told
            .insert(bpf::THE_NODES_DEVICE, node, 0)
            .map_err(|error| DataplaneError::bpf("writing the map devices", error))?;
        if is_first {
            self.remove_pins_of_others(&wanted)?;
        }
        let attached: Vec<u32> = self.attached.keys().copied().collect();
        for index in attached {
            if !wanted.contains_key(&index) {
                self.leave(index);
            }
        }
        if is_first {
            info!("devices where packets are translated: {}", named(&wanted));
        }
        let mut failed = Vec::new();
        for (index, wanted) in wanted {
            if let Err(error) = self.hold(index, &wanted)
                && is_there(index, &wanted.name)
            {
                failed.push(DataplaneError::bpf(
                    format!("device {}", wanted.name),
                    error,
                ));
            }
        }
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// Makes sure that the programs are at a device.
    fn hold(&mut self, index: u32, wanted: &Wanted) -> Result<(), Failure> {
        let is_whole = |there: &Attached| there.links.as_ref().is_none_or(Links::are_whole);
        let mut is_again = false;
        match self.attached.get_mut(&index) {
            Some(there) if there.wanted == *wanted && is_whole(there) => return Ok(()),
            Some(there) if !is_whole(there) => {
                if !is_there(index, &wanted.name) {
                    // The kernel detached them: the device is being deleted.
                    return Ok(());
                }
                is_again = true;
                warn!(
                    "device {}: someone detached the programs or removed their pins; attaching them again",
                    wanted.name
                );
            }
            Some(there) if there.wanted.is_ethernet == wanted.is_ethernet => {
                self.told.insert(index, wanted.told, 0)?;
                there.wanted = wanted.clone();
                return Ok(());
            }
            Some(_) => {}
            // Pods come and go: lines about each would hide what matters to an operator.
            None => debug!("device {}: translating packets there", wanted.name),
        }
        self.told.insert(index, wanted.told, 0)?;
        let links = self.attach(index, wanted, is_again).inspect_err(|_| {
            // Both ways or none.
            self.attached.remove(&index);
            self.remove_pins(index);
        })?;
        let wanted = wanted.clone();
        self.attached.insert(index, Attached { wanted, links });
        Ok(())
    }

    /// Attaches the programs to a device. A program that is at a hook already is attached there as a new one, if it is to be attached
    /// again.
    fn attach(
        &mut self,
        index: u32,
        wanted: &Wanted,
        is_again: bool,
    ) -> Result<Option<Links>, Failure> {
        let mut links = Vec::new();
        for (direction, ethernet, other) in DIRECTIONS {
            let name = if wanted.is_ethernet { ethernet } else { other };
            let program = program(&mut self.loaded, name)?;
            if is_again {
                program.unload()?;
            }
            if program.fd().is_err() {
                program.load()?;
            }
            if self.has_tcx {
                let pin = self.pins.join(format!("tc-{index}-{ethernet}"));
                links.push(tcx(program, &wanted.name, direction, &pin)?);
            } else {
                clsact(program, &wanted.name, direction)?;
            }
        }
        Ok(self.has_tcx.then(|| Links::new(links)).transpose()?)
    }

    /// Takes the programs away from a device.
    fn leave(&mut self, index: u32) {
        let Some(there) = self.attached.remove(&index) else {
            return;
        };
        debug!("device {}: gone, or not wanted any more", there.wanted.name);
        if there.links.is_none() {
            remove_filters(&there.wanted.name);
        }
        self.remove_pins(index);
        let _ = self.told.remove(&index);
    }

    fn remove_pins(&self, index: u32) {
        for (_, name, _) in DIRECTIONS {
            let _ = fs::remove_file(self.pins.join(format!("tc-{index}-{name}")));
        }
    }

    /// Removes what an earlier agent attached to devices that are not wanted, or in another way.
    fn remove_pins_of_others(&self, wanted: &BTreeMap<u32, Wanted>) -> Result<(), DataplaneError> {
        let ours = wanted.keys().filter(|_| self.has_tcx);
        let ours: BTreeSet<PathBuf> = ours
            .flat_map(|index| DIRECTIONS.map(|(_, name, _)| format!("tc-{index}-{name}")))
            .map(|name| self.pins.join(name))
            .collect();
        let entries = fs::read_dir(&self.pins).map_err(|error| {
            DataplaneError::bpf(format!("reading {}", self.pins.display()), error)
        })?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("tc-") && !ours.contains(&path) {
                fs::remove_file(&path).map_err(|error| {
                    DataplaneError::bpf(format!("removing {}", path.display()), error)
                })?;
            }
        }
        let keeps: BTreeSet<&str> = wanted.values().map(|wanted| &*wanted.name).collect();
        for name in device_names() {
            if self.has_tcx || !keeps.contains(&*name) {
                remove_filters(&name);
            }
        }
        Ok(())
    }
}

/// Whether a device still has its name and index. One that is being deleted loses its name before its programs.
fn is_there(index: u32, name: &str) -> bool {
    if_nametoindex(name).is_ok_and(|now| now == index)
}

/// The names of devices, for the log: the first ones, and how many more there are.
fn named(devices: &BTreeMap<u32, Wanted>) -> String {
    const MOST_NAMED: usize = 5;
    let names = devices.values().map(|wanted| &*wanted.name);
    let names = names.take(MOST_NAMED).collect::<Vec<_>>().join(", ");
    match devices.len() {
        0 => "none".to_owned(),
        all if all > MOST_NAMED => format!("{names} and {} more", all - MOST_NAMED),
        _ => names,
    }
}

/// Removes our filters from all devices.
pub(super) fn remove_all_filters() {
    device_names().iter().for_each(|name| remove_filters(name));
}

fn device_names() -> Vec<String> {
    let devices = if_nameindex();
    let devices = devices.iter().flat_map(|devices| devices.iter());
    devices
        .map(|device| device.name().to_string_lossy().into_owned())
        .collect()
}

/// Removes our filters from a device. Usually there are none.
fn remove_filters(device: &str) {
    for (direction, ethernet, other) in DIRECTIONS {
        for name in [ethernet, other] {
            let _ = qdisc_detach_program(device, direction, name);
        }
    }
}

fn program<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Failure> {
    let program = loaded.program_mut(name);
    Ok(program.expect("the object has this program").try_into()?)
}

/// Attaches a program by a link, or puts it in place of that of an earlier agent.
fn tcx(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
    pin: &Path,
) -> Result<(PathBuf, PinnedLink, u32), Failure> {
    let replaced = PinnedLink::from_pin(pin).ok().and_then(|old| {
        let old = SchedClassifierLink::try_from(FdLink::from(old)).ok()?;
        // That of a device which is gone takes none.
        program.attach_to_link(old).ok()
    });
    let id = match replaced {
        Some(id) => id,
        None => {
            let _ = fs::remove_file(pin);
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            program.attach_with_options(device, direction, order)?
        }
    };
    let link: FdLink = program.take_link(id)?.try_into()?;
    let number = link.info()?.id();
    let pinned = match PinnedLink::from_pin(pin) {
        Ok(there) => there,
        Err(_) => link.pin(pin)?,
    };
    Ok((pin.to_owned(), pinned, number))
}

/// Attaches a program as a filter, or puts it in place of that of an earlier agent.
fn clsact(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
) -> Result<(), Failure> {
    // It may be there; if it cannot be had, attaching says so.
    let _ = qdisc_add_clsact(device);
    let there = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)?;
    let id = match program.attach_to_link(there) {
        Ok(id) => id,
        Err(_) => {
            let place = NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                ..NlOptions::default()
            };
            program.attach_with_options(device, direction, TcAttachOptions::Netlink(place))?
        }
    };
    // It stays when the agent ends.
    let _stays = ManuallyDrop::new(program.take_link(id)?);
    Ok(())
}
