//! The kernel's limit of flows, raised for a while.
//!
//! A shell waits for the end of its input and then puts the limit back, so that it is put back whatever ends this
//! process: an error, Ctrl-C, or SIGKILL.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

const PATH: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Flows that are not the bench's.
const SPARE: u32 = 10_000;

/// The limit, which is put back at the end.
pub(super) struct Limit {
    guard: Option<(Child, u32)>,
}

impl Limit {
    /// Raises the limit so that `flows` fit, and says so. Where that is not allowed, also returns how many fit instead.
    pub(super) fn raise(flows: u32) -> Result<(Self, u32)> {
        let old: u32 = fs::read_to_string(PATH)
            .with_context(|| format!("{PATH}: is nf_conntrack loaded?"))?
            .trim()
            .parse()?;
        let wanted = flows + SPARE;
        if wanted <= old {
            return Ok((Self { guard: None }, flows));
        }
        let script = format!("trap '' INT TERM HUP; cat >/dev/null; echo {old} >{PATH}");
        let guard = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start sh, which puts the limit back")?;
        let limit = Self {
            guard: Some((guard, old)),
        };
        match fs::write(PATH, wanted.to_string()) {
            Ok(()) => {
                println!(
                    "nf_conntrack_max of this MACHINE is raised from {old} to {wanted}, and put back at the end"
                );
                Ok((limit, flows))
            }
            Err(error) => {
                let fits = old - SPARE.min(old);
                println!(
                    "NOT MEASURED with {flows} flows: nf_conntrack_max is {old} and cannot be raised ({error}); \
                     with {fits} instead"
                );
                Ok((limit, fits))
            }
        }
    }

    /// Puts the limit back and looks whether that worked. (Dropping puts it back too.)
    pub(super) fn put_back(mut self) -> Result<()> {
        let Some((guard, old)) = self.guard.take() else {
            return Ok(());
        };
        wait(guard);
        let now = fs::read_to_string(PATH)?;
        ensure!(
            now.trim() == old.to_string(),
            "nf_conntrack_max is {now}, but was {old}: put it back by hand"
        );
        println!("nf_conntrack_max is {old} again");
        Ok(())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some((guard, _)) = self.guard.take() {
            wait(guard);
        }
    }
}

/// Ends the shell's input, and waits until it has done its work.
fn wait(mut guard: Child) {
    drop(guard.stdin.take());
    // Nothing to do about a shell that somebody else waited for.
    drop(guard.wait());
}
