//! The skeleton: the constant program of one family. As text nft 1.0.1 and later load it; the agent loads it by netlink.
//!
//! It holds no Service: those are elements of its maps. Its [`Skeleton::version`] stands in the table's
//! comment and changes with any letter of the program and any byte of its messages, so that a restart knows
//! whether it may adopt what is there. nft prints some rules otherwise than they were written, so the text itself is never compared.

use std::collections::BTreeSet;

use netlink_packet_core::{Emitable as _, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};

use super::batch::Flagged;
use super::chains::Definition;
use super::rule::{Rule, nft_family};
use super::sets::{self, item};
use super::shapes::{At, Chain};
use super::standing;
use crate::model::{Family, PerFamily};
use crate::plan::Detector;

/// The name of the table, in both families.
pub(super) const TABLE: &str = "proxyd";

/// The chain that marks a connection for masquerade.
pub(super) const MARK_CHAIN: &str = "mark-for-masquerade";

/// The chain that refuses a connection.
pub(super) const REJECT_CHAIN: &str = "send-reject";

/// The map of the choices that are remembered for clients.
pub(super) const AFFINITY: &str = "affinity";

/// The set of pairs of a device with itself: nft cannot compare the device that a packet came in by with that by which it goes out, but can
/// look both up.
pub(super) const SAME_DEVICE: &str = "same-device";

/// How many such pairs there are at a time, at most.
pub(super) const SAME_DEVICE_SIZE: u32 = 4096;

/// How many choices are remembered in a family, at most. Linux sets aside 16 bytes for each from the start.
pub(super) const AFFINITY_SIZE: u32 = 131_072;

/// The kind of a comment in a table's user data (libnftnl `include/libnftnl/udata.h`).
pub(super) const USER_DATA_COMMENT: u8 = 0;

/// The settings that the program depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkeletonConfig {
    /// What tells pods of this cluster or node from others.
    pub detector: PerFamily<Detector>,
    /// The bit of the packet mark that asks for masquerade (`--iptables-masquerade-bit`), 0 to 31.
    pub masquerade_bit: u8,
    /// Whether ports that no Service has are refused at load-balancer and external addresses that are routed to this node
    /// (`--reject-unused-service-ports`).
    pub rejects_unused_ports: bool,
}

/// What the rules do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// They balance connections, and refuse and drop.
    Balance,
    /// They refuse and drop only: others balance. No connection is tracked for that, so what they say of new connections they
    /// say of packets: of TCP's, those that ask for one.
    Refuse,
}

/// The program of one family.
#[derive(Debug, Clone)]
pub struct Skeleton {
    family: Family,
    detector: Detector,
    duty: Duty,
    mark: u32,
    rejects_unused_ports: bool,
    version: String,
}

impl Skeleton {
    /// Makes the program of a family that balances.
    pub fn new(family: Family, config: &SkeletonConfig) -> Self {
        Self::with(Duty::Balance, family, config)
    }

    /// Makes the program of a family.
    pub fn with(duty: Duty, family: Family, config: &SkeletonConfig) -> Self {
        let mut skeleton = Self {
            family,
            duty,
            detector: config.detector.get(family).clone(),
            mark: 1 << config.masquerade_bit,
            rejects_unused_ports: config.rejects_unused_ports,
            version: String::new(),
        };
        let samples: BTreeSet<Chain> = [At::Address, At::NodePort]
            .into_iter()
            .flat_map(Chain::samples)
            .collect();
        let mut program = skeleton.text(&BTreeSet::new()).into_bytes();
        program.extend(skeleton.chains_text(&samples).into_bytes());
        for (message, _) in skeleton.messages(&samples) {
            let start = program.len();
            program.resize(start + message.buffer_len(), 0);
            message.emit(&mut program[start..]);
        }
        skeleton.version = format!("proxyd {:016x}", fnv1a(&program));
        skeleton
    }

