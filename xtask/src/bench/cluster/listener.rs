//! The process that listens at an address, where that is on this machine: a real API server's, whose CPU time counts.

use std::fs;
use std::net::{IpAddr, TcpListener, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// A process of this machine.
#[derive(Debug)]
pub(super) struct Listener {
    /// Its name and its number, for people.
    pub(super) name: String,
    clock: ClockId,
}

impl Listener {
    /// Whoever listens at this address, if it is one of this machine's, and in this namespace of the network.
    pub(super) fn find(host: &str, port: u16) -> Option<Self> {
        let mut addresses = (host, port).to_socket_addrs().ok()?;
        let address = addresses.find(|address| is_ours(address.ip()))?;
        let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .flat_map(|table| sockets(&table, address.port()))
            .collect();
        let mut processes = fs::read_dir("/proc").ok()?.flatten();
        let pid = processes.find_map(|process| {
            let pid: i32 = process.file_name().to_str()?.parse().ok()?;
            let files = fs::read_dir(process.path().join("fd")).ok()?;
            let mut links = files
                .flatten()
                .filter_map(|file| fs::read_link(file.path()).ok());
            links
                .any(|link| sockets.iter().any(|socket| link.as_os_str() == &**socket))
                .then_some(pid)
        })?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(Self {
            name: format!("{} (process {pid})", name.trim_end()),
            clock: clock_getcpuclockid(Pid::from_raw(pid)).ok()?,
        })
    }

    /// The CPU time that it has used so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        Ok(self.clock.now()?.into())
    }
}

/// Whether an address is one of this machine's: others cannot be bound.
fn is_ours(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

/// What links to the sockets that listen at a port are, by the text of `/proc/net/tcp`.
fn sockets(table: &str, port: u16) -> Vec<String> {
    let lines = table.lines().skip(1);
    let sockets = lines.filter_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (_, at) = fields.get(1)?.rsplit_once(':')?;
        let is_port = u16::from_str_radix(at, 16).ok() == Some(port);
        let listens = *fields.get(3)? == LISTENS;
        (is_port && listens).then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    });
    sockets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_of_a_listener_is_found_by_its_address() {
        for local in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((local, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let found = Listener::find(local, port).unwrap();
            let pid = std::process::id();
            assert!(
                found.name.ends_with(&format!("(process {pid})")),
                "{found:?}"
            );
            let before = found.cpu().unwrap();
            assert!(before > Duration::ZERO);
            drop(listener);
            assert!(Listener::find(local, port).is_none());
        }
        // An address of nobody here (RFC 5737).
        assert!(Listener::find("192.0.2.1", 443).is_none());
    }
}
