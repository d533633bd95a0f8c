//! Reads and writes the maps of the programs. I/O: system calls, a microsecond each.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use nix::errno::Errno;
use proxyd_ebpf_common as bpf;

use super::super::DataplaneError;
use super::layout::{Entries, family_of, is_of};
use super::order::Write;
use crate::model::Family;

/// The maps that the agent writes.
#[derive(Debug)]
pub(super) struct Maps {
    frontends: HashMap<MapData, bpf::FrontendKey, bpf::Frontend>,
    backends: HashMap<MapData, bpf::BackendKey, bpf::Destination>,
    members: HashMap<MapData, bpf::MemberKey, u8>,
    node_addresses: HashMap<MapData, [u8; 16], bpf::WhoMayCall>,
}

impl Maps {
    /// Takes the maps out of what was loaded.
    pub(super) fn take(loaded: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            frontends: take(loaded, "frontends")?,
            backends: take(loaded, "backends")?,
            members: take(loaded, "members")?,
            node_addresses: take(loaded, "node_addresses")?,
        })
    }

    /// What they hold of a family.
    pub(super) fn read(&self, family: Family) -> Result<Entries, DataplaneError> {
        let mut entries = Entries::default();
        for entry in &self.frontends {
            let (key, value) = entry.map_err(|error| refused("frontends", "read", error))?;
            if is_of(family, &key) {
                entries.frontends.insert(key, value);
            }
        }
        for entry in &self.backends {
            let (key, value) = entry.map_err(|error| refused("backends", "read", error))?;
            if is_of(family, &key.frontend) {
                entries.backends.insert(key, value);
            }
        }
        for key in self.members.keys() {
            let key = key.map_err(|error| refused("members", "read", error))?;
            if is_of(family, &key.frontend) {
                entries.members.insert(key);
            }
        }
        for entry in &self.node_addresses {
            let (key, value) = entry.map_err(|error| refused("node_addresses", "read", error))?;
            if family_of(&key) == family {
                entries.node_addresses.insert(key, value);
            }
        }
        Ok(entries)
    }

    /// Makes writes, in their order.
    pub(super) fn write(&mut self, writes: &[Write]) -> Result<(), DataplaneError> {
        for write in writes {
            match write {
                Write::Frontend(key, to) => put(&mut self.frontends, "frontends", key, *to),
                Write::Backend(key, to) => put(&mut self.backends, "backends", key, *to),
                Write::Member(key, is_there) => {
                    put(&mut self.members, "members", key, is_there.then_some(1))
                }
                Write::NodeAddress(key, to) => {
                    put(&mut self.node_addresses, "node_addresses", key, *to)
                }
            }?;
        }
        Ok(())
    }
}

fn take<K: aya::Pod, V: aya::Pod>(
    loaded: &mut Ebpf,
    name: &str,
) -> Result<HashMap<MapData, K, V>, DataplaneError> {
    let map = loaded.take_map(name).expect("the object has this map");
    HashMap::try_from(map).map_err(|error| refused(name, "opened", error))
}

/// Sets or removes what a key has. What is gone already need not be removed.
fn put<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &str,
    key: &K,
    to: Option<V>,
) -> Result<(), DataplaneError> {
    let result = match to {
        Some(value) => map.insert(key, value, 0),
        None => match map.remove(key) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(Errno::ENOENT as i32) =>
            {
                Ok(())
            }
            result => result,
        },
    };
    result.map_err(|error| refused(name, "written", error))
}

fn refused(map: &str, done: &str, error: MapError) -> DataplaneError {
    let is_full = matches!(&error, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(Errno::E2BIG as i32));
    let full = if is_full { " (it is full)" } else { "" };
    DataplaneError::bpf(format!("the map {map} cannot be {done}{full}"), error)
}
