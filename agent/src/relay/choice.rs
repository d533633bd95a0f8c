//! Which endpoint a new connection at a loopback NodePort goes to.
//!
//! All clients have one address, so that session affinity gives them all one endpoint, until none of them came for so long.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::status::LocalNodePort;

/// How many endpoints are tried for one connection.
const MOST_TRIES: usize = 3;

/// The choices for one NodePort.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The endpoint of the last connection, and when that came.
    last: Option<(SocketAddr, Instant)>,
}

impl Choice {
    /// The endpoints to try, in this order; the rules choose at random, too.
    pub(super) fn endpoints(&mut self, port: &LocalNodePort) -> Vec<SocketAddr> {
        let all = &port.endpoints;
        if all.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let kept = port.affinity.and_then(|timeout| {
            let (last, came) = self.last?;
            let timeout = Duration::from_secs(timeout.seconds().into());
            let is_fresh = now.saturating_duration_since(came) < timeout;
            let at = all.iter().position(|endpoint| *endpoint == last)?;
            is_fresh.then_some(at)
        });
        let first = kept.unwrap_or_else(|| fastrand::usize(..all.len()));
        self.last = Some((all[first], now));
        // The next ones are random only as far as the first is, which is enough for what seldom happens.
        let order = all.iter().cycle().skip(first).take(all.len());
        order.take(MOST_TRIES).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::AffinityTimeout;
    use crate::testing::name;

    fn port(endpoints: u16, affinity: Option<u32>) -> LocalNodePort {
        let address = |port| SocketAddr::from(([10, 1, 0, 1], port));
        LocalNodePort {
            service: name("web"),
            endpoints: (1..=endpoints).map(address).collect(),
            affinity: affinity.and_then(AffinityTimeout::new),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_endpoints_are_chosen_without_affinity() {
        let port = port(4, None);
        let mut choice = Choice::default();
        let chosen: BTreeSet<_> = (0..400).map(|_| choice.endpoints(&port)[0]).collect();
        assert_eq!(chosen.len(), 4);
        let tried = choice.endpoints(&port);
        let different: BTreeSet<_> = tried.iter().collect();
        assert_eq!((tried.len(), different.len()), (MOST_TRIES, MOST_TRIES));
    }

    #[tokio::test(start_paused = true)]
    async fn affinity_lasts_while_somebody_comes() {
        let many = port(1_000, Some(100));
        let mut choice = Choice::default();
        let first = choice.endpoints(&many)[0];
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(99)).await;
            assert_eq!(choice.endpoints(&many)[0], first);
        }
        tokio::time::advance(Duration::from_secs(101)).await;
        let later: BTreeSet<_> = (0..5).map(|_| choice.endpoints(&many)[0]).collect();
        assert_eq!(later.len(), 1);
        // One that went is not chosen.
        let kept = *later.first().unwrap();
        let mut without = many.clone();
        without.endpoints.retain(|endpoint| *endpoint != kept);
        assert_ne!(choice.endpoints(&without)[0], kept);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_chosen_of_nothing() {
        assert!(Choice::default().endpoints(&port(0, None)).is_empty());
    }
}
