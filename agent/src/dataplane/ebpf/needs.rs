//! What was found of a machine → what the eBPF back end takes from it, or all that it lacks, in one message.
//!
//! Pure; [`super::probe`] finds the facts. What counts is what a kernel can do, not its release, which tells little where a
//! distributor took later work over: Red Hat's 5.14 can do all of this.

use std::path::PathBuf;

use super::super::DataplaneError;

/// The oldest release of Linux that has all that the programs need, and is still kept up: cookies of network namespaces for
/// sockets (5.14), `bpf_ktime_get_boot_ns`, the hooks of `getpeername` and CAP_BPF (5.8), links to cgroups (5.7).
const OLDEST_RELEASE: &str = "5.15";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The release of the kernel, as `uname -r` has it.
    pub(super) release: String,
    /// The effective user.
    pub(super) user: u32,
    /// What the agent may do.
    pub(super) capabilities: Capabilities,
    /// Whether it is in a user namespace below the machine's own, where capabilities do not count for BPF.
    pub(super) is_in_user_namespace: bool,
    /// What became of a program.
    pub(super) programs: Programs,
    /// Whether the kernel describes its types. It is asked for beforehand: no program of today refers to them.
    pub(super) has_btf: bool,
    /// The cookie of the agent's network namespace; else why there is none.
    pub(super) node_namespace: Result<u64, String>,
    /// Where sockets are to be balanced.
    pub(super) cgroup: Cgroup,
    /// Where programs and maps are to be pinned.
    pub(super) pins: Pins,
}

/// The effective ones of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) net_admin: bool,
    /// Linux 5.8.
    pub(super) bpf: bool,
    /// Linux 5.8. Without it the verifier (of 6.18) refuses the arithmetic on pointers that is in the programs.
    pub(super) perfmon: bool,
    /// Stands for the last two; also mounts.
    pub(super) sys_admin: bool,
}

/// What became of a program that does nothing, for sockets of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Programs {
    /// It was loaded.
    Loaded,
    /// The kernel has no programs of this kind.
    UnknownKind,
    /// The kernel has no BPF.
    Missing,
    /// The kernel did not load it, and why.
    Refused(String),
}

/// Where sockets are to be balanced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cgroup {
    /// In this directory of cgroup v2.
    At(PathBuf),
    /// No directory was named, and there is no hierarchy where it usually is.
    NotMounted,
    /// In the directory that was named, which is none.
    NotThere(PathBuf),
}

/// Where programs and maps are to be pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pins {
    /// The directory is there, or can be made.
    Writable,
    /// Below the place where a BPF filesystem usually is, and none is.
    NotMounted,
    /// In a filesystem of another kind.
    Elsewhere(PathBuf),
    /// This directory cannot be written to, and why.
    NotWritable(PathBuf, String),
}

/// What the back end takes from the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usable {
    /// The directory of the cgroup.
    pub(super) cgroup: PathBuf,
    /// The cookie of the node's network namespace.
    pub(super) node_namespace: u64,
    /// Whether a BPF filesystem is to be mounted at its usual place first.
    pub(super) is_to_mount: bool,
}

impl Found {
    /// Takes what the back end needs.
    ///
    /// # Errors
    /// All that is missing, each with what to do about it, and the alternative.
    pub(super) fn usable(&self) -> Result<Usable, DataplaneError> {
        let lacking = self.lacking();
        match (&self.cgroup, &self.node_namespace) {
            (Cgroup::At(cgroup), Ok(cookie)) if lacking.is_empty() => Ok(Usable {
                cgroup: cgroup.clone(),
                node_namespace: *cookie,
                is_to_mount: self.pins == Pins::NotMounted,
            }),
            _ => Err(DataplaneError::Lacking {
                what: lacking.join("; "),
                alternative: if self.capabilities.net_admin {
                    "needs none of that"
                } else {
                    "needs none of that but CAP_NET_ADMIN"
                },
            }),
        }
    }

    /// All that is missing.
    fn lacking(&self) -> Vec<String> {
        let lacking = [
            self.lacking_capabilities(),
            self.lacking_permission(),
            self.lacking_in_kernel(),
            self.lacking_cgroup(),
            self.lacking_pins(),
        ];
        lacking.into_iter().flatten().collect()
    }

