//! What the maps of the programs hold, compared with what a dry run says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use proxyd_ebpf_common as bpf;
use proxyd_tests::agent::run_once;
use proxyd_tests::live::Live;
use proxyd_tests::model::Model;
use proxyd_tests::sockets::Sockets;
use serde_json::Value;

/// The back ends of front ends: those on all nodes, and those on this one. Their places are left out: they tell of the past.
type Content = BTreeMap<String, [BTreeSet<SocketAddr>; 2]>;

/// Makes sure that the programs know what a dry run comes to.
#[track_caller]
pub(crate) fn expect_planned_maps(live: &Live, programs: &Sockets) {
    let (there, planned) = (Found::read(programs).content, planned(live));
    assert!(!planned.is_empty());
    assert_eq!(there, planned);
}

/// What the programs know and should not, and the other way round: empty if all is right. Front ends with one of `others` in
/// them, the model does not know of.
pub(crate) fn differences(model: &Model, others: &[&str], programs: &Sockets) -> Vec<String> {
    let found = Found::read(programs);
    let mut differences = Vec::new();
    if found.of_nobody > 0 {
        differences.push(format!("{} back ends of nobody", found.of_nobody));
    }
    let wanted = model.balanced();
    let mut there = found.content;
    there.retain(|at, _| !others.iter().any(|other| at.contains(other)));
    for at in there.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
        let is = there.get(at).map(|[everywhere, _]| everywhere);
        let wanted = wanted.get(at);
        if is != wanted {
            differences.push(format!("{at} has {is:?} and not {wanted:?}"));
        }
    }
    differences
}

/// What is there.
struct Found {
    content: Content,
    /// How many back ends are in places that no front end has.
    of_nobody: usize,
}

impl Found {
    fn read(programs: &Sockets) -> Self {
        let frontends = open::<bpf::FrontendKey, bpf::Frontend>(programs, "frontends");
        let backends = open::<bpf::BackendKey, bpf::Destination>(programs, "backends");
        let mut content = Content::new();
        let mut places = 0;
        for (key, frontend) in frontends.iter().map(Result::unwrap) {
            let at = match key.kind {
                bpf::NODE_PORT_V4 => "IPv4".to_owned(),
                bpf::NODE_PORT_V6 => "IPv6".to_owned(),
                _ => IpAddr::from(key.address).to_string(),
            };
            let protocol = match key.protocol {
                6 => "tcp",
                _ => "udp",
            };
            let lists = [(0, frontend.count), (bpf::FIRST_LOCAL, frontend.local)];
            let lists = lists.map(|(first, count)| {
                let indexes = first..first + count;
                let list = indexes.filter_map(|index| {
                    let frontend = key;
                    let to = backends.get(&bpf::BackendKey { frontend, index }, 0);
                    Some(to.ok()?.into())
                });
                let list: Vec<SocketAddr> = list.collect();
                places += list.len();
                list.into_iter().collect()
            });
            let port = u16::from_be(key.port);
            content.insert(format!("{at} {port} {protocol}"), lists);
        }
        let of_nobody = backends.keys().count().abs_diff(places);
        Self { content, of_nobody }
    }
}

fn planned(live: &Live) -> Content {
    let dry_run = [&live.args()[..], &["--dry-run", "-o", "json"]].concat();
    let dry_run = run_once(live.node(), &dry_run);
    let document: Value = serde_json::from_slice(&dry_run.stdout).unwrap();
    let mut content = Content::new();
    for family in document["families"].as_array().unwrap() {
        for frontend in family["frontends"].as_array().unwrap() {
            let text = |field: &str| frontend[field].as_str();
            let at = text("address").or(family["family"].as_str()).unwrap();
            let port = frontend["port"].as_u64().or(frontend["nodePort"].as_u64());
            let mut lists = [BTreeSet::new(), BTreeSet::new()];
            for backend in frontend["backends"].as_array().unwrap() {
                let ip: IpAddr = backend["address"].as_str().unwrap().parse().unwrap();
                let port = u16::try_from(backend["port"].as_u64().unwrap()).unwrap();
                let is_local = backend["index"].as_u64().unwrap() >= bpf::FIRST_LOCAL.into();
                lists[usize::from(is_local)].insert(SocketAddr::new(ip, port));
            }
            let protocol = text("protocol").unwrap();
            let key = format!("{at} {} {protocol}", port.unwrap());
            content.insert(key, lists);
        }
    }
    content
}

fn open<K: Pod, V: Pod>(programs: &Sockets, name: &str) -> HashMap<MapData, K, V> {
    let path = programs.map(name);
    let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    map.try_into().unwrap()
}
