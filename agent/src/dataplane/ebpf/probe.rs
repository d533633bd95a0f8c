//! Looks what the machine has of what the eBPF back end needs. I/O: system calls; nothing is changed.
//!
//! Says nothing of what it means; that is [`super::needs`].

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, ProgramType};
use aya::sys::is_program_supported;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, faccessat};
use nix::{getsockopt_impl, sockopt_impl};
use rustix::thread::{CapabilitySet, capabilities};

use super::Places;
use super::needs::{Capabilities, Cgroup, Found, Pins, Programs};

/// Where a BPF filesystem usually is.
pub(super) const BPF_ROOT: &str = "/sys/fs/bpf";

/// Where cgroup v2 is mounted, in the order in which it is looked for.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The number of the machine's own user namespace: `PROC_USER_INIT_INO` in the kernel's `include/linux/proc_ns.h`.
const FIRST_USER_NAMESPACE: u64 = 0xeffffffd;

sockopt_impl!(
    /// The cookie of a socket's network namespace (Linux 5.14).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Looks at everything.
pub(super) fn probe(places: &Places) -> Found {
    let release = rustix::system::uname().release().to_string_lossy().into();
    let user_namespace = fs::metadata("/proc/self/ns/user");
    Found {
        release,
        user: nix::unistd::geteuid().as_raw(),
        capabilities: effective_capabilities(),
        is_in_user_namespace: user_namespace.is_ok_and(|m| m.st_ino() != FIRST_USER_NAMESPACE),
        programs: programs(),
        has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        node_namespace: node_namespace().map_err(|errno| errno.desc().to_owned()),
        cgroup: cgroup(places.cgroup.as_deref()),
        pins: pins(&places.pins),
    }
}

fn effective_capabilities() -> Capabilities {
    // Only another thread could be one that is not there.
    let sets = capabilities(None).map(|sets| sets.effective);
    let sets = sets.unwrap_or(CapabilitySet::empty());
    Capabilities {
        net_admin: sets.contains(CapabilitySet::NET_ADMIN),
        bpf: sets.contains(CapabilitySet::BPF),
        perfmon: sets.contains(CapabilitySet::PERFMON),
        sys_admin: sets.contains(CapabilitySet::SYS_ADMIN),
    }
}

/// Loads a program of the kind that balances, which does nothing and is gone at once.
fn programs() -> Programs {
    match is_program_supported(ProgramType::CgroupSockAddr) {
        Ok(true) => Programs::Loaded,
        Ok(false) => Programs::UnknownKind,
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(Errno::ENOSYS as i32) =>
        {
            Programs::Missing
        }
        Err(ProgramError::SyscallError(error)) => Programs::Refused(error.io_error.to_string()),
        Err(error) => Programs::Refused(error.to_string()),
    }
}

/// The cookie of the network namespace that the agent is in.
fn node_namespace() -> Result<u64, Errno> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    getsockopt(&socket, NetnsCookie)
}

fn cgroup(given: Option<&Path>) -> Cgroup {
    let is_v2 =
        |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC);
    match given {
        Some(path) if is_v2(path) => Cgroup::At(path.to_owned()),
        Some(path) => Cgroup::NotThere(path.to_owned()),
        None => {
            let mut roots = CGROUP_ROOTS.iter().map(PathBuf::from);
            let root = roots.find(|root| is_v2(root));
            root.map_or(Cgroup::NotMounted, Cgroup::At)
        }
    }
}

fn pins(path: &Path) -> Pins {
    let is_bpf = |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
    if path.starts_with(BPF_ROOT) && !is_bpf(Path::new(BPF_ROOT)) {
        return Pins::NotMounted;
    }
    let Some(there) = path.ancestors().find(|path| path.exists()) else {
        return Pins::Elsewhere(path.to_owned());
    };
    if !is_bpf(there) {
        return Pins::Elsewhere(path.to_owned());
    }
    let modes = AccessFlags::W_OK | AccessFlags::X_OK;
    match faccessat(nix::fcntl::AT_FDCWD, there, modes, AtFlags::AT_EACCESS) {
        Ok(()) => Pins::Writable,
        Err(errno) => Pins::NotWritable(there.to_owned(), errno.desc().to_owned()),
    }
}
