//! Looks for a kube-proxy beside this agent, and for what one left in the kernel. I/O: files of the kernel, a netlink socket.
//!
//! Rules are looked for by the names that kube-proxy gives them, and devices likewise; what belongs to others is never listed. Chains that the
//! legacy iptables made are not in nf_tables, and are not seen. A process is seen where `/proc` shows it: in a pod, with `hostPID`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::nf_tables::NfTables;
use super::priority::give_way;
use crate::model::Family;

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(60);

/// The name of the program, as the kernel has it.
const PROGRAM: &str = "kube-proxy";

/// The table of its nftables mode.
const TABLE: &str = "kube-proxy";

/// The tables of iptables in which it makes chains, and the chain that each has.
const CHAINS: [(&str, &str); 2] = [("nat", "KUBE-SERVICES"), ("filter", "KUBE-SERVICES")];

/// The device of its ipvs mode.
const DEVICE: &str = "kube-ipvs0";

/// A mode of kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Chains of iptables.
    Iptables,
    /// Virtual servers at a device of its own.
    Ipvs,
    /// A table of nf_tables.
    Nftables,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Iptables, Self::Ipvs, Self::Nftables];

    /// The mode as `--proxy-mode` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherProxy {
    /// A kube-proxy that runs in this network namespace: its process id.
    pub process: Option<u32>,
    /// The modes of which there are rules.
    pub rules: BTreeSet<Mode>,
}

impl OtherProxy {
    /// Whether there is anything of a kube-proxy.
    pub fn is_there(&self) -> bool {
        self.process.is_some() || !self.rules.is_empty()
    }
}

impl fmt::Display for OtherProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modes: Vec<_> = self.rules.iter().map(|mode| mode.name()).collect();
        let modes = modes.join(", ");
        match self.process {
            Some(process) => {
                write!(f, "kube-proxy runs on this node too (process {process}")?;
                if !modes.is_empty() {
                    write!(f, ", mode {modes}")?;
                }
                f.write_str(
                    "), and both balance the same Services; stop it, and remove its rules with kube-proxy --cleanup",
                )
            }
            None => write!(
                f,
                "there are rules of kube-proxy on this node (mode {modes}), which balance the same Services; if it runs still, \
                 stop it; then remove them with kube-proxy --cleanup"
            ),
        }
    }
}

/// Looks now and once a minute, in the network namespace of the calling thread; says what there is, or is no more, and tells `report`.
///
/// # Errors
/// That the machine has no thread left.
pub fn watch(report: impl Fn(&OtherProxy) + Send + 'static) -> io::Result<()> {
    let mut known = OtherProxy::default();
    let run = move || {
        give_way();
        loop {
            let found = look();
            report(&found);
            if found != known {
                if found.is_there() {
                    warn!("{found}");
                } else {
                    info!("there is nothing of kube-proxy on this node any more");
                }
                known = found;
            }
            thread::sleep(PERIOD);
        }
    };
    let thread = thread::Builder::new().name("other-proxy".to_owned());
    thread.spawn(run).map(drop)
}

/// Looks once. What cannot be told is not there.
fn look() -> OtherProxy {
    OtherProxy {
        process: process(),
        rules: Mode::ALL
            .into_iter()
            .filter(|mode| has_rules(*mode))
            .collect(),
    }
}

fn has_rules(mode: Mode) -> bool {
    let has = |ask: &dyn Fn(&NfTables, Family) -> io::Result<bool>| {
        let tables = NfTables::open()?;
        for family in Family::ALL {
            if ask(&tables, family)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let found = match mode {
        Mode::Iptables => has(&|tables, family| {
            for (table, chain) in CHAINS {
                if tables.has_chain(family, table, chain)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }),
        Mode::Nftables => has(&|tables, family| tables.has_table(family, TABLE)),
        Mode::Ipvs => return nix::net::if_::if_nametoindex(DEVICE).is_ok(),
    };
    found.unwrap_or_else(|error: io::Error| {
        debug!(
            "looking for rules of kube-proxy, mode {}: {error}",
            mode.name()
        );
        false
    })
}

/// A process of that name in this network namespace.
fn process() -> Option<u32> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let place = Path::new("/proc").join(id.to_string());
        let name = fs::read_to_string(place.join("comm"));
        name.is_ok_and(|name| name.trim_end() == PROGRAM)
            && fs::read_link(place.join("ns/net")).is_ok_and(|namespace| namespace == own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_told_with_what_to_do() {
        let found = |process, rules: &[Mode]| OtherProxy {
            process,
            rules: rules.iter().copied().collect(),
        };
        assert!(!found(None, &[]).is_there());
        let running = found(Some(812), &[Mode::Iptables]).to_string();
        assert!(
            running.starts_with("kube-proxy runs on this node too (process 812, mode iptables)")
        );
        assert!(found(Some(812), &[]).to_string().contains("(process 812)"));
        let left = found(None, &[Mode::Nftables, Mode::Ipvs]).to_string();
        assert!(left.contains("(mode ipvs, nftables)") && left.contains("kube-proxy --cleanup"));
    }
}
