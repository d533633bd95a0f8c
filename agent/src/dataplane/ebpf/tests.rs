//! The maps hold what is held, a change writes what it touches, and no write on the way leaves a client with nobody.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proxyd_ebpf_common as bpf;

use super::super::nft::Duty;
use super::layout::Entries;
use super::maglev::TableSize;
use super::order::{Write, writes};
use super::share::{self, duty_for};
use super::tables::{Job, Step, Todo, Uses};
use crate::diff::{Held, Slot, diff};
use crate::model::{Family, Frontend, Protocol, Scope};
use crate::plan::{Affinity, Balance, Member, Policy, Rule, Tables};
use crate::testing::{backend, ip, port};

fn frontend(number: u8) -> Frontend {
    let (protocol, port) = (
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(number % 3)],
        port(80),
    );
    match number {
        0..6 => Frontend::Address {
            ip: ip(&format!("10.96.0.{number}")),
            protocol,
            port,
        },
        _ => Frontend::NodePort {
            family: Family::V4,
            protocol,
            port,
        },
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let policies = [Policy::Cluster, Policy::External, Policy::ExternalLocal];
    let policy = prop::sample::select(policies.to_vec());
    let hosts = prop::collection::btree_set(1..9_u8, 1..7);
    let affinity = prop::option::of(1..3_u32);
    prop_oneof![
        1 => Just(Rule::Reject),
        1 => Just(Rule::Drop),
        6 => (policy, hosts, affinity).prop_map(|(policy, hosts, affinity)| Rule::Balance(Balance {
            policy,
            backends: hosts.iter().map(|h| backend(&format!("10.1.0.{h}:80"))).collect(),
            local: match policy {
                Policy::ExternalLocal => hosts.iter().filter(|h| *h % 2 == 0).map(|h| backend(&format!("10.1.0.{h}:80"))).collect(),
                _ => Vec::new(),
            },
            affinity: affinity.and_then(crate::model::AffinityTimeout::new).map(|timeout| Affinity {
                timeout,
                key: frontend(3 * (hosts.len() % 2) as u8),
                is_mixed: policy == Policy::ExternalLocal,
            }),
        })),
    ]
}

prop_compose! {
    fn any_tables()(
        rules in prop::collection::btree_map((0..9_u8).prop_map(frontend), any_rule(), 0..7),
        guarded in prop::collection::btree_set((0..6_u8).prop_map(frontend).prop_map(Member::Guarded), 0..2),
        sources in prop::collection::btree_set((0..6_u8, 0..3_u8), 0..3),
        addresses in prop::collection::btree_set(
            (1..3_u8).prop_map(|h| Member::NodePortAddress(ip(&format!("192.168.0.{h}")))), 0..3),
    ) -> Tables {
        let sources = sources.into_iter().map(|(number, network)| {
            Member::AllowedSource(frontend(number), format!("203.0.{network}.0/24").parse().unwrap())
        });
        Tables { rules, members: guarded.into_iter().chain(addresses).chain(sources).collect() }
    }
}

fn loaded(tables: &Tables) -> Held {
    let mut held = Held::default();
    held.apply(&diff(&held, tables, &Scope::All));
    held
}

