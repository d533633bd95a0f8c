//! Reads and writes the maps of the programs. I/O: system calls, a microsecond each.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap};
use nix::errno::Errno;
use proxyd_ebpf_common as bpf;
use tracing::warn;

use super::super::DataplaneError;
use super::filler::Filler;
use super::layout::{Entries, Prefix, family_of, is_of};
use super::order::Write;
use crate::model::{Family, PerFamily};

/// The maps that the agent writes.
pub(super) struct Maps {
    frontends: Map<bpf::FrontendKey, bpf::Frontend>,
    backends: Map<bpf::BackendKey, bpf::Destination>,
    members: Map<bpf::MemberKey, u8>,
    affinity_keys: Map<bpf::FrontendKey, bpf::FrontendKey>,
    node_addresses: Map<bpf::Address, bpf::WhoMayCall>,
    pod_networks: Networks<bpf::NetworkKey>,
    allowed: Networks<bpf::AllowedKey>,
    counters: PerCpuHashMap<MapData, bpf::MemberKey, bpf::Counter>,
    /// Who writes tables of consistent hashing.
    pub(super) tables: Filler,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    map: HashMap<MapData, K, V>,
    full: Full,
}

/// One of those whose keys are prefixes.
#[derive(Debug)]
struct Networks<K> {
    map: LpmTrie<MapData, K, u8>,
    full: Full,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It was made.
    Done,
    /// There was no room for it.
    LeftOut,
}

/// Whether all writes found room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fits {
    /// They did.
    All,
    /// Some did not.
    Part,
}

/// What is said of a map that is full, once.
#[derive(Debug)]
struct Full {
    name: &'static str,
    was_said: bool,
}

impl Maps {
    /// Takes the maps out of what was loaded.
    pub(super) fn take(loaded: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            frontends: Map::take(loaded, "frontends")?,
            backends: Map::take(loaded, "backends")?,
            members: Map::take(loaded, "members")?,
            affinity_keys: Map::take(loaded, "affinity_keys")?,
            node_addresses: Map::take(loaded, "node_addresses")?,
            pod_networks: Networks::take(loaded, "pod_networks")?,
            allowed: Networks::take(loaded, "allowed")?,
            counters: PerCpuHashMap::try_from(
                loaded
                    .take_map("counters")
                    .expect("the object has this map"),
            )
            .map_err(|error| refused("counters", "opened", error))?,
            tables: Filler::start(loaded)?,
        })
    }

    /// What they hold of each family, without tables. Both are in the same maps.
    pub(super) fn read(&self) -> Result<PerFamily<Entries>, DataplaneError> {
        let mut all = Entries {
            frontends: self.frontends.read()?,
            backends: self.backends.read()?,
            members: self.members.read()?,
            affinity_keys: self.affinity_keys.read()?,
            node_addresses: self.node_addresses.read()?,
            pod_networks: self.pod_networks.read()?,
            allowed: self.allowed.read()?,
            tables: BTreeMap::new(),
        };
        let is_v6 = |key: &bpf::FrontendKey| is_of(Family::V6, key);
        let is_v6_address = |address: &bpf::Address| family_of(address) == Family::V6;
        let v6 = Entries {
            frontends: take(&mut all.frontends, is_v6),
            backends: take(&mut all.backends, |key| is_v6(&key.frontend)),
            members: take(&mut all.members, |key| is_v6(&key.frontend)),
            affinity_keys: take(&mut all.affinity_keys, is_v6),
            node_addresses: take(&mut all.node_addresses, is_v6_address),
            pod_networks: take(&mut all.pod_networks, |prefix| {
                is_v6_address(&prefix.key.address)
            }),
            allowed: take(&mut all.allowed, |prefix| is_v6(&prefix.key.frontend)),
            tables: BTreeMap::new(),
        };
        Ok(PerFamily { v4: all, v6 })
    }

    /// Makes writes, in their order. What does not fit is left out: whoever picks it gets nobody, and goes by the rules.
    pub(super) fn write(&mut self, writes: &[Write]) -> Result<Fits, DataplaneError> {
        let mut fits = Fits::All;
        for write in writes {
            let put = match write {
                Write::Frontend(key, to) => self.frontends.put(key, *to),
                Write::Backend(key, to) => self.backends.put(key, *to),
                Write::Member(key, to) => self.members.put(key, *to),
                Write::AffinityKey(key, to) => self.affinity_keys.put(key, *to),
                Write::NodeAddress(key, to) => self.node_addresses.put(key, *to),
                Write::PodNetwork(key, to) => self.pod_networks.put(key, *to),
                Write::Allowed(key, to) => self.allowed.put(key, *to),
                // Nothing may have been counted.
                Write::Uncount(key) => match self.counters.remove(key) {
                    Err(error) if !is(&error, Errno::ENOENT) => {
                        Err(refused("counters", "written", error))
                    }
                    _ => Ok(Put::Done),
                },
            }?;
            if put == Put::LeftOut {
                fits = Fits::Part;
            }
        }
        Ok(fits)
    }
}

