//! Service level indicators (KEP-3466): how each health check came out last, and how often it came out how.
//!
//! Names and labels are those of `k8s.io/component-base/metrics/prometheus/slis`. `ping` is whether the metrics server
//! answers, as in kube-proxy; `proxy` is what `/healthz` and `/livez` of the health server said.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::exposition::Out;
use super::{Metrics, add, read};

/// A health check that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// `/healthz` of the metrics server.
    Ping,
    /// `/healthz` of the health server.
    Health,
    /// `/livez` of the health server.
    Live,
}

impl Check {
    const ALL: [Self; 3] = [Self::Ping, Self::Health, Self::Live];

    /// Its name and its type.
    const fn labels(self) -> [(&'static str, &'static str); 2] {
        let (name, kind) = match self {
            Self::Ping => ("ping", "healthz"),
            Self::Health => ("proxy", "healthz"),
            Self::Live => ("proxy", "livez"),
        };
        [("name", name), ("type", kind)]
    }
}

/// How checks came out.
#[derive(Debug, Default)]
pub(super) struct Slis([Outcomes; Check::ALL.len()]);

#[derive(Debug, Default)]
struct Outcomes {
    success: AtomicU64,
    error: AtomicU64,
    /// 1 for a success, 0 for an error.
    last: AtomicU64,
}

impl Slis {
    pub(super) fn checked(&self, check: Check, is_good: bool) {
        let outcomes = &self.0[check as usize];
        outcomes.last.store(u64::from(is_good), Ordering::Relaxed);
        let count = if is_good {
            &outcomes.success
        } else {
            &outcomes.error
        };
        add(count, 1);
    }

    pub(super) fn reset(&self) {
        for outcomes in &self.0 {
            outcomes.success.store(0, Ordering::Relaxed);
            outcomes.error.store(0, Ordering::Relaxed);
        }
    }
}

/// Writes the indicators of these metrics. A check that never was has no series.
#[derive(Debug)]
pub(super) struct SlisOf(pub(super) Arc<Metrics>);

impl Collector for SlisOf {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out::new(&mut encoder);
        let checks = Check::ALL.map(|check| (check, &self.0.slis.0[check as usize]));
        let counts = checks.into_iter().flat_map(|(check, outcomes)| {
            let [name, kind] = check.labels();
            let count = |status, count| ([name, ("status", status), kind], read(count));
            [
                count("success", &outcomes.success),
                count("error", &outcomes.error),
            ]
        });
        let counts: Vec<_> = counts.filter(|(_, count)| *count > 0).collect();
        let were = checks
            .into_iter()
            .filter(|(_, outcomes)| read(&outcomes.success) + read(&outcomes.error) > 0);
        let last = were.map(|(check, outcomes)| (check.labels(), read(&outcomes.last)));
        let help = "1 where a health check came out well the last time, else 0";
        out.gauges("kubernetes_healthcheck", help, last)?;
        let help = "How often a health check came out how";
        out.counters("kubernetes_healthchecks", help, counts)
    }
}
