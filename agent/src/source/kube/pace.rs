//! How long to wait before a server that failed is asked again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The pauses grow from between 0.4 and 0.8 s to between 15 and 30 s: random, so that the agents of a cluster do not
/// all come back at the same moment.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(400))
    .with_max_delay(Duration::from_secs(15))
    .with_factor(2.0)
    .with_jitter()
    .without_max_times();

/// The longest that a server may wish to be left alone for. What kube-apiserver says goes up to 64 s.
const LONGEST_WISH: Duration = Duration::from_secs(120);

/// The pauses between attempts.
#[derive(Debug)]
pub(super) struct Pace(ExponentialBackoff);

impl Pace {
    /// Begins with the shortest.
    pub(super) fn new() -> Self {
        Self(PAUSES.build())
    }

    /// The next pause. If the server said when to come again (`Retry-After`), it begins only then.
    pub(super) fn pause(&mut self, wish: Option<Duration>) -> Duration {
        let pause = self.0.next().expect("their number is not limited");
        pause + wish.unwrap_or_default().min(LONGEST_WISH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_thirty_seconds_at_most() {
        let mut pace = Pace::new();
        let pauses: Vec<_> = (0..200).map(|_| pace.pause(None)).collect();
        assert!(pauses[0] < Duration::from_secs(1), "{pauses:?}");
        for pause in &pauses[6..] {
            assert!((15..=30).contains(&pause.as_secs()), "{pauses:?}");
        }
        assert_ne!(pauses[100], pauses[101], "they are random");
    }

    #[test]
    fn a_wish_is_heeded_within_reason() {
        let mut pace = Pace::new();
        let wished = pace.pause(Some(Duration::from_secs(7)));
        assert!((7..9).contains(&wished.as_secs()), "{wished:?}");
        let absurd = pace.pause(Some(Duration::from_secs(1_000_000)));
        assert!(absurd < Duration::from_secs(125), "{absurd:?}");
    }
}
