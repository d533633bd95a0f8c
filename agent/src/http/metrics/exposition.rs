//! Metrics → text, in two formats: OpenMetrics, which Prometheus reads since 2.5, and its own older one.
//!
//! Series have the same names in both. They differ in how counters are announced: without `_total` in OpenMetrics, by
//! the name of their series in the older one.

use std::fmt::{self, Debug};
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::histogram::{Histogram, Reading};
use super::process::Process;
use super::requests::Requests;
use super::slis::SlisOf;
use super::{Answers, ChangeKind, Metrics, Moment, TrafficPolicy, read};
use crate::host::other_proxy::Mode;
use crate::http::family_name;
use crate::model::{Family, PerFamily};

/// The metrics, ready to be written out.
#[derive(Debug)]
pub struct Exposition(Registry);

/// A format of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// That of Prometheus, which every scraper reads.
    Plain,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format for a request with these values of the header `Accept`: OpenMetrics for those who ask for it.
    pub fn accepted<'a>(accept: impl Iterator<Item = &'a str>) -> Self {
        let mut types = accept.flat_map(|value| value.split(','));
        let asks = types.any(|accepted| {
            let mut parts = accepted.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let refused = parts.any(|part| {
                let weight = part.strip_prefix("q=").map(str::parse::<f32>);
                matches!(weight, Some(Ok(0.0)))
            });
            name.eq_ignore_ascii_case("application/openmetrics-text") && !refused
        });
        if asks { Self::OpenMetrics } else { Self::Plain }
    }

    /// The content type of the text.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Exposition {
    /// Exposes these metrics.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let mut registry = Registry::default();
        let of_client = OfClient(metrics.requests().clone());
        registry.register_collector(Box::new(of_client));
        registry.register_collector(Box::new(Process));
        let own = registry.sub_registry_with_prefix("kubeproxy");
        own.register_collector(Box::new(metrics));
        Self(registry)
    }

    /// Exposes the service level indicators among these metrics, and nothing else.
    pub fn slis(metrics: Arc<Metrics>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(SlisOf(metrics)));
        Self(registry)
    }

    /// All metrics as they are now.
    pub fn text(&self, format: Format) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.0).expect("a string takes everything");
        match format {
            Format::Plain => plain(&text),
            Format::OpenMetrics => text,
        }
    }
}

/// What is written in OpenMetrics, in the older format: counters are announced by the name of their series, and the
/// text has no mark at its end.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(announced) = line.strip_prefix("# HELP ") {
            // Which kind it is stands in the next line.
            help = announced.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|announced| announced.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let help = help.take().map_or("", |(_, help)| help);
            plain += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        } else if line != "# EOF" {
            plain += line;
            plain.push('\n');
        }
    }
    plain
}

/// Those of the API server's client.
#[derive(Debug)]
struct OfClient(Arc<Requests>);

impl Collector for OfClient {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.encode(&mut Out(&mut encoder))
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out(&mut encoder);
        out.histograms(
            "sync_proxy_rules_duration_seconds",
            "How long syncs of the rules took",
            &self.syncs,
        )?;
        out.histograms(
            "sync_full_proxy_rules_duration_seconds",
            "How long syncs of all rules took",
            &self.full_syncs,
        )?;
        out.histograms(
            "sync_partial_proxy_rules_duration_seconds",
            "How long syncs of what changed took",
            &self.partial_syncs,
        )?;
        out.histograms(
            "network_programming_duration_seconds",
            "Time from a change of a Service or pod until the rules were in the kernel",
            &self.programming,
        )?;
        out.moments(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the rules were last synced with success",
            &self.last_synced,
        )?;
        out.moments(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a sync of the rules was last asked for",
            &self.last_queued,
        )?;
        self.encode_changes(out)?;
        self.encode_counts(out)?;
        out.histograms(
            "conntrack_reconciler_sync_duration_seconds",
            "How long it took to look for stale flows",
            &self.conntrack,
        )?;
        self.encode_relay(out)?;
        out.counters(
            "conntrack_reconciler_deleted_entries",
            "Stale flows that were deleted",
            by_family(&self.conntrack_deleted, read),
        )
    }
}

impl Metrics {
    fn encode_changes(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        for (kind, pending, total) in [
            (
                ChangeKind::Endpoint,
                "sync_proxy_rules_endpoint_changes_pending",
                "sync_proxy_rules_endpoint_changes",
            ),
            (
                ChangeKind::Service,
                "sync_proxy_rules_service_changes_pending",
                "sync_proxy_rules_service_changes",
            ),
        ] {
            let changes = self.changes_of(kind);
            let help = "Changed objects that are not in the rules yet";
            out.gauge(pending, help, read(&changes.pending))?;
            out.counter(total, "Changed objects", read(&changes.total))?;
        }
        Ok(())
    }

