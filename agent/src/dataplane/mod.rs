//! The data plane: what carries a delta into the kernel. One trait of four verbs, one implementation for
//! each kind of kernel program, and a recording fake for tests.

pub mod ebpf;
pub mod nft;
#[cfg(test)]
pub(crate) mod recording;

use std::collections::BTreeSet;

use crate::diff::{Delta, Held};
use crate::model::{Family, Frontend};
use crate::plan::Tables;

/// A kernel program that balances Services and holds its state in maps. Each family is on its own.
pub trait Dataplane {
    /// Reads back what the kernel holds, loading the program first if it is not there. Where a program of
    /// another version is there, replaces it in one transaction by ours with `desired` in it, so that nothing
    /// is unserved meanwhile.
    ///
    /// # Errors
    /// The kernel's refusal, or that it cannot be asked. The kernel then holds what it held before.
    fn resync(&mut self, family: Family, desired: &Tables) -> Result<Held, DataplaneError>;

    /// Commits a delta to what is held, as a whole.
    ///
    /// # Errors
    /// The kernel's refusal. What it holds is then unknown: [`Dataplane::resync`] tells.
    fn apply(&mut self, family: Family, held: &Held, delta: &Delta) -> Result<(), DataplaneError>;

    /// Puts back what others changed of what is `held`, as far as that was heard: the kernel holds it again.
    ///
    /// # Errors
    /// The kernel's refusal. What it holds is then unknown: [`Dataplane::resync`] tells.
    fn restore(&mut self, family: Family, held: &Held) -> Result<Restored, DataplaneError>;

    /// Removes everything that is ours from the kernel, and nothing else. What is not there is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn cleanup(&mut self, family: Family) -> Result<(), DataplaneError>;
}

/// What balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// Rules of nf_tables.
    Nftables,
    /// BPF programs, at sockets of this node and its pods and at devices; rules of nf_tables refuse and drop beside.
    Ebpf,
}

/// What was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// How many things were put right.
    pub changes: usize,
    /// The front ends that may have been served otherwise meanwhile; `None`: any.
    pub frontends: Option<BTreeSet<Frontend>>,
}

/// Why the kernel does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// No permission.
    #[error(
        "the kernel does not permit changing nftables; run proxyd as root, or with CAP_NET_ADMIN \
         (in Kubernetes: securityContext.runAsUser: 0 with capabilities.add: [NET_ADMIN]; a container that runs as another \
         user has no capability in effect, whatever is added)"
    )]
    NotPermitted,
    /// Our table is not as we left it.
    #[error("someone else changed or deleted a table of proxyd's ({0}); reading it back")]
    ChangedByOthers(#[source] std::io::Error),
    /// The kernel refused a netlink request.
    #[error("the kernel refused {what}: {source}")]
    Refused {
        /// What it was asked.
        what: String,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// The machine lacks what the eBPF back end needs.
    #[error("--backend ebpf cannot be had: {what}; --backend nftables {alternative}")]
    Lacking {
        /// What it lacks, and what to do about it.
        what: String,
        /// What the other back end needs of that.
        alternative: &'static str,
    },
    /// The kernel refused something about BPF programs or their maps.
    #[error("BPF: {what}: {}", chain(source.as_ref()))]
    Bpf {
        /// What it was asked.
        what: String,
        /// Its answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel could not be talked to.
    #[error("netlink: {0}")]
    Netlink(#[source] std::io::Error),
}

/// What an error says, with what it comes from.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

impl DataplaneError {
    /// That the kernel refused something about BPF.
    fn bpf(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Bpf {
            what: what.into(),
            source: source.into(),
        }
    }
}
