//! What a node remembers.

use std::fs;
use std::net::SocketAddr;

use aya::maps::lpm_trie::Key;
use aya::maps::{MapData, Queue};
use proxyd_ebpf_common as bpf;

use super::node::Node;
use super::packets::Talk;

/// The maps of connections: of their packets as they come in, and as they go out.
const FLOWS: [&str; 2] = ["ingress_flows", "egress_flows"];

/// The queues of connections that are looked at again.
const WAITING: [&str; 2] = ["begun", "closed"];

impl Node {
    /// Makes all that is remembered be that much older, but not older than the machine's start.
    ///
    /// # Panics
    /// If the machine runs for less time than that: then nothing can be so old.
    pub(crate) fn grows_older(&mut self, seconds: u64) {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: u64 = uptime.split('.').next().unwrap().parse().unwrap();
        assert!(
            uptime > seconds,
            "NOT RUN: the machine runs for {uptime} s only"
        );
        let older = |used_at: u64| used_at.saturating_sub(seconds * 1_000_000_000);
        for name in FLOWS {
            let mut map = self.map::<bpf::Tuple, bpf::Flow>(name);
            let flows: Vec<_> = map.iter().map(Result::unwrap).collect();
            for (key, mut flow) in flows {
                flow.used_at = older(flow.used_at);
                let ticks = bpf::ticks(seconds * 1_000_000_000);
                flow.seen_at = flow.seen_at.saturating_sub(ticks);
                map.insert(key, flow, 0).unwrap();
            }
        }
        let mut map = self.map::<bpf::SourceKey, bpf::Choice>("source_affinity");
        let choices: Vec<_> = map.iter().map(Result::unwrap).collect();
        for (key, mut choice) in choices {
            choice.used_at = older(choice.used_at);
            map.insert(key, choice, 0).unwrap();
        }
        for name in WAITING {
            let mut queue = self.queue(name);
            for mut waiting in drain(&mut queue) {
                waiting.since = older(waiting.since);
                queue.push(waiting, 0).unwrap();
            }
        }
    }

    /// All that is remembered of connections.
    pub(crate) fn flows(&mut self) -> Vec<(bpf::Tuple, bpf::Flow)> {
        let mut flows = Vec::new();
        for name in FLOWS {
            flows.extend(self.map(name).iter().map(Result::unwrap));
        }
        flows
    }

    pub(super) fn forget_everything(&mut self) {
        self.clear::<bpf::FrontendKey, bpf::Frontend>("frontends");
        self.clear::<bpf::BackendKey, bpf::Destination>("backends");
        self.clear::<bpf::MemberKey, u8>("members");
        self.clear::<bpf::Address, bpf::WhoMayCall>("node_addresses");
        self.clear::<u32, bpf::Device>("devices");
        self.clear::<bpf::SourceKey, bpf::Choice>("source_affinity");
        for name in FLOWS {
            self.clear::<bpf::Tuple, bpf::Flow>(name);
        }
        for name in WAITING {
            drain(&mut self.queue(name));
        }
        self.clear::<bpf::FragmentKey, [u16; 2]>("fragments");
        self.clear_networks::<bpf::NetworkKey>("pod_networks");
        self.clear_networks::<bpf::AllowedKey>("allowed");
    }

    fn clear<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) {
        let mut map = self.map::<K, V>(name);
        let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| map.remove(key).unwrap());
    }

    fn clear_networks<K: aya::Pod>(&mut self, name: &str) {
        let mut map = self.networks::<K>(name);
        let keys: Vec<Key<K>> = map.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| map.remove(key).unwrap());
    }

    /// Forgets packets of a connection as if there were no room for it.
    ///
    /// # Panics
    /// If nothing is remembered of them.
    pub(crate) fn forgets(&mut self, talk: Talk) {
        let is_it = |tuple: &bpf::Tuple| of_tuple(tuple) == (talk.from, talk.to);
        let removed = FLOWS.map(|name| {
            let mut map = self.map::<bpf::Tuple, bpf::Flow>(name);
            let key = map.keys().map(Result::unwrap).find(is_it);
            key.map(|key| map.remove(&key).unwrap())
        });
        assert!(
            removed.iter().any(Option::is_some),
            "{talk:?} is not remembered"
        );
    }

    fn queue(&mut self, name: &str) -> Queue<&mut MapData, bpf::Waiting> {
        self.loaded.map_mut(name).unwrap().try_into().unwrap()
    }
}

/// Takes all out of a queue.
fn drain(queue: &mut Queue<&mut MapData, bpf::Waiting>) -> Vec<bpf::Waiting> {
    std::iter::from_fn(|| queue.pop(0).ok()).collect()
}

/// Who talks to whom.
pub(crate) fn of_tuple(tuple: &bpf::Tuple) -> (SocketAddr, SocketAddr) {
    let at = |address, port| {
        let padding = 0;
        SocketAddr::from(bpf::Destination {
            address,
            port,
            padding,
        })
    };
    (
        at(tuple.source, tuple.source_port),
        at(tuple.destination, tuple.destination_port),
    )
}
