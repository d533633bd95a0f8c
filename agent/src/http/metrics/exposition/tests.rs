//! What a scrape holds: the names that dashboards use, and what was counted.

use std::time::{Duration, SystemTime};

use expect_test::{Expect, expect};

use super::*;
use crate::host::other_proxy::OtherProxy;

/// A scrape after something was counted.
fn scrape(count: impl FnOnce(&Metrics)) -> String {
    let metrics = Arc::new(Metrics::default());
    count(&metrics);
    Exposition::new(metrics).text(Format::OpenMetrics)
}

/// The lines of one metric, whatever their labels.
fn check(count: impl FnOnce(&Metrics), of: &str, expected: Expect) {
    let text = scrape(count);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let of = format!("kubeproxy_{of}");
    let found: String = lines
        .filter(|line| line.split(['{', ' ']).next() == Some(&of))
        .map(|line| format!("{line}\n"))
        .collect();
    expected.assert_eq(&found);
}

#[test]
fn every_metric_has_kube_proxys_name_and_type() {
    let text = scrape(|_| {});
    let types: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE kubeproxy_"))
        .collect();
    expect![[r#"
        sync_proxy_rules_duration_seconds histogram
        sync_full_proxy_rules_duration_seconds histogram
        sync_partial_proxy_rules_duration_seconds histogram
        network_programming_duration_seconds histogram
        sync_proxy_rules_last_timestamp_seconds gauge
        sync_proxy_rules_last_queued_timestamp_seconds gauge
        sync_proxy_rules_endpoint_changes_pending gauge
        sync_proxy_rules_endpoint_changes counter
        sync_proxy_rules_service_changes_pending gauge
        sync_proxy_rules_service_changes counter
        sync_proxy_rules_no_local_endpoints_total gauge
        sync_proxy_rules_service_ports_without_endpoints gauge
        refused_objects gauge
        sync_proxy_rules_nftables_sync_failures counter
        sync_proxy_rules_foreign_changes counter
        other_proxy_running gauge
        other_proxy_rules gauge
        proxy_healthz counter
        proxy_livez counter
        conntrack_reconciler_sync_duration_seconds histogram
        nodeport_relay_connections counter
        nodeport_relay_active_connections gauge
        nodeport_relay_failures counter
        conntrack_reconciler_deleted_entries counter"#]]
    .assert_eq(&types.join("\n"));
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn the_older_format_has_the_same_series_under_the_names_that_are_announced() {
    let count = |metrics: &Metrics| {
        metrics.synced(Family::V4, true, Duration::from_millis(3));
        metrics.live_request(true);
    };
    let metrics = Arc::new(Metrics::default());
    count(&metrics);
    let exposition = Exposition::new(metrics);
    let series = |text: &str| -> Vec<String> {
        // Those of the process move between one scrape and the next.
        let lines = text.lines().filter(|line| line.starts_with("kubeproxy_"));
        lines.map(str::to_owned).collect()
    };
    let text = exposition.text(Format::Plain);
    assert_eq!(series(&text), series(&exposition.text(Format::OpenMetrics)));
    let about = |name: &str| -> String {
        let lines = text.lines().filter(|line| line.contains(name));
        lines.map(|line| format!("{line}\n")).collect()
    };
    expect![[r#"
        # HELP kubeproxy_proxy_livez_total Answers of /livez
        # TYPE kubeproxy_proxy_livez_total counter
        kubeproxy_proxy_livez_total{code="200"} 1
        kubeproxy_proxy_livez_total{code="503"} 0
    "#]]
    .assert_eq(&about("livez"));
    expect![[r#"
        # HELP kubeproxy_sync_proxy_rules_service_changes_pending Changed objects that are not in the rules yet
        # TYPE kubeproxy_sync_proxy_rules_service_changes_pending gauge
        kubeproxy_sync_proxy_rules_service_changes_pending 0
    "#]]
    .assert_eq(&about("service_changes_pending"));
    // Every series is one of the family that was announced last.
    let mut announced = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            announced = rest.split(' ').next().unwrap();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffix = name.strip_prefix(announced).expect(line);
            assert!(
                ["", "_sum", "_count", "_bucket"].contains(&suffix),
                "{line}"
            );
        }
    }
    assert!(!text.contains("EOF"));
}

#[test]
fn open_metrics_is_for_those_who_ask_for_it() {
    let check = |accept: &[&str], expected| {
        assert_eq!(
            Format::accepted(accept.iter().copied()),
            expected,
            "{accept:?}"
        );
    };
    check(&[], Format::Plain);
    check(&["*/*"], Format::Plain);
    check(
        &["text/plain;version=0.0.4;q=0.5, */*;q=0.1"],
        Format::Plain,
    );
    check(
        &["application/openmetrics-text;version=1.0.0; q=0"],
        Format::Plain,
    );
    check(&["application/openmetrics-text"], Format::OpenMetrics);
    check(
        &[
            "text/plain;q=0.3",
            "Application/OpenMetrics-Text; version=1.0.0; q=0.5",
        ],
        Format::OpenMetrics,
    );
}

#[test]
fn changes_are_pending_until_they_are_synced() {
    let change = |metrics: &Metrics| {
        metrics.changes(ChangeKind::Service, 2);
        metrics.changes(ChangeKind::Endpoint, 5);
        metrics.changes(ChangeKind::Endpoint, 1);
    };
    check(
        change,
        "sync_proxy_rules_endpoint_changes_pending",
        expect![["kubeproxy_sync_proxy_rules_endpoint_changes_pending 6\n"]],
    );
    check(
        change,
        "sync_proxy_rules_service_changes_pending",
        expect![["kubeproxy_sync_proxy_rules_service_changes_pending 2\n"]],
    );
    let sync = |metrics: &Metrics| {
        change(metrics);
        metrics.nothing_pending();
        metrics.changes(ChangeKind::Endpoint, 1);
    };
    check(
        sync,
        "sync_proxy_rules_endpoint_changes_pending",
        expect![["kubeproxy_sync_proxy_rules_endpoint_changes_pending 1\n"]],
    );
    check(
        sync,
        "sync_proxy_rules_endpoint_changes_total",
        expect![["kubeproxy_sync_proxy_rules_endpoint_changes_total 7\n"]],
    );
    check(
        sync,
        "sync_proxy_rules_service_changes_total",
        expect![["kubeproxy_sync_proxy_rules_service_changes_total 2\n"]],
    );
}

#[test]
fn a_sync_counts_as_one_and_as_full_or_partial() {
    let sync = |metrics: &Metrics| {
        metrics.synced(Family::V4, true, Duration::from_millis(1500));
        metrics.synced(Family::V4, false, Duration::from_millis(3));
        metrics.synced(Family::V6, false, Duration::from_millis(1));
    };
    check(
        sync,
        "sync_proxy_rules_duration_seconds_sum",
        expect![[r#"
            kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv4"} 1.503
            kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv6"} 0.001
        "#]],
    );
    check(
        sync,
        "sync_full_proxy_rules_duration_seconds_count",
        expect![[r#"
            kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1
            kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 0
        "#]],
    );
    let text = scrape(sync);
    let buckets = text.lines().filter(|line| {
        line.starts_with("kubeproxy_sync_proxy_rules_duration_seconds_bucket")
            && line.contains("IPv4")
    });
    let buckets: String = buckets.map(|line| format!("{line}\n")).collect();
    expect![[r#"
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.001",ip_family="IPv4"} 0
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.002",ip_family="IPv4"} 0
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.008",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.016",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.032",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.064",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.128",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.256",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.512",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="1.024",ip_family="IPv4"} 1
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="2.048",ip_family="IPv4"} 2
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="4.096",ip_family="IPv4"} 2
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="8.192",ip_family="IPv4"} 2
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="16.384",ip_family="IPv4"} 2
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="+Inf",ip_family="IPv4"} 2
    "#]]
    .assert_eq(&buckets);
}

#[test]
fn requests_are_counted_as_client_go_counts_them() {
    let text = scrape(|metrics| {
        let requests = metrics.requests();
        requests.answered("GET", Some(200), Duration::from_millis(5));
        requests.go_to("10.96.0.1:443");
        requests.answered("GET", Some(200), Duration::from_millis(6));
        requests.answered("GET", Some(410), Duration::from_millis(1));
        requests.answered("POST", Some(201), Duration::from_secs(90));
        requests.answered("GET", None, Duration::ZERO);
        requests.answered("TEAPOT", Some(418), Duration::ZERO);
    });
    let about = text.lines().filter(|line| {
        line.contains("rest_client") && !line.contains(" 0") && !line.contains("HELP")
    });
    let about: String = about
        .filter(|line| !line.contains("_bucket") || line.contains("POST") || line.contains("0.005"))
        .map(|line| format!("{line}\n"))
        .collect();
    expect![[r#"
        # TYPE rest_client_requests counter
        rest_client_requests_total{code="200",host="10.96.0.1:443",method="GET"} 2
        rest_client_requests_total{code="410",host="10.96.0.1:443",method="GET"} 1
        rest_client_requests_total{code="<error>",host="10.96.0.1:443",method="GET"} 1
        rest_client_requests_total{code="201",host="10.96.0.1:443",method="POST"} 1
        # TYPE rest_client_request_duration_seconds histogram
        rest_client_request_duration_seconds_count{host="10.96.0.1:443",verb="GET"} 4
        rest_client_request_duration_seconds_bucket{le="0.005",host="10.96.0.1:443",verb="GET"} 3
        rest_client_request_duration_seconds_sum{host="10.96.0.1:443",verb="POST"} 90.0
        rest_client_request_duration_seconds_count{host="10.96.0.1:443",verb="POST"} 1
        rest_client_request_duration_seconds_bucket{le="+Inf",host="10.96.0.1:443",verb="POST"} 1
    "#]]
    .assert_eq(&about);
    assert!(!scrape(|_| {}).contains("rest_client"), "no API server");
}

#[test]
fn programming_latencies_are_counted_one_by_one() {
    check(
        |metrics| metrics.programmed(Family::V6, [1, 61, 400].map(Duration::from_secs)),
        "network_programming_duration_seconds_count",
        expect![[r#"
            kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 0
            kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 3
        "#]],
    );
}

#[test]
fn what_never_happened_has_no_time() {
    check(
        |_| {},
        "sync_proxy_rules_last_timestamp_seconds",
        expect![[""]],
    );
    check(
        |metrics| metrics.synced(Family::V4, true, Duration::ZERO),
        "sync_proxy_rules_last_queued_timestamp_seconds",
        expect![[""]],
    );
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let before = now();
    let text = scrape(|metrics| {
        metrics.queued(Family::V6);
        metrics.synced(Family::V4, false, Duration::ZERO);
    });
    for series in [
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} ",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ",
    ] {
        let value = text.lines().find_map(|line| line.strip_prefix(series));
        let value: f64 = value.expect(series).parse().unwrap();
        assert!(
            (before - 1.0..=now() + 1.0).contains(&value),
            "{series}{value}"
        );
    }
}

#[test]
fn counts_are_kept_apart_by_label() {
    check(
        |metrics| {
            metrics.no_local_endpoints(TrafficPolicy::External, Family::V6, 4);
            metrics.no_local_endpoints(TrafficPolicy::Internal, Family::V4, 9);
            metrics.no_local_endpoints(TrafficPolicy::Internal, Family::V4, 3);
        },
        "sync_proxy_rules_no_local_endpoints_total",
        expect![[r#"
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 3
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"} 0
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 4
        "#]],
    );
    check(
        |metrics| metrics.sync_failed(Family::V6),
        "sync_proxy_rules_nftables_sync_failures_total",
        expect![[r#"
            kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 0
            kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv6"} 1
        "#]],
    );
    check(
        |metrics| metrics.conntrack(Family::V4, Duration::from_secs(1), 12),
        "conntrack_reconciler_deleted_entries_total",
        expect![[r#"
            kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 12
            kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 0
        "#]],
    );
    check(
        |metrics| {
            for is_healthy in [true, true, false] {
                metrics.health_request(is_healthy);
            }
        },
        "proxy_healthz_total",
        expect![[r#"
            kubeproxy_proxy_healthz_total{code="200"} 2
            kubeproxy_proxy_healthz_total{code="503"} 1
        "#]],
    );
}

#[test]
fn a_proxy_beside_is_shown_by_its_rules_and_its_process() {
    let shown = |process, rules: &[Mode]| {
        let found = OtherProxy {
            process,
            rules: rules.iter().copied().collect(),
        };
        let text = scrape(|metrics| metrics.other_proxy(&found));
        let lines = text
            .lines()
            .filter(|line| line.starts_with("kubeproxy_other_proxy"));
        lines.map(str::to_owned).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        kubeproxy_other_proxy_running 1
        kubeproxy_other_proxy_rules{mode="iptables"} 1
        kubeproxy_other_proxy_rules{mode="ipvs"} 1
        kubeproxy_other_proxy_rules{mode="nftables"} 0"#]]
    .assert_eq(&shown(Some(7), &[Mode::Iptables, Mode::Ipvs]));
    assert!(!shown(None, &[]).contains(" 1"));
}
