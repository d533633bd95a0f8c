//! One agent in a network namespace: whoever keeps the rules holds a name there. I/O: an abstract Unix socket.
//!
//! Names of abstract sockets belong to a network namespace, as rules do, whatever files its processes see. The kernel
//! takes the name back when its holder ends, however it ends, and closes the connections of those who wait for that. Any process of
//! the namespace can take the name, though: a holder counts only if it could be an agent, so that a user without privileges
//! cannot keep agents out.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};
use nix::unistd::geteuid;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// The name.
const NAME: &[u8] = b"proxyd";

/// The number of CAP_NET_ADMIN (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// How often the name is asked for again, if nobody tells that it is free.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Between two attempts, at least.
const PAUSE: Duration = Duration::from_millis(20);

/// The name is ours as long as this lives.
#[derive(Debug)]
pub struct Sole {
    _socket: UnixListener,
}

/// Who has the name.
#[derive(Debug)]
pub enum Claim {
    /// We have.
    Ours(Sole),
    /// Another agent has.
    Agents(Holder),
    /// Somebody has who cannot be an agent.
    Strangers(Holder),
}

/// Who has the name.
#[derive(Debug)]
pub struct Holder {
    /// The process id; `None` if it is in another namespace of processes.
    process: Option<i32>,
    /// The name of its program, where that is seen.
    program: Option<String>,
    user: Option<u32>,
    /// Closed by the kernel when the holder ends.
    connection: Option<UnixStream>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(process) => write!(f, "process {process}")?,
            None => f.write_str("a process in another pod")?,
        }
        match (&self.program, self.user) {
            (Some(program), Some(0)) => write!(f, ", {program}"),
            (Some(program), Some(user)) => write!(f, ", {program}, user {user}"),
            (None, Some(user)) if user > 0 => write!(f, ", user {user}"),
            (None | Some(_), _) => Ok(()),
        }
    }
}

/// Takes the name, or tells who has it.
///
/// # Errors
/// That the kernel refuses sockets.
pub fn claim() -> io::Result<Claim> {
    let address = SocketAddr::from_abstract_name(NAME)?;
    match UnixListener::bind_addr(&address) {
        Ok(socket) => return Ok(Claim::Ours(Sole { _socket: socket })),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        Err(error) => return Err(error),
    }
    // Who does not answer must not hold us up.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let Ok(()) = connect(socket.as_raw_fd(), &UnixAddr::new_abstract(NAME)?) else {
        return Ok(Claim::Strangers(Holder {
            process: None,
            program: None,
            user: None,
            connection: None,
        }));
    };
    let who = getsockopt(&socket, sockopt::PeerCredentials)?;
    let process = Some(who.pid()).filter(|process| *process > 0);
    let about = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process?)).ok();
    let holder = Holder {
        process,
        program: about("comm").map(|name| name.trim_end().to_owned()),
        user: Some(who.uid()),
        connection: Some(socket.into()),
    };
    let is_permitted = [0, geteuid().as_raw()].contains(&who.uid())
        && about("status").is_none_or(|status| may_change_rules(&status));
    Ok(if is_permitted {
        Claim::Agents(holder)
    } else {
        Claim::Strangers(holder)
    })
}

/// Waits until no other agent keeps the rules of this network namespace. `None` if nothing keeps others out from now on.
pub async fn wait() -> Option<Sole> {
    let mut told = String::new();
    loop {
        match claim() {
            Ok(Claim::Ours(sole)) => {
                if !told.is_empty() {
                    info!("the other proxyd has ended; taking over");
                }
                return Some(sole);
            }
            Ok(Claim::Agents(holder)) => {
                let text = holder.to_string();
                if text != told {
                    warn!("another proxyd ({text}) keeps these rules; waiting for it to end");
                    told = text;
                }
                holder.ends().await;
                // Who says so and goes on must not keep us busy.
                sleep(PAUSE).await;
            }
            Ok(Claim::Strangers(holder)) => {
                warn!(
                    "the name by which one proxyd knows of another, the abstract socket @proxyd, is taken by {holder}, which is \
                     none; going on, though two proxyds would not know of each other"
                );
                return None;
            }
            Err(error) => {
                warn!("whether another proxyd keeps these rules cannot be told: {error}; going on");
                return None;
            }
        }
    }
}

impl Holder {
    /// Waits until the holder has ended, or for a while.
    async fn ends(self) {
        let stream = self.connection.map(tokio::net::UnixStream::from_std);
        match stream {
            Some(Ok(stream)) => drop(timeout(ASK_AGAIN, stream.readable()).await),
            Some(Err(_)) | None => sleep(ASK_AGAIN).await,
        }
    }
}

/// Whether a process has CAP_NET_ADMIN, by its file `status` (proc(5)). What is not there is no reason against it.
fn may_change_rules(status: &str) -> bool {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_none_or(|set| set >> CAP_NET_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_change_rules_is_no_agent() {
        let status =
            |capabilities: &str| format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{capabilities}\n");
        assert!(may_change_rules(&status("000001ffffffffff")));
        assert!(may_change_rules(&status("0000000000001000")));
        // The default of a container: without CAP_NET_ADMIN.
        assert!(!may_change_rules(&status("00000000a80425fb")));
        assert!(!may_change_rules(&status("0000000000000000")));
        assert!(may_change_rules("Name:\tx\n"));
    }
}