    /// Tells programs apart: equal for equal programs only.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What tells packets from pods from others.
    pub(super) fn detector(&self) -> &Detector {
        &self.detector
    }

    /// What the rules do.
    pub(super) fn duty(&self) -> Duty {
        self.duty
    }

    /// The bit of the mark that asks for masquerade.
    pub(super) fn mark(&self) -> u32 {
        self.mark
    }

    /// Whether ports that no Service has are refused at load-balancer and external addresses.
    pub(super) fn rejects_unused_ports(&self) -> bool {
        self.rejects_unused_ports
    }

    /// The family of the rules.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// The family as nft names it: `ip` or `ip6`.
    pub fn nft_family(&self) -> &'static str {
        nft_family(self.family)
    }

    /// A chain for a shape. Where nothing goes there, it has no rules.
    fn made(&self, chain: Chain) -> Definition {
        let rules = match self.duty {
            Duty::Balance => chain.rules(&self.detector),
            Duty::Refuse => Vec::new(),
        };
        Definition::new(chain.to_string(), rules)
    }

    /// The table with its maps and chains, without elements and without the chains for shapes, which are `made` beside.
    pub(super) fn text(&self, made: &BTreeSet<Chain>) -> String {
        let sets = sets::all();
        let sets: String = sets.iter().map(|set| set.text(self.family)).collect();
        let chains = standing::chains(self);
        let is_beyond = |rule: &Rule| rule.is_beyond_nft(self.family);
        let made = made.iter().map(|chain| self.made(*chain));
        let mut rules = chains.iter().cloned().chain(made).flat_map(|c| c.rules);
        let is_whole = !rules.any(|rule| is_beyond(&rule));
        let chains: String = chains.iter().map(|chain| chain.text(self.family)).collect();
        // The agent does not adopt what lacks some of its rules.
        let version = if is_whole {
            self.version.clone()
        } else {
            format!("{}, in part", self.version)
        };
        format!(
            "table {} {TABLE} {{\n\tcomment \"{version}\"\n\n{sets}\n{chains}}}\n",
            self.nft_family()
        )
    }

    /// Chains that were made for a shape.
    pub(super) fn chains_text(&self, chains: &BTreeSet<Chain>) -> String {
        let chains = chains.iter().map(|chain| self.made(*chain));
        let chains: String = chains.map(|chain| chain.text(self.family)).collect();
        format!("table {} {TABLE} {{\n{chains}}}\n", self.nft_family())
    }

    /// Messages that make the table, with chains for shapes. There must be none of its name.
    pub(super) fn messages(&self, made: &BTreeSet<Chain>) -> Vec<Flagged> {
        let comment = [self.version.as_bytes(), &[0]].concat();
        let table = TableMessage {
            attributes: vec![
                TableAttribute::Name(TABLE.to_owned()),
                TableAttribute::UserData(item(USER_DATA_COMMENT, &comment)),
            ],
        };
        let sets = (1..).zip(sets::all());
        let sets = sets.map(|(number, set)| set.message(self.family, number));
        let made = made.iter().map(|chain| self.made(*chain));
        let chains = standing::chains(self).into_iter().chain(made).collect();
        [(NfTablesMessage::NewTable(table), NLM_F_CREATE)]
            .into_iter()
            .chain(sets)
            .chain(self.messages_of(chains))
            .collect()
    }

    /// Messages that make chains for shapes, in a table that is there.
    pub(super) fn chain_messages(&self, chains: &BTreeSet<Chain>) -> Vec<Flagged> {
        self.messages_of(chains.iter().map(|chain| self.made(*chain)).collect())
    }

    /// All chains come before the first rule, which may lead to any.
    fn messages_of(&self, chains: Vec<Definition>) -> Vec<Flagged> {
        let heads = chains.iter().map(Definition::message);
        let rules = chains.iter().flat_map(|c| c.rule_messages(self.family));
        heads.chain(rules).collect()
    }
}

/// The FNV-1a hash of 64 bits. Only has to tell programs apart, and to be the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
