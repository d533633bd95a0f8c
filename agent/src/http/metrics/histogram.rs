//! A histogram of durations without locks, and the buckets of kube-proxy.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::{add, read};

/// Counts durations by how long they are.
///
/// Each bucket and the sum are atomics of their own: a scrape in the midst of an observation may see the one
/// without the other, which the next scrape puts right.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper bounds in nanoseconds, ascending; the bound itself belongs to the bucket.
    bounds: Box<[u64]>,
    /// One more than there are bounds: the last is for what is above them all.
    buckets: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

/// A histogram as it was at one moment.
#[derive(Debug, PartialEq)]
pub(super) struct Reading {
    /// The sum of what was observed, in seconds.
    pub(super) sum: f64,
    /// How many observations there were.
    pub(super) count: u64,
    /// Upper bounds in seconds, the last one infinite, and how many observations are in that bucket alone.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// An empty histogram; `bounds` ascend.
    pub(super) fn new(bounds: impl IntoIterator<Item = Duration>) -> Self {
        let bounds: Box<[u64]> = bounds.into_iter().map(nanos).collect();
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            buckets,
            sum_nanos: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub(super) fn observe(&self, duration: Duration) {
        let value = nanos(duration);
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        add(&self.buckets[bucket], 1);
        add(&self.sum_nanos, value);
    }

    /// What was counted so far.
    pub(super) fn read(&self) -> Reading {
        let bounds = self.bounds.iter().map(|bound| seconds(*bound));
        let buckets: Vec<_> = bounds
            .chain([f64::INFINITY])
            .zip(self.buckets.iter().map(read))
            .collect();
        Reading {
            sum: seconds(read(&self.sum_nanos)),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

/// A duration in nanoseconds; those of more than 584 years are that long.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds in seconds, as Prometheus has all times.
#[expect(
    clippy::cast_precision_loss,
    reason = "15 digits are enough for a metric"
)]
pub(super) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// kube-proxy's buckets for syncs: 1 ms, 2 ms, 4 ms, … 16.384 s.
pub(super) fn sync_buckets() -> impl Iterator<Item = Duration> {
    (0..15).map(|power| Duration::from_millis(1 << power))
}

/// kube-proxy's buckets for programming latency: 0, 0.25 s, 0.5 s, 1 s … 59 s, 60 s, 65 s … 115 s, 2 min, 2.5 min … 5 min.
///
/// The first one is an accident of how kube-proxy joins its lists; without it the series would not add up with its.
pub(super) fn programming_buckets() -> impl Iterator<Item = Duration> {
    let millis = [0, 250, 500].map(Duration::from_millis);
    let seconds = (1..60)
        .chain((60..120).step_by(5))
        .chain((120..=300).step_by(30));
    millis.into_iter().chain(seconds.map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new([1, 2].map(Duration::from_secs));
        for millis in [0, 1000, 1001, 2000, 2001, 9000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let expected = Reading {
            sum: 15.002,
            count: 6,
            buckets: vec![(1.0, 2), (2.0, 2), (f64::INFINITY, 2)],
        };
        assert_eq!(histogram.read(), expected);
    }

    #[test]
    fn buckets_are_kube_proxys() {
        let bounds = |reading: Reading| -> Vec<f64> {
            reading
                .buckets
                .into_iter()
                .map(|(bound, _)| bound)
                .collect()
        };
        let sync = bounds(Histogram::new(sync_buckets()).read());
        assert_eq!(
            sync,
            [
                0.001,
                0.002,
                0.004,
                0.008,
                0.016,
                0.032,
                0.064,
                0.128,
                0.256,
                0.512,
                1.024,
                2.048,
                4.096,
                8.192,
                16.384,
                f64::INFINITY
            ]
        );
        let programming = bounds(Histogram::new(programming_buckets()).read());
        // 1 that nobody meant, then LinearBuckets of 2, 59, 12 and 7.
        assert_eq!(programming.len(), 1 + 2 + 59 + 12 + 7 + 1);
        assert_eq!(programming[..5], [0.0, 0.25, 0.5, 1.0, 2.0]);
        assert_eq!(programming[60..64], [58.0, 59.0, 60.0, 65.0]);
        assert_eq!(programming[73..77], [115.0, 120.0, 150.0, 180.0]);
        assert_eq!(programming[79..], [270.0, 300.0, f64::INFINITY]);
    }

    proptest! {
        /// The lowest bucket whose bound is not below the value, and the sum of all values.
        #[test]
        fn every_duration_is_in_one_bucket(
            millis in prop::collection::vec(0..400_000_u64, 0..50),
        ) {
            let histogram = Histogram::new(programming_buckets());
            for value in &millis {
                histogram.observe(Duration::from_millis(*value));
            }
            let reading = histogram.read();
            prop_assert_eq!(reading.count, millis.len() as u64);
            let mut below = 0;
            for (bound, count) in reading.buckets {
                below += count;
                let expected = millis.iter().filter(|value| **value as f64 / 1e3 <= bound).count();
                prop_assert_eq!(below, expected as u64);
            }
            let sum = millis.iter().sum::<u64>() as f64 / 1e3;
            prop_assert!((reading.sum - sum).abs() < 1e-6);
        }
    }
}