    fn missing_capabilities(&self) -> Vec<&'static str> {
        let Capabilities {
            net_admin,
            bpf,
            perfmon,
            sys_admin,
        } = self.capabilities;
        let of_all = [
            ("BPF", bpf || sys_admin),
            ("PERFMON", perfmon || sys_admin),
            ("NET_ADMIN", net_admin),
        ];
        let missing = of_all.into_iter().filter(|(_, has)| !has);
        missing.map(|(name, _)| name).collect()
    }

    /// Whether it is in a user namespace and may not load programs for that.
    fn is_shut_in(&self) -> bool {
        self.is_in_user_namespace && self.programs != Programs::Loaded
    }

    fn lacking_capabilities(&self) -> Option<String> {
        if self.is_shut_in() {
            return Some(
                "proxyd is in a user namespace, and the kernel takes BPF programs from the machine's own only (run it \
                 there; in Kubernetes: hostUsers: true)"
                    .to_owned(),
            );
        }
        let missing = self.missing_capabilities();
        (!missing.is_empty()).then(|| {
            format!(
                "user {} has no CAP_{} (run proxyd as root, or with these capabilities; in Kubernetes: \
                 securityContext.{}privileged or capabilities.add: [{}])",
                self.user,
                missing.join(", CAP_"),
                // Kubernetes gives other users no capability in effect, whatever is added.
                if self.user == 0 { "" } else { "runAsUser: 0 with " },
                missing.join(", ")
            )
        })
    }

    fn lacking_in_kernel(&self) -> Option<String> {
        let programs = match self.programs {
            Programs::UnknownKind => Some("BPF programs for cgroups (CONFIG_CGROUP_BPF)"),
            Programs::Missing => Some("BPF (CONFIG_BPF_SYSCALL)"),
            Programs::Loaded | Programs::Refused(_) => None,
        };
        let cookie = self.node_namespace.as_ref().err();
        let cookie = cookie.map(|why| format!("cookies of network namespaces ({why})"));
        let btf = "BTF at /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)";
        let btf = (!self.has_btf).then(|| btf.to_owned());
        let lacking = [programs.map(str::to_owned), cookie, btf];
        let lacking: Vec<String> = lacking.into_iter().flatten().collect();
        (!lacking.is_empty()).then(|| {
            format!(
                "Linux {} has no {}: use Linux {OLDEST_RELEASE} or later, built with that",
                self.release,
                lacking.join(", no ")
            )
        })
    }

    /// Why programs are refused where neither user nor kernel is the reason.
    fn lacking_permission(&self) -> Option<String> {
        let Programs::Refused(reason) = &self.programs else {
            return None;
        };
        self.lacking_capabilities().is_none().then(|| {
            format!(
                "the kernel loads no BPF program: {reason} (the system call bpf may be forbidden by a seccomp profile; in \
                 Kubernetes: securityContext.seccompProfile.type: Unconfined)"
            )
        })
    }

    fn lacking_cgroup(&self) -> Option<String> {
        match &self.cgroup {
            Cgroup::At(_) => None,
            Cgroup::NotMounted => Some(
                "cgroup v2 is not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified (mount -t cgroup2 cgroup2 DIR, and \
                 name it with --cgroup DIR)"
                    .to_owned(),
            ),
            Cgroup::NotThere(path) => Some(format!(
                "--cgroup {} is not a directory of cgroup v2 (name one, such as /sys/fs/cgroup)",
                path.display()
            )),
        }
    }

    fn lacking_pins(&self) -> Option<String> {
        match &self.pins {
            Pins::Writable => None,
            // The agent does it.
            Pins::NotMounted if self.capabilities.sys_admin && !self.is_in_user_namespace => None,
            Pins::NotMounted => Some(
                "no BPF filesystem is mounted at /sys/fs/bpf, and mounting one takes CAP_SYS_ADMIN (as root: mount -t \
                 bpf bpf /sys/fs/bpf)"
                    .to_owned(),
            ),
            Pins::Elsewhere(path) => Some(format!(
                "--bpf-path {} is not in a BPF filesystem (name a directory in one, such as /sys/fs/bpf/proxyd)",
                path.display()
            )),
            Pins::NotWritable(path, reason) => Some(format!(
                "{} cannot be written to: {reason} (run proxyd as its owner, or name another directory with --bpf-path)",
                path.display()
            )),
        }
    }
}

#[cfg(test)]
mod tests;
