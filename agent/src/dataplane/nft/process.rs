//! Runs the `nft` program. I/O: one child process, fed by standard input.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::DataplaneError;

/// Loads commands in one transaction. Takes milliseconds, most of them to start the process.
///
/// # Errors
/// That `nft` is missing or cannot be run, or what it said when it refused. Nothing was changed then.
pub(super) fn load(commands: &str) -> Result<(), DataplaneError> {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => DataplaneError::NftMissing,
        _ => DataplaneError::NftNotRun(error),
    })?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // nft reads all of its input before it says anything, so this cannot block for good. A broken pipe
    // means that it ended early: its exit status and message tell more.
    let written = stdin.write_all(commands.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(DataplaneError::NftNotRun)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let hint = hint(
            Path::new("/proc/sys/net/netfilter/nf_conntrack_max"),
            &message,
        );
        return Err(DataplaneError::NftRefused { message, hint });
    }
    written.map_err(DataplaneError::NftNotRun)
}

/// What may be the cause of a refusal. `conntrack_sysctl` exists where the kernel tracks connections.
fn hint(conntrack_sysctl: &Path, message: &str) -> Option<&'static str> {
    if message.contains("Operation not permitted") {
        Some("run proxyd as root, or with CAP_NET_ADMIN")
    } else if !conntrack_sysctl.exists() {
        Some(
            "this kernel has no connection tracking, which NAT needs; load the module nf_conntrack, \
             or use a kernel with CONFIG_NF_CONNTRACK and CONFIG_NF_NAT",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_without_conntrack_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let sysctl = dir.path().join("nf_conntrack_max");
        let refused = "Error: Could not process rule: No such file or directory";
        assert!(hint(&sysctl, refused).unwrap().contains("nf_conntrack"));
        std::fs::write(&sysctl, "262144").unwrap();
        assert_eq!(hint(&sysctl, refused), None);
        assert!(
            hint(&sysctl, "Operation not permitted")
                .unwrap()
                .contains("CAP_NET_ADMIN")
        );
    }
}
