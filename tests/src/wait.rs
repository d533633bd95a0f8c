//! Waiting for a condition with a deadline: what tests do instead of sleeping.

use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Asks `probe` until it has something, and returns it; `None` when `patience` is over.
///
/// The probe is asked at least once, and once more after the deadline has passed.
pub fn poll<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let late = Instant::now() >= deadline;
        match probe() {
            None if late => return None,
            None => thread::sleep(POLL_INTERVAL),
            found => return found,
        }
    }
}

/// As [`poll`], on a tokio runtime that has a timer.
pub async fn poll_async<T>(
    patience: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let late = Instant::now() >= deadline;
        match probe().await {
            None if late => return None,
            None => tokio::time::sleep(POLL_INTERVAL).await,
            found => return found,
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` was waited for, when `patience` is over.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    assert!(
        poll(patience, || condition().then_some(())).is_some(),
        "not within {patience:?}: {what}"
    );
}
