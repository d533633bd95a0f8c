//! Reads and writes the maps of the programs. I/O: system calls, a microsecond each.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use nix::errno::Errno;
use proxyd_ebpf_common as bpf;
use tracing::warn;

use super::super::DataplaneError;
use super::layout::{Entries, family_of, is_of};
use super::order::Write;
use crate::model::Family;

/// The maps that the agent writes.
#[derive(Debug)]
pub(super) struct Maps {
    frontends: Map<bpf::FrontendKey, bpf::Frontend>,
    backends: Map<bpf::BackendKey, bpf::Destination>,
    members: Map<bpf::MemberKey, u8>,
    node_addresses: Map<[u8; 16], bpf::WhoMayCall>,
}

/// One of them.
#[derive(Debug)]
struct Map<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    /// It was full, and that was said.
    was_full: bool,
}

impl Maps {
    /// Takes the maps out of what was loaded.
    pub(super) fn take(loaded: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            frontends: Map::take(loaded, "frontends")?,
            backends: Map::take(loaded, "backends")?,
            members: Map::take(loaded, "members")?,
            node_addresses: Map::take(loaded, "node_addresses")?,
        })
    }

    /// What they hold of a family.
    pub(super) fn read(&self, family: Family) -> Result<Entries, DataplaneError> {
        let mut entries = Entries {
            frontends: self.frontends.read()?,
            backends: self.backends.read()?,
            members: self.members.read()?.into_keys().collect(),
            node_addresses: self.node_addresses.read()?,
        };
        entries.frontends.retain(|key, _| is_of(family, key));
        entries
            .backends
            .retain(|key, _| is_of(family, &key.frontend));
        entries.members.retain(|key| is_of(family, &key.frontend));
        let addresses = &mut entries.node_addresses;
        addresses.retain(|address, _| family_of(address) == family);
        Ok(entries)
    }

    /// Makes writes, in their order. What does not fit is left out: whoever picks it gets nobody, and goes by the rules.
    pub(super) fn write(&mut self, writes: &[Write]) -> Result<(), DataplaneError> {
        for write in writes {
            match write {
                Write::Frontend(key, to) => self.frontends.put(key, *to),
                Write::Backend(key, to) => self.backends.put(key, *to),
                Write::Member(key, is_there) => self.members.put(key, is_there.then_some(1)),
                Write::NodeAddress(key, to) => self.node_addresses.put(key, *to),
            }?;
        }
        Ok(())
    }
}

impl<K: aya::Pod + Ord, V: aya::Pod> Map<K, V> {
    fn take(loaded: &mut Ebpf, name: &'static str) -> Result<Self, DataplaneError> {
        let map = loaded.take_map(name).expect("the object has this map");
        let map = HashMap::try_from(map);
        Ok(Self {
            name,
            map: map.map_err(|error| refused(name, "opened", error))?,
            was_full: false,
        })
    }

    fn read(&self) -> Result<BTreeMap<K, V>, DataplaneError> {
        let entries = self.map.iter();
        let entries = entries.map(|entry| entry.map_err(|error| refused(self.name, "read", error)));
        entries.collect()
    }

    /// Sets or removes what a key has. What is gone already need not be removed.
    fn put(&mut self, key: &K, to: Option<V>) -> Result<(), DataplaneError> {
        let result = match to {
            Some(value) => self.map.insert(key, value, 0),
            None => self.map.remove(key),
        };
        match result {
            Err(error) if is(&error, Errno::ENOENT) => Ok(()),
            Err(error) if is(&error, Errno::E2BIG) => {
                if !std::mem::replace(&mut self.was_full, true) {
                    warn!(
                        "the BPF map {} is full; what does not fit goes by the rules",
                        self.name
                    );
                }
                Ok(())
            }
            result => result.map_err(|error| refused(self.name, "written", error)),
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
