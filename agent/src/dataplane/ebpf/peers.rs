//! The maps in which the programs remember what sockets called. I/O: system calls, two for each entry that is read.
//!
//! The maps are opened by their pins when they are looked at: programs that are attached anew may have new ones. They keep
//! entries of sockets that are gone, until there are too many.

use std::io::ErrorKind;
use std::net::SocketAddr;

use aya::maps::{HashMap, MapData, MapError};
use proxyd_ebpf_common as bpf;

use super::super::DataplaneError;
use super::peer::{Called, Peer};
use super::{Places, attach};
use crate::model::Protocol;
use crate::plan::Flows;

/// The protocols, with the names of their maps.
const MAPS: [(Protocol, &str); 2] = [(Protocol::Udp, "udp_peers"), (Protocol::Tcp, "tcp_peers")];

/// How many entries are read of a map, at most: it may go round where entries go while it is read.
const MOST: usize = 2 * bpf::MAX_REMEMBERED;

/// The maps of some protocols.
#[derive(Debug)]
pub struct Peers(Vec<(Protocol, HashMap<MapData, bpf::PeerKey, bpf::Destination>)>);

impl Peers {
    /// Opens the maps of the protocols that these flows are of.
    ///
    /// # Errors
    /// That they are not pinned, or cannot be opened.
    pub fn open(places: &Places, flows: &Flows) -> Result<Self, DataplaneError> {
        let wanted = MAPS.iter().filter(|(protocol, _)| flows.has(*protocol));
        let opened =
            wanted.map(|(protocol, name)| Ok((*protocol, attach::open_map(places, name)?)));
        Ok(Self(opened.collect::<Result<_, DataplaneError>>()?))
    }

    /// The sockets that were balanced, and what they called.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn called(&self) -> Result<Called, DataplaneError> {
        let mut all = Called::new();
        for (protocol, map) in &self.0 {
            for entry in map.iter().take(MOST) {
                let (key, called) = entry.map_err(unreadable)?;
                all.insert(Peer::new(*protocol, &key), called.into());
            }
        }
        Ok(all)
    }

    /// Removes the entry of a socket, if it is still about what it called then.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn forget(&mut self, peer: &Peer, called: SocketAddr) -> Result<(), DataplaneError> {
        let key = peer.key();
        for (_, map) in self.0.iter_mut().filter(|(of, _)| *of == peer.protocol) {
            let result = match map.get(&key, 0) {
                Ok(now) if SocketAddr::from(now) == called => map.remove(&key),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if !is_gone(&error) => return Err(unreadable(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_gone(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == ErrorKind::NotFound,
        _ => false,
    }
}

fn unreadable(error: MapError) -> DataplaneError {
    DataplaneError::bpf("looking up what sockets called", error)
}