/// Takes the entries out whose keys are wanted. The others stay where they are: most are of one family.
fn take<K: Ord + Copy, V: Copy>(
    entries: &mut BTreeMap<K, V>,
    is_wanted: impl Fn(&K) -> bool,
) -> BTreeMap<K, V> {
    let wanted = entries.iter().filter(|(key, _)| is_wanted(key));
    let wanted = wanted.map(|(key, value)| (*key, *value)).collect();
    entries.retain(|key, _| !is_wanted(key));
    wanted
}

impl<K: aya::Pod + Ord, V: aya::Pod> Map<K, V> {
    /// Takes it out of what was loaded.
    pub(super) fn take(loaded: &mut Ebpf, name: &'static str) -> Result<Self, DataplaneError> {
        let map = loaded.take_map(name).expect("the object has this map");
        let map = HashMap::try_from(map);
        Ok(Self {
            map: map.map_err(|error| refused(name, "opened", error))?,
            full: Full::no(name),
        })
    }

    /// What it holds.
    pub(super) fn read(&self) -> Result<BTreeMap<K, V>, DataplaneError> {
        let entries = self.map.iter();
        let entries =
            entries.map(|entry| entry.map_err(|error| refused(self.full.name, "read", error)));
        entries.collect()
    }

    /// The keys that it has.
    pub(super) fn keys(&self) -> Result<Vec<K>, DataplaneError> {
        let keys = self.map.keys();
        let keys = keys.map(|key| key.map_err(|error| refused(self.full.name, "read", error)));
        keys.collect()
    }

    /// Whether it has a key.
    pub(super) fn has(&self, key: &K) -> bool {
        self.map.get(key, 0).is_ok()
    }

    /// Sets or removes what a key has.
    pub(super) fn put(&mut self, key: &K, to: Option<V>) -> Result<Put, DataplaneError> {
        self.full.mind(match to {
            Some(value) => self.map.insert(key, value, 0),
            None => self.map.remove(key),
        })
    }
}

impl<K: aya::Pod + Ord> Networks<K> {
    fn take(loaded: &mut Ebpf, name: &'static str) -> Result<Self, DataplaneError> {
        let map = loaded.take_map(name).expect("the object has this map");
        let map = LpmTrie::try_from(map);
        Ok(Self {
            map: map.map_err(|error| refused(name, "opened", error))?,
            full: Full::no(name),
        })
    }

    fn read(&self) -> Result<BTreeMap<Prefix<K>, ()>, DataplaneError> {
        let keys = self.map.keys();
        let keys = keys.map(|key| key.map_err(|error| refused(self.full.name, "read", error)));
        let prefix = |key: Key<K>| Prefix {
            key: key.data(),
            bits: key.prefix_len(),
        };
        keys.map(|key| Ok((prefix(key?), ()))).collect()
    }

    /// Adds or removes a prefix.
    fn put(&mut self, prefix: &Prefix<K>, to: Option<()>) -> Result<Put, DataplaneError> {
        let key = Key::new(prefix.bits, prefix.key);
        self.full.mind(match to {
            Some(()) => self.map.insert(&key, 1, 0),
            None => self.map.remove(&key),
        })
    }
}

impl Full {
    fn no(name: &'static str) -> Self {
        Self {
            name,
            was_said: false,
        }
    }

    /// What is gone already need not be removed, and what does not fit is left out.
    fn mind(&mut self, result: Result<(), MapError>) -> Result<Put, DataplaneError> {
        match result {
            Err(error) if is(&error, Errno::ENOENT) => Ok(Put::Done),
            // A trie says ENOSPC.
            Err(error) if is(&error, Errno::E2BIG) || is(&error, Errno::ENOSPC) => {
                if !std::mem::replace(&mut self.was_said, true) {
                    warn!(
                        "the BPF map {} is full; not all fits that it should hold",
                        self.name
                    );
                }
                Ok(Put::LeftOut)
            }
            result => result
                .map(|()| Put::Done)
                .map_err(|error| refused(self.name, "written", error)),
        }
    }
}

fn is(error: &MapError, errno: Errno) -> bool {
    matches!(error, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(errno as i32))
}

fn refused(map: &str, done: &str, error: MapError) -> DataplaneError {
    DataplaneError::bpf(format!("the map {map} cannot be {done}"), error)
}