fn make(entries: &mut Entries, write: Write) {
    fn put<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, to: Option<V>) {
        match to {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
    match write {
        Write::Frontend(key, to) => put(&mut entries.frontends, key, to),
        Write::Backend(key, to) => put(&mut entries.backends, key, to),
        Write::AffinityKey(key, to) => put(&mut entries.affinity_keys, key, to),
        Write::NodeAddress(key, to) => put(&mut entries.node_addresses, key, to),
        Write::Member(key, to) => put(&mut entries.members, key, to),
        Write::PodNetwork(key, to) => put(&mut entries.pod_networks, key, to),
        Write::Allowed(key, to) => put(&mut entries.allowed, key, to),
        Write::Uncount(_) => {}
    }
}

/// The back ends that a front end has.
fn backends(entries: &Entries, frontend: bpf::FrontendKey) -> BTreeSet<bpf::Destination> {
    let of = entries.backends.iter();
    let of = of.filter(|(key, _)| key.frontend == frontend);
    of.map(|(_, backend)| *backend).collect()
}

/// Small, so that tests take no longer than they must.
const SLOTS: u32 = 251;

fn size() -> TableSize {
    SLOTS.to_string().parse().unwrap()
}

fn of(held: &Held) -> Entries {
    Entries::of(Family::V4, held, size())
}

/// What the kernel holds while one content becomes another: the maps that are written at once, and the tables that are made by and
/// by.
struct Kernel {
    entries: Entries,
    tables: BTreeMap<bpf::Table, (Vec<u16>, Vec<bpf::Destination>)>,
    todo: Todo,
}

impl Kernel {
    fn holding(entries: &Entries) -> Self {
        let mut kernel = Self {
            entries: entries.clone(),
            tables: BTreeMap::new(),
            todo: Todo::default(),
        };
        kernel.add(Job::Only(Family::V4, entries.tables.clone()));
        while kernel.step() {}
        kernel
    }

    fn add(&mut self, job: Job) {
        let found = self.tables.iter();
        let found = found.map(|(table, (_, backends))| (*table, backends.clone()));
        self.todo.add(job, || Ok::<_, ()>(found.collect())).unwrap();
    }

    fn step(&mut self) -> bool {
        match self.todo.next() {
            None => return false,
            Some(Step::Make(table, backends)) => {
                let content = (backends.slots(table.size), backends.as_slice().to_vec());
                self.tables.insert(table, content);
            }
            Some(Step::Remove(table)) => drop(self.tables.remove(&table)),
        }
        true
    }

    /// Whom flows get by the table of a front end, if it is there.
    fn hashed(&self, frontend: &bpf::Frontend) -> Option<BTreeSet<bpf::Destination>> {
        let (slots, backends) = self.tables.get(&frontend.table)?;
        Some(
            slots
                .iter()
                .map(|index| backends[usize::from(*index)])
                .collect(),
        )
    }
}

/// The back ends that clients outside may get.
fn outside(entries: &Entries, frontend: bpf::FrontendKey) -> BTreeSet<bpf::Destination> {
    let Some(value) = entries.frontends.get(&frontend) else {
        return BTreeSet::new();
    };
    let (first, count) = if value.flags & bpf::LOCAL_OUTSIDE != 0 {
        (bpf::FIRST_LOCAL, value.local)
    } else {
        (0, value.count)
    };
    let place = |index| bpf::BackendKey { frontend, index };
    let of = entries.backends.range(place(first)..place(first + count));
    of.map(|(_, backend)| *backend).collect()
}

proptest! {
    #[test]
    fn what_is_held_is_in_the_maps_or_in_the_rules(tables in any_tables()) {
        let held = loaded(&tables);
        let duty = duty_for(&tables);
        let by_rules = share::of_held(duty, &held);
        prop_assert_eq!(&*by_rules, &loaded(&share::of_tables(duty, &tables)));
        let mut all = by_rules.into_owned();
        all.entries.extend(of(&held).held());
        prop_assert_eq!(&all, &held);

        let is_refused = |rule: &Rule| !matches!(rule, Rule::Balance(_));
        if duty == Duty::Refuse {
            prop_assert!(share::of_tables(duty, &tables).rules.values().all(is_refused));
        }
    }

    #[test]
    fn rules_are_told_their_part_of_a_change(from in any_tables(), to in any_tables()) {
        let held = loaded(&from);
        let delta = diff(&held, &to, &Scope::All);
        let mut after = held.clone();
        after.apply(&delta);
        for duty in [Duty::Refuse, Duty::Balance] {
            let mut by_rules = share::of_held(duty, &held).into_owned();
            by_rules.apply(&share::of_delta(duty, &delta));
            prop_assert_eq!(&by_rules, &*share::of_held(duty, &after));
        }
    }

    #[test]
    fn whoever_picks_on_the_way_gets_an_old_or_a_new_back_end(
        from in any_tables(),
        to in any_tables(),
        // How many tables are made or removed after each write.
        pace in 0..3_usize,
        hear_first in any::<bool>(),
    ) {
        let held = loaded(&from);
        let delta = diff(&held, &to, &Scope::All);
        let mut after = held.clone();
        after.apply(&delta);
        let [before, after] = [held, after].map(|held| of(&held));
        let mut now = Kernel::holding(&before);
        let job = Uses::of(&before).change(&before, &after);
        if hear_first {
            now.add(job.clone());
        }
        for write in writes(&before, &after) {
            make(&mut now.entries, write);
            for _ in 0..pace {
                now.step();
            }
            for (frontend, value) in &now.entries.frontends {
                let known: BTreeSet<_> =
                    backends(&before, *frontend).union(&backends(&after, *frontend)).copied().collect();
                let local = bpf::FIRST_LOCAL..bpf::FIRST_LOCAL + value.local;
                for index in (0..value.count).chain(local) {
                    let picked = now.entries.backends.get(&bpf::BackendKey { frontend: *frontend, index });
                    prop_assert!(picked.is_some_and(|backend| known.contains(backend)), "{write:?}");
                }
                let known: BTreeSet<_> =
                    outside(&before, *frontend).union(&outside(&after, *frontend)).copied().collect();
                prop_assert!(now.hashed(value).is_none_or(|hashed| hashed.is_subset(&known)), "{write:?}");
            }
            let stays = before.frontends.keys().filter(|key| after.frontends.contains_key(key));
            for frontend in stays {
                prop_assert!(now.entries.frontends.contains_key(frontend), "{write:?}");
            }
        }
        if !hear_first {
            now.add(job);
        }
        while now.step() {}
        for (frontend, value) in &after.frontends {
            let outside = outside(&after, *frontend);
            let is_hashed = value.flags & bpf::MASQUERADE_OUTSIDE == 0 && outside.len() > 1;
            prop_assert_eq!(now.hashed(value), is_hashed.then_some(outside));
        }
        prop_assert!(now.tables.keys().eq(after.tables.keys()));
        now.entries.tables = after.tables.clone();
        prop_assert_eq!(now.entries, after);
    }

    #[test]
    fn a_change_writes_what_it_touches_as_if_all_were_compared(from in any_tables(), to in any_tables()) {
        let held = loaded(&from);
        let delta = diff(&held, &to, &Scope::All);
        let (before, after) = Entries::around(Family::V4, &held, &delta, size());
        let mut now = of(&held);
        let mut uses = Uses::of(&now);
        let Job::Change { new, gone } = uses.change(&before, &after) else { unreachable!() };
        writes(&before, &after).into_iter().for_each(|write| make(&mut now, write));
        prop_assert!(new.keys().all(|table| !now.tables.contains_key(table)));
        now.tables.extend(new);
        now.tables.retain(|table, _| !gone.contains(table));
        let mut later = held.clone();
        later.apply(&delta);
        prop_assert_eq!(uses, Uses::of(&of(&later)));
        prop_assert_eq!(now, of(&later));
    }

    #[test]
    fn an_agent_makes_what_lacks_whatever_an_earlier_one_left(
        from in any_tables(),
        to in any_tables(),
        steps in 0..9_usize,
        torn in 0..4_usize,
    ) {
        let [before, after] = [from, to].map(|tables| of(&loaded(&tables)));
        let mut kernel = Kernel::holding(&before);
        kernel.add(Job::Only(Family::V4, after.tables.clone()));
        for _ in 0..steps {
            kernel.step();
        }
        // Killed while it made or removed one: some back ends are not there, and who knows which slots.
        if let Some((slots, backends)) = kernel.tables.values_mut().nth(torn) {
            slots.clear();
            backends.truncate(torn % backends.len());
        }
        // Changes that were not done go with the agent.
        kernel.todo = Todo::default();
        let none = Entries::default();
        kernel.add(Job::Only(Family::V6, none.tables));
        kernel.add(Job::Only(Family::V4, after.tables.clone()));
        while kernel.step() {}
        let expected = Kernel::holding(&after);
        prop_assert_eq!(kernel.tables, expected.tables);
    }
}

#[test]
fn front_ends_with_the_same_back_ends_share_a_table_until_the_last_one_goes() {
    let rule = |policy, local: bool| {
        let backends = ["10.1.0.1:80", "10.1.0.2:80"].map(backend).to_vec();
        Rule::Balance(Balance {
            policy,
            local: if local { backends.clone() } else { Vec::new() },
            backends,
            affinity: None,
        })
    };
    let with = |rules: &[(u8, Rule)]| {
        let mut tables = Tables::default();
        let rules = rules.iter().cloned();
        tables
            .rules
            .extend(rules.map(|(number, rule)| (frontend(number), rule)));
        of(&loaded(&tables))
    };
    let cluster = (0, rule(Policy::Cluster, false));
    let external = (1, rule(Policy::External, false));
    let here = (3, rule(Policy::ExternalLocal, true));
    let both = with(&[cluster.clone(), external.clone(), here.clone()]);
    let one = with(&[cluster.clone(), here]);
    let none = with(&[cluster, (3, rule(Policy::ExternalLocal, false))]);
    assert_eq!(
        [&both, &one, &none].map(|entries| entries.tables.len()),
        [1, 1, 0]
    );

    let mut uses = Uses::of(&both);
    let nothing = Job::Change {
        new: BTreeMap::new(),
        gone: BTreeSet::new(),
    };
    assert_eq!(uses.change(&both, &one), nothing);
    let table = *one.tables.keys().next().unwrap();
    let gone = Job::Change {
        new: BTreeMap::new(),
        gone: [table].into(),
    };
    assert_eq!(uses.change(&one, &none), gone);
    let new = Job::Change {
        new: one.tables.clone(),
        gone: BTreeSet::new(),
    };
    assert_eq!(uses.change(&none, &one), new);
}

#[test]
fn a_front_end_says_who_gets_what_and_who_may_call() {
    let tcp = frontend(0);
    let balance = |policy| {
        Rule::Balance(Balance {
            policy,
            backends: vec![backend("10.1.0.1:80")],
            local: Vec::new(),
            affinity: None,
        })
    };
    let flags = |policy, members: &[Member]| {
        let mut tables = Tables::default();
        tables.rules.insert(tcp, balance(policy));
        // SCTP.
        tables.rules.insert(frontend(2), balance(policy));
        tables.members.extend(members);
        let entries = of(&loaded(&tables));
        let flags: Vec<u32> = entries.frontends.values().map(|f| f.flags).collect();
        (flags, entries.allowed.len())
    };
    assert_eq!(
        flags(Policy::Cluster, &[]),
        (vec![bpf::MASQUERADE_OUTSIDE], 0)
    );
    assert_eq!(flags(Policy::External, &[]), (vec![bpf::MASQUERADE_ALL], 0));
    let source = Member::AllowedSource(tcp, "203.0.113.0/24".parse().unwrap());
    assert_eq!(
        flags(Policy::ExternalLocal, &[Member::Guarded(tcp), source]),
        (vec![bpf::LOCAL_OUTSIDE | bpf::GUARDED], 1)
    );
}

#[test]
fn what_was_counted_is_forgotten_with_the_back_end_and_not_when_that_moves() {
    let tables = |backends: &[&str]| {
        let rule = Rule::Balance(Balance {
            policy: Policy::Cluster,
            backends: backends.iter().map(|text| backend(text)).collect(),
            local: Vec::new(),
            affinity: None,
        });
        let mut tables = Tables::default();
        tables.rules.insert(frontend(0), rule);
        tables
    };
    let held = loaded(&tables(&["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"]));
    let delta = diff(&held, &tables(&["10.1.0.2:80", "10.1.0.3:80"]), &Scope::All);
    let (before, after) = Entries::around(Family::V4, &held, &delta, size());
    let forgotten: Vec<_> = writes(&before, &after)
        .into_iter()
        .filter_map(|write| match write {
            Write::Uncount(member) => Some(member.backend.address.0[15]),
            _ => None,
        })
        .collect();
    assert_eq!(forgotten, [1]);
}

#[test]
fn a_hole_that_someone_tore_is_no_back_end() {
    let mut held = Held::default();
    let slot = |index| Slot {
        frontend: frontend(0),
        index,
    };
    held.set_backend(slot(1), Some(backend("10.1.0.1:80")));
    held.set_verdict(
        frontend(0),
        Some(crate::diff::Verdict::Balance {
            policy: Policy::Cluster,
            count: 2,
            local: 0,
            affinity: None,
        }),
    );
    let entries = of(&held);
    let indexes: Vec<u32> = entries.backends.keys().map(|key| key.index).collect();
    assert_eq!(indexes, [1]);
}

#[test]
fn the_node_alone_calls_the_loopback_address() {
    let mut tables = Tables::default();
    tables
        .members
        .insert(Member::NodePortAddress(ip("192.168.0.1")));
    let entries = of(&loaded(&tables));
    let mapped = |last: [u8; 4]| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&last);
        bpf::Address(address)
    };
    let expected = [
        (mapped([127, 0, 0, 1]), bpf::THE_NODE),
        (mapped([192, 168, 0, 1]), bpf::ANYBODY),
    ];
    assert!(entries.node_addresses.into_iter().eq(expected));
}
