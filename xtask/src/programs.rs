//! The programs that tests, demo and bench call, and how they come onto a fresh machine.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, bail};

use crate::tools::{self, command, find_program};

/// The programs, and the Debian package that has each.
const PROGRAMS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
    // Makes system calls fail, and tells programs another time of day: for tests of faults.
    ("strace", "strace"),
    ("faketime", "faketime"),
];

/// Installs what is missing, by apt where it may.
///
/// # Errors
/// What to install, where it cannot be done here.
pub(crate) fn install_missing() -> anyhow::Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = |names: Vec<&str>| names.join(" ");
    let programs = list(missing.iter().map(|(program, _)| *program).collect());
    let packages = list(missing.iter().map(|(_, package)| *package).collect());
    if !may_install()? {
        bail!(
            "missing: {programs}\ninstall them; on Debian and Ubuntu the packages are: {packages}"
        );
    }
    println!("missing: {programs}: installing {packages}");
    install(&packages)
}

/// Installs Debian's packages of these names.
pub(crate) fn install(packages: &str) -> anyhow::Result<()> {
    let install =
        format!("apt-get update && apt-get install -y --no-install-recommends {packages}");
    tools::run(command("sh", &["-c", &install]).env("DEBIAN_FRONTEND", "noninteractive"))
        .with_context(|| format!("{packages} cannot be installed"))
}

/// Whether that may be done here.
pub(crate) fn may_install() -> anyhow::Result<bool> {
    Ok(find_program("apt-get").is_some() && is_root()?)
}

/// Whether this process runs as root: `/proc/self` belongs to the effective user (proc(5)).
pub(crate) fn is_root() -> anyhow::Result<bool> {
    Ok(fs::metadata("/proc/self")
        .context("/proc is not mounted")?
        .uid()
        == 0)
}
