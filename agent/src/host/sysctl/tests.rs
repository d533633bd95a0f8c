//! What is wanted, and what becomes of it on a made-up machine of four CPUs.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const NETFILTER: &str = "proc/sys/net/netfilter";

fn config() -> ConntrackConfig {
    ConntrackConfig {
        max_per_core: 100,
        min: 300,
        tcp_established: Some(Duration::from_secs(86_400)),
        tcp_close_wait: Some(Duration::from_secs(3_600)),
        tcp_be_liberal: false,
        udp: None,
        udp_stream: None,
    }
}

/// What the kernel has at first.
fn machine(max: u64, hash_size: u64) -> TempDir {
    let root = TempDir::new().unwrap();
    let values = [
        ("nf_conntrack_max", max),
        ("nf_conntrack_tcp_timeout_established", 432_000),
        ("nf_conntrack_tcp_timeout_close_wait", 60),
        ("nf_conntrack_tcp_be_liberal", 0),
        ("nf_conntrack_udp_timeout", 30),
        ("nf_conntrack_udp_timeout_stream", 120),
    ];
    let put = |path: &str, text: String| {
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    for (name, value) in values {
        put(&format!("{NETFILTER}/{name}"), format!("{value}\n"));
    }
    put(HASH_SIZE, format!("{hash_size}\n"));
    put("sys/devices/system/cpu/online", "0-2,5\n".to_owned());
    root
}

/// Applies it; prints what was changed and what could not be.
fn outcomes(config: &ConntrackConfig, root: &TempDir) -> Vec<String> {
    let outcomes = apply(config, root.path()).into_iter();
    let lines = outcomes.map(|outcome| match outcome {
        Ok(Changed { path, from, to }) => {
            let now = fs::read_to_string(root.path().join(path)).unwrap();
            assert_eq!(now, to.to_string());
            format!("{}: {from} → {to}", path.rsplit('/').next().unwrap())
        }
        Err(error) => error.to_string(),
    });
    lines.collect()
}

#[test]
fn what_differs_is_set_and_once_is_enough() {
    let root = machine(200, 50);
    let expected = [
        "nf_conntrack_max: 200 → 400",
        "hashsize: 50 → 100",
        "nf_conntrack_tcp_timeout_established: 432000 → 86400",
        "nf_conntrack_tcp_timeout_close_wait: 60 → 3600",
    ];
    assert_eq!(outcomes(&config(), &root), expected);
    assert_eq!(outcomes(&config(), &root), [""; 0]);
}

#[test]
fn the_limit_is_raised_and_never_lowered() {
    let check = |max_per_core, min, max, hash_size, expected: &[&str]| {
        let config = ConntrackConfig {
            max_per_core,
            min,
            tcp_established: None,
            tcp_close_wait: None,
            ..config()
        };
        assert_eq!(outcomes(&config, &machine(max, hash_size)), expected);
    };
    check(100, 500, 499, 125, &["nf_conntrack_max: 499 → 500"]);
    check(100, 500, 500, 125, &[]);
    check(100, 500, 501, 124, &["hashsize: 124 → 125"]);
    check(100, 0, 1_000_000, 1_000_000, &[]);
    // 0 in the kernel is no limit; 0 per CPU leaves it alone, whatever the least is.
    check(100, 500, 0, 125, &[]);
    check(0, 500, 1, 1, &[]);
    check(0, 0, 1, 1, &[]);
    let most = i32::MAX.unsigned_abs();
    let changed = [
        "nf_conntrack_max: 1 → 2147483647",
        "hashsize: 1 → 536870911",
    ];
    check(most, 0, 1, 1, &changed);
}

#[test]
fn the_rest_is_set_only_where_it_is_asked_for() {
    let config = ConntrackConfig {
        max_per_core: 0,
        min: 0,
        tcp_established: None,
        tcp_close_wait: None,
        tcp_be_liberal: true,
        udp: Some(Duration::from_millis(1)),
        udp_stream: Some(Duration::from_millis(300_500)),
    };
    let expected = [
        "nf_conntrack_tcp_be_liberal: 0 → 1",
        "nf_conntrack_udp_timeout: 30 → 1",
        "nf_conntrack_udp_timeout_stream: 120 → 301",
    ];
    assert_eq!(outcomes(&config, &machine(1, 1)), expected);
}

#[test]
fn what_cannot_be_read_or_set_costs_only_itself() {
    let root = machine(200, 50);
    let file = |name: &str| root.path().join(NETFILTER).join(name);
    // Root may write any file of a disk, but none of these in /proc.
    fs::remove_file(file("nf_conntrack_max")).unwrap();
    symlink("/proc/sys/kernel/ngroups_max", file("nf_conntrack_max")).unwrap();
    fs::remove_file(file("nf_conntrack_tcp_timeout_established")).unwrap();
    let config = ConntrackConfig {
        max_per_core: 1_000_000,
        ..config()
    };
    let expected = [
        "/proc/sys/net/netfilter/nf_conntrack_max is 65536 and cannot be set to 4000000 \
         (Permission denied (os error 13)); see --conntrack-max-per-core",
        "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established cannot be read (No such file or directory \
         (os error 2)); it should be 86400, see --conntrack-tcp-timeout-established",
        "nf_conntrack_tcp_timeout_close_wait: 60 → 3600",
    ];
    assert_eq!(outcomes(&config, &root), expected);
    fs::write(file("nf_conntrack_tcp_timeout_close_wait"), "many").unwrap();
    let odd = outcomes(&config, &root).pop().unwrap();
    assert!(
        odd.contains("close_wait cannot be read (invalid digit"),
        "{odd}"
    );
}

#[test]
fn cpus_are_counted_as_the_kernel_lists_them() {
    assert_eq!(count("0"), Some(1));
    assert_eq!(count("0-7"), Some(8));
    assert_eq!(count("0-2,5,8-9"), Some(6));
    for odd in ["", "a", "3-1", "0-", "1,,2"] {
        assert_eq!(count(odd), None, "{odd:?}");
    }
    let nothing = TempDir::new().unwrap();
    assert!(cores(nothing.path()) > 0);
}
