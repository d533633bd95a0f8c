//! The agent's architecture as rules: which module may import which, and which may do I/O.
//!
//! The tables name modules of `agent/src`; a name stands for the module and all below it.
//! Tests are exempt: they may read golden files and look at results through higher layers.

use std::collections::BTreeSet;

use super::source::{Path, Source, line_of};
use super::{Problem, Tree};

/// Lowest first. A module imports from its own layer and from lower ones.
const LAYERS: &[&[&str]] = &[
    &["model", "version", "logging"],
    &["event", "status", "telling"],
    &["complaints"],
    &["plan"],
    &["diff", "trace"],
    &[
        "host::addresses",
        "host::conntrack",
        "host::devices",
        "host::ports",
        "host::priority",
    ],
    &["dataplane"],
    &["engine"],
    &["machine"],
    &["dry_run"],
    &["source", "host", "http", "relay"],
    &["sync_loop"],
    &["cli", "config"],
    &["run"],
    &["main", "lib", "testing"],
];

/// The modules that talk to the world. All others are pure: they do no I/O, read no clock and start nothing.
const IO: &[&str] = &[
    "dataplane::ebpf::attach",
    "dataplane::ebpf::beside",
    "dataplane::ebpf::filler",
    "dataplane::ebpf::hooks",
    "dataplane::ebpf::links",
    "dataplane::ebpf::maps",
    "dataplane::ebpf::retire",
    "dataplane::ebpf::probe",
    "dataplane::ebpf::peers",
    "dataplane::nft::forgetter",
    "dataplane::nft::netlink",
    "dataplane::nft::restore",
    "dataplane::nft::watcher",
    "source",
    "host",
    "http",
    "logging",
    "relay",
    "sync_loop",
    "run",
    "cli",
    "config",
    "main",
    "lib",
];

/// What a pure module must not name.
const IMPURE: &[&str] = &[
    "axum",
    "hyper",
    "hyper_util",
    "kube",
    "netlink_sys",
    "nix",
    "notify",
    "rtnetlink",
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "tokio_stream",
];

/// The modules that may see Kubernetes' API types.
const API_TYPES: &[&str] = &["model::translate", "source"];

/// What tells the time of day, which somebody may set: nothing may be decided by it.
const WALL_CLOCKS: &[&str] = &[
    "chrono",
    "jiff::Timestamp::now",
    "jiff::Zoned",
    "k8s_openapi::jiff::Timestamp::now",
    "nix::time::ClockId::CLOCK_REALTIME",
    "nix::time::ClockId::now",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
];

/// The modules that tell others what time it is.
const TELL_TIME: &[&str] = &[
    "http::health",
    "http::metrics",
    "http::zpages",
    "logging",
    "sync_loop::publish",
];

/// Pure modules name nothing that does I/O, in this crate or another.
pub(super) fn pure(tree: &Tree) -> Vec<Problem> {
    each_path(tree, |module, path| {
        if is_within_any(module, IO) {
            return None;
        }
        let impure = match path.strip_prefix("crate::") {
            Some(own) => IO.iter().find(|io| is_within(own, io)),
            None => IMPURE
                .iter()
                .find(|impure| is_within(path, impure) || is_glob_over(path, impure)),
        };
        impure.map(|impure| format!("a pure module must not name {impure}"))
    })
}

/// Nothing depends on the time of day: it is asked for only to be told to others.
pub(super) fn wall_clock(tree: &Tree) -> Vec<Problem> {
    each_path(tree, |module, path| {
        if is_within_any(module, TELL_TIME) {
            return None;
        }
        let named = |clock: &&&str| is_within(path, clock) || is_glob_over(path, clock);
        let clock = WALL_CLOCKS.iter().find(named)?;
        Some(format!(
            "only {} may name {clock}: the time of day may be set",
            TELL_TIME.join(", ")
        ))
    })
}

/// Modules import from their own layer and lower ones.
pub(super) fn layers(tree: &Tree) -> Vec<Problem> {
    each_path(tree, |module, path| {
        let target = path.strip_prefix("crate::")?;
        (layer(target)? > layer(module)?)
            .then(|| format!("{module} must not import {target}, which is a higher layer"))
    })
}