    fn encode_relay(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.counters(
            "nodeport_relay_connections",
            "Connections to NodePorts at the loopback address",
            by_family(&self.relay, |relayed| read(&relayed.connections)),
        )?;
        out.gauges(
            "nodeport_relay_active_connections",
            "Those of them that are not over",
            by_family(&self.relay, |relayed| read(&relayed.active)),
        )?;
        out.counters(
            "nodeport_relay_failures",
            "Those of them that no endpoint took",
            by_family(&self.relay, |relayed| read(&relayed.failures)),
        )
    }

    fn encode_counts(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let series = TrafficPolicy::ALL.into_iter().flat_map(|policy| {
            let gauges = &self.no_local_endpoints[policy as usize];
            let labels = move |family| {
                [
                    ("ip_family", family_name(family)),
                    ("traffic_policy", policy.label()),
                ]
            };
            Family::ALL.map(|family| (labels(family), read(gauges.get(family))))
        });
        // A gauge, whatever its name says: it is one in kube-proxy.
        out.gauges(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy and no endpoint that it may use",
            series,
        )?;
        let without_endpoints = by_family(&self.without_endpoints, read);
        out.gauges(
            "sync_proxy_rules_service_ports_without_endpoints",
            "Service ports that no endpoint can serve: clients are refused",
            without_endpoints,
        )?;
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = refused.clone().into_iter();
        out.gauges(
            "refused_objects",
            "Objects of which a part, or all, is not served since it is wrong",
            refused.map(|(kind, count)| ([("kind", kind)], count as u64)),
        )?;
        out.counters(
            "sync_proxy_rules_nftables_sync_failures",
            "Syncs that failed",
            by_family(&self.sync_failures, read),
        )?;
        out.counters(
            "sync_proxy_rules_foreign_changes",
            "How often someone else changed the rules, which were then put right",
            by_family(&self.foreign_changes, read),
        )?;
        out.gauge(
            "other_proxy_running",
            "Whether a kube-proxy runs in the node's network beside proxyd, as far as proxyd sees its processes",
            read(&self.other_process),
        )?;
        let modes = self.other_rules.iter().zip(Mode::ALL);
        out.gauges(
            "other_proxy_rules",
            "Whether rules of a kube-proxy are in the kernel beside those of proxyd",
            modes.map(|(gauge, mode)| ([("mode", mode.name())], read(gauge))),
        )?;
        out.counters(
            "proxy_healthz",
            "Answers of /healthz",
            by_code(&self.healthz),
        )?;
        out.counters("proxy_livez", "Answers of /livez", by_code(&self.livez))
    }
}

/// A value of a series, with its labels in front.
type Series<'a, V, const LABELS: usize> = ([(&'static str, &'a str); LABELS], V);

fn by_family<T, V>(values: &PerFamily<T>, read: impl Fn(&T) -> V) -> [Series<'static, V, 1>; 2] {
    Family::ALL.map(|family| {
        let labels = [("ip_family", family_name(family))];
        (labels, read(values.get(family)))
    })
}

fn by_code(answers: &Answers) -> [Series<'static, u64, 1>; 2] {
    [("200", &answers.good), ("503", &answers.bad)]
        .map(|(code, count)| ([("code", code)], read(count)))
}

/// Writes families of series. Names of counters come without the `_total` that the format appends.
pub(super) struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl<'a, 'b> Out<'a, 'b> {
    pub(super) fn new(encoder: &'a mut DescriptorEncoder<'b>) -> Self {
        Self(encoder)
    }

    fn start<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        histograms: &PerFamily<Histogram>,
    ) -> fmt::Result {
        self.histogram_series(name, help, by_family(histograms, Histogram::read))
    }

    pub(super) fn histogram_series<'s, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'s, Reading, LABELS>>,
    ) -> fmt::Result {
        let mut metric = self.start(name, help, MetricType::Histogram)?;
        for (labels, reading) in series {
            let mut series = metric.encode_family(&labels)?;
            series.encode_histogram::<NoLabelSet>(
                reading.sum,
                reading.count,
                &reading.buckets,
                None,
            )?;
        }
        Ok(())
    }

    /// Moments that never were have no series: they would look like outages since 1970.
    fn moments(&mut self, name: &str, help: &str, moments: &PerFamily<Moment>) -> fmt::Result {
        let series = by_family(moments, Moment::seconds).into_iter();
        self.gauges(
            name,
            help,
            series.filter_map(|(labels, seconds)| Some((labels, seconds?))),
        )
    }

    pub(super) fn gauges<'s, V: EncodeGaugeValue, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'s, V, LABELS>>,
    ) -> fmt::Result {
        let mut metric = self.start(name, help, MetricType::Gauge)?;
        for (labels, value) in series {
            if LABELS == 0 {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.start(name, help, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    pub(super) fn counters<'s, V: EncodeCounterValue, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'s, V, LABELS>>,
    ) -> fmt::Result {
        let mut metric = self.start(name, help, MetricType::Counter)?;
        for (labels, value) in series {
            if LABELS == 0 {
                metric.encode_counter::<NoLabelSet, V, u64>(&value, None)?;
            } else {
                let mut series = metric.encode_family(&labels)?;
                series.encode_counter::<NoLabelSet, V, u64>(&value, None)?;
            }
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.start(name, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }
}

#[cfg(test)]
mod tests;