/// Every module has a layer, and the tables name no module that is gone.
pub(super) fn table(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut unseen: BTreeSet<_> = LAYERS.concat().into_iter().collect();
    unseen.extend(IO.iter().chain(API_TYPES).chain(TELL_TIME));
    for (path, ..) in tree.rust() {
        let Some(module) = module_of(path) else {
            continue;
        };
        unseen.retain(|name| !is_within(&module, name));
        if layer(&module).is_none() {
            problems.push(Problem::file(
                path,
                format!("{module} has no layer in {}", file!()),
            ));
        }
    }
    let gone = unseen
        .iter()
        .map(|name| format!("the table names {name}, which is gone"));
    problems.extend(gone.map(|message| Problem::file(file!(), message)));
    problems
}

/// Kubernetes' API types are seen at the edge alone.
pub(super) fn api_types(tree: &Tree) -> Vec<Problem> {
    each_path(tree, |module, path| {
        (is_within(path, "k8s_openapi") && !is_within_any(module, API_TYPES))
            .then(|| format!("only {} may name k8s_openapi", API_TYPES.join(" and ")))
    })
}

/// Applies a rule, given a module and an absolute path it names, to all of the agent but its tests.
fn each_path(tree: &Tree, rule: impl Fn(&str, &str) -> Option<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text, source) in tree.rust() {
        let Some(module) = module_of(file) else {
            continue;
        };
        for path in paths_outside_tests(source) {
            if let Some(message) = rule(&module, &absolute(&module, &path.segments)) {
                problems.push(Problem::at(file, line_of(text, path.offset), message));
            }
        }
    }
    problems
}

fn paths_outside_tests(source: &Source) -> impl Iterator<Item = Path<'_>> {
    source
        .paths()
        .into_iter()
        .filter(|path| path.offset < source.tests_start)
}

/// The module that a file of the agent is, such as `plan::select`; none for other files and for tests.
fn module_of(path: &str) -> Option<String> {
    let path = path.strip_prefix("agent/src/")?.strip_suffix(".rs")?;
    let module = path.strip_suffix("/mod").unwrap_or(path).replace('/', "::");
    (!module.split("::").any(|part| part == "tests")).then_some(module)
}

/// A path as seen from anywhere: `self`, `super` and the crate's own name resolved, `core` read as `std`.
fn absolute(module: &str, segments: &[&str]) -> String {
    let supers = segments
        .iter()
        .take_while(|segment| **segment == "super")
        .count();
    let mut own: Vec<_> = ["crate"].into_iter().chain(module.split("::")).collect();
    let (start, rest) = match segments[0] {
        "super" => {
            own.truncate(own.len().saturating_sub(supers).max(1));
            (own, &segments[supers..])
        }
        "self" => (own, &segments[1..]),
        "proxyd" => (vec!["crate"], &segments[1..]),
        "core" => (vec!["std"], &segments[1..]),
        _ => (Vec::new(), segments),
    };
    start
        .iter()
        .chain(rest)
        .copied()
        .collect::<Vec<_>>()
        .join("::")
}

fn layer(path: &str) -> Option<usize> {
    LAYERS.iter().position(|names| is_within_any(path, names))
}

fn is_within_any(path: &str, names: &[&str]) -> bool {
    names.iter().any(|name| is_within(path, name))
}

fn is_within(path: &str, name: &str) -> bool {
    path.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether `path` is a `*` that brings in `name`.
fn is_glob_over(path: &str, name: &str) -> bool {
    path.strip_suffix("::*")
        .is_some_and(|parent| is_within(name, parent))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_rule, tree};
    use super::*;

    #[test]
    fn pure_modules_do_no_io() {
        let check = |file, text, expected: &[_]| check_rule(pure, file, text, expected);
        let model = "agent/src/model/service.rs";
        check(
            model,
            "use std::{\n net::IpAddr,\n fs,\n};",
            &["agent/src/model/service.rs:3: a pure module must not name std::fs"],
        );
        check(
            model,
            "fn f() { tokio::spawn(g) }",
            &["agent/src/model/service.rs:1: a pure module must not name tokio"],
        );
        for bad in [
            "use std::time; fn f() { time::Instant::now() }",
            "use std::net::*;",
            "use core::time::Instant as T;",
        ] {
            assert!(!pure(&tree(&[(model, bad)])).is_empty(), "{bad}");
        }
        for good in [
            "use std::time::Duration;",
            "use std::net::{IpAddr, SocketAddr};",
            "// tokio::spawn\n",
            "f(\"std::fs\")",
        ] {
            check(model, good, &[]);
        }
        check(
            model,
            "fn f() {}\n#[cfg(test)]\nmod tests {\n use std::fs;\n}",
            &[],
        );
        check(
            "agent/src/source/kube.rs",
            "use tokio::net::TcpStream;",
            &[],
        );
        check("agent/src/model/tests.rs", "use std::fs;", &[]);
    }

    #[test]
    fn the_time_of_day_is_for_reports_alone() {
        let problem = |what: &str| {
            format!(
                "agent/src/sync_loop.rs:1: only http::health, http::metrics, http::zpages, logging, sync_loop::publish may name {what}: \
                 the time of day may be set"
            )
        };
        for (text, what) in [
            ("use std::time::SystemTime;", "std::time::SystemTime"),
            (
                "use std::time; fn f() { time::SystemTime::now() }",
                "std::time::SystemTime",
            ),
            ("fn f() { jiff::Timestamp::now() }", "jiff::Timestamp::now"),
            (
                "use jiff::Timestamp as T; fn f() { T::now() }",
                "jiff::Timestamp::now",
            ),
            ("use jiff::Zoned;", "jiff::Zoned"),
            ("use chrono::Utc;", "chrono"),
        ] {
            let expected = problem(what);
            check_rule(wall_clock, "agent/src/sync_loop.rs", text, &[&expected]);
            check_rule(wall_clock, "agent/src/http/health.rs", text, &[]);
            check_rule(wall_clock, "agent/src/sync_loop/publish.rs", text, &[]);
        }
        for good in [
            "use std::time::{Duration, Instant};",
            "use jiff::Timestamp; fn f(text: &str) { text.parse::<Timestamp>() }",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n use std::time::SystemTime;\n}",
        ] {
            check_rule(wall_clock, "agent/src/sync_loop.rs", good, &[]);
        }
    }

    #[test]
    fn only_named_modules_of_the_data_plane_do_io() {
        let name = "use super::netlink::Socket;";
        let problem = "agent/src/dataplane/nft/elements.rs:1: a pure module must not name dataplane::nft::netlink";
        check_rule(
            pure,
            "agent/src/dataplane/nft/elements.rs",
            name,
            &[problem],
        );
        check_rule(
            pure,
            "agent/src/dataplane/nft/netlink.rs",
            "use netlink_sys::Socket;",
            &[],
        );
    }

    #[test]
    fn lower_layers_do_not_import_higher_ones() {
        let check = |file, text, expected: &[_]| check_rule(layers, file, text, expected);
        let problem =
            "agent/src/model/mod.rs:1: model must not import plan::Plan, which is a higher layer";
        check(
            "agent/src/model/mod.rs",
            "use crate::plan::Plan;",
            &[problem],
        );
        check(
            "agent/src/model/mod.rs",
            "fn f(p: super::plan::Plan) {}",
            &[problem],
        );
        check(
            "agent/src/model/mod.rs",
            "use crate::{plan::Plan, model::Service};",
            &[problem],
        );
        check("agent/src/plan.rs", "use crate::model::Service;", &[]);
        check(
            "agent/src/plan/select.rs",
            "use super::Plan; use super::super::model; use self::x::Y;",
            &[],
        );
        let problem =
            "agent/src/diff.rs:1: diff must not import dataplane::Apply, which is a higher layer";
        check(
            "agent/src/diff.rs",
            "use crate::dataplane::Apply;",
            &[problem],
        );
    }

    #[test]
    fn api_types_stay_at_the_edge() {
        let check = |file, expected: &[_]| {
            check_rule(
                api_types,
                file,
                "use k8s_openapi::api::core::v1 as core;",
                expected,
            );
        };
        check("agent/src/model/translate/slice.rs", &[]);
        check("agent/src/source/kube.rs", &[]);
        check("tests/src/cluster.rs", &[]);
        let problem =
            "agent/src/model/service.rs:1: only model::translate and source may name k8s_openapi";
        check("agent/src/model/service.rs", &[problem]);
    }

    #[test]
    fn table_and_modules_agree() {
        let check = |path, expected: &str| {
            let problems = table(&tree(&[(path, "")]));
            assert_eq!(
                problems
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                expected
            );
        };
        check(
            "agent/src/stray/a.rs",
            "agent/src/stray/a.rs: stray::a has no layer in xtask/src/tidy/layers.rs",
        );
        check(
            "agent/src/run.rs",
            "xtask/src/tidy/layers.rs: the table names cli, which is gone",
        );
    }
}
