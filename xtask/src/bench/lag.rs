//! How far the kernel is behind the API server while endpoints change without a pause.
//!
//! Each change replaces one endpoint. Every tenth is a *mark*, which is looked for in the kernel (see [`super::kernel`]):
//! the element with the index of the old endpoint has the new one, or, with a peer, its rules lead to the new one.
//! Another thread looks for the oldest mark that is not there yet, so it sees each within its interval of 0.1 ms and
//! costs 3 % of a CPU.
//!
//! Slices come in one watch and are applied in order, a batch as one transaction; so when a mark is in the kernel, all
//! changes before it are. The percentiles are those of the marks. The worst is a bound for *all* changes: each is taken
//! to arrive with the next mark, which is at most nine changes later. Time begins before the write, so what the server
//! itself takes for it (some 50 µs) is counted too. A Service is not used for a mark again while its last one is on the
//! way, for then its element would say nothing; with a proxy that is far behind there are fewer marks.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::cluster::Cluster;
use super::kernel::Kernel;
use super::percentile;
use super::workload::Service;

/// One in so many changes is a mark.
const EVERY: usize = 10;

/// How often the kernel is asked for the next mark.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// How long a mark may be on its way.
const PATIENCE: Duration = Duration::from_secs(300);

/// The fewest Services that this works with: one for marks, one for the last, two to change.
pub(super) const FEWEST_SERVICES: usize = 4;

/// How many changes, and how fast: so many in a second, or as fast as the server takes them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) changes: usize,
    pub(super) per_second: Option<u32>,
}

/// What came of it.
pub(super) struct Lag {
    /// How many changes the server took in a second.
    pub(super) per_second: f64,
    /// Half of the marks arrived within this.
    pub(super) p50: Duration,
    /// 99 of 100 marks arrived within this.
    pub(super) p99: Duration,
    /// All changes arrived within this.
    pub(super) worst: Duration,
    /// From the last commit until all was in the kernel.
    pub(super) drained: Duration,
}

/// A change that can be seen in the kernel.
struct Mark {
    change: usize,
    number: usize,
    /// The kernel has the second of these endpoints in place of the first once the mark has arrived.
    endpoints: [Ipv4Addr; 2],
    at: Instant,
}

/// Changes endpoints at this pace.
pub(super) fn measure(cluster: &mut Cluster, kernel: &Kernel, pace: Pace) -> Result<Lag> {
    ensure!(cluster.len() >= FEWEST_SERVICES, "too few Services");
    let services: Vec<_> = (0..cluster.len())
        .map(|number| cluster.service(number))
        .collect();
    let seen = AtomicUsize::new(0);
    let mut looker = Looker {
        kernel,
        services: &services,
        endpoints: u16::try_from(cluster.endpoints())?,
        index: None,
    };
    let (sender, receiver) = channel();
    let (written, arrivals) = thread::scope(|scope| {
        let seen = &seen;
        let thread = scope.spawn(move || look(&receiver, seen, |mark| looker.is_there(mark)));
        let written = write(cluster, pace, &sender, seen);
        drop(sender);
        let arrivals = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        anyhow::Ok((written?, arrivals?))
    })?;
    let mut lags: Vec<_> = arrivals
        .iter()
        .map(|(change, at)| *at - written[*change])
        .collect();
    let last = *written.last().context("at least one change")?;
    let (_, end) = arrivals.last().context("the last change is a mark")?;
    let span = last.saturating_duration_since(written[0]).as_secs_f64();
    Ok(Lag {
        per_second: (pace.changes - 1) as f64 / span.max(f64::EPSILON),
        p50: percentile(&mut lags, 50),
        p99: percentile(&mut lags, 99),
        worst: worst(&written, &arrivals),
        drained: *end - last,
    })
}

/// Makes the changes; returns when each began.
fn write(
    cluster: &mut Cluster,
    pace: Pace,
    marks: &Sender<Mark>,
    seen: &AtomicUsize,
) -> Result<Vec<Instant>> {
    // The first Services are for marks, one for the last mark, and the others for all other changes.
    let for_marks = (pace.changes / EVERY).clamp(1, cluster.len() / 2 - 1);
    let others = cluster.len() - for_marks - 1;
    let mut sent = 0;
    // With which mark each of the Services was used last, counted from 1.
    let mut used = vec![0; for_marks];
    let mut written = Vec::with_capacity(pace.changes);
    let start = Instant::now();
    for change in 0..pace.changes {
        if let Some(rate) = pace.per_second {
            let due = start + Duration::from_secs(1).mul_f64(change as f64 / f64::from(rate));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let is_last = change + 1 == pace.changes;
        let next = sent % for_marks;
        let is_free = used[next] <= seen.load(Ordering::Relaxed);
        let at = Instant::now();
        written.push(at);
        if is_last || (change % EVERY == EVERY - 1 && is_free) {
            let number = if is_last { for_marks } else { next };
            let endpoints = cluster.replace_endpoint(number)?;
            sent += 1;
            used[next] = sent;
            let mark = Mark {
                change,
                number,
                endpoints,
                at,
            };
            marks.send(mark).context("the other thread has failed")?;
        } else {
            // A stride that is prime to most numbers of Services visits them all.
            cluster.replace_endpoint(for_marks + 1 + change * 7919 % others)?;
        }
    }
    Ok(written)
}

/// Looks for one mark after the other.
struct Looker<'a> {
    kernel: &'a Kernel,
    services: &'a [Service],
    endpoints: u16,
    /// Of the last mark, and the index of the endpoint that it replaces.
    index: Option<(usize, u16)>,
}

impl Looker<'_> {
    fn is_there(&mut self, mark: &Mark) -> Result<bool> {
        let service = self.services[mark.number];
        let [old, new] = mark.endpoints;
        if let Kernel::Peer(..) = self.kernel {
            return self.kernel.has_endpoint(service, 0, new);
        }
        // The new endpoint takes the index of the old one, so that one is looked at from now on.
        if let Some((change, index)) = self.index
            && change == mark.change
        {
            return Ok(self.kernel.endpoint(service.cluster_ip, index)? == Some(new));
        }
        for index in 0..self.endpoints {
            let found = self.kernel.endpoint(service.cluster_ip, index)?;
            if found == Some(old) || found == Some(new) {
                self.index = Some((mark.change, index));
                return Ok(found == Some(new));
            }
        }
        Ok(false)
    }
}

/// Looks for marks in the order in which they were made; returns when each arrived.
fn look(
    marks: &Receiver<Mark>,
    seen: &AtomicUsize,
    mut is_there: impl FnMut(&Mark) -> Result<bool>,
) -> Result<Vec<(usize, Instant)>> {
    let mut waiting = VecDeque::new();
    let mut arrivals = Vec::new();
    loop {
        let is_end = loop {
            match marks.try_recv() {
                Ok(mark) => waiting.push_back(mark),
                Err(error) => break error == TryRecvError::Disconnected,
            }
        };
        while let Some(mark) = waiting.front() {
            if !is_there(mark)? {
                ensure!(
                    mark.at.elapsed() < PATIENCE,
                    "change {} did not reach the kernel",
                    mark.change
                );
                break;
            }
            arrivals.push((mark.change, Instant::now()));
            seen.fetch_add(1, Ordering::Relaxed);
            waiting.pop_front();
        }
        if is_end && waiting.is_empty() {
            return Ok(arrivals);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The longest that any change took, if each arrived with the next mark. The last change is a mark.
fn worst(written: &[Instant], arrivals: &[(usize, Instant)]) -> Duration {
    let mut marks = arrivals.iter().peekable();
    let lag = |(change, at): (usize, &Instant)| {
        while marks.next_if(|(mark, _)| *mark < change).is_some() {}
        marks.peek().map(|(_, arrived)| *arrived - *at)
    };
    let lags = written.iter().enumerate().filter_map(lag);
    lags.max().unwrap_or_default()
}

/// Waits for something in the kernel.
pub(super) fn wait_until(
    patience: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    while !holds()? {
        ensure!(
            started.elapsed() < patience,
            "a change did not reach the kernel"
        );
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_without_a_mark_arrives_with_the_next_mark() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let written = [0, 10, 20, 30, 40].map(at);
        // The first change has to wait for the mark that is the second.
        assert_eq!(
            worst(&written, &[(1, at(12)), (3, at(31)), (4, at(41))]),
            Duration::from_millis(12)
        );
        assert_eq!(
            worst(&written, &[(1, at(12)), (4, at(47))]),
            Duration::from_millis(27)
        );
    }

    #[test]
    fn marks_are_looked_for_in_order() {
        let (sender, receiver) = channel();
        let seen = AtomicUsize::new(0);
        for change in [3, 7, 9] {
            let mark = Mark {
                change,
                number: 0,
                endpoints: [Ipv4Addr::LOCALHOST; 2],
                at: Instant::now(),
            };
            sender.send(mark).unwrap();
        }
        drop(sender);
        let asked = std::cell::RefCell::new(Vec::new());
        let arrivals = look(&receiver, &seen, |mark| {
            let mut asked = asked.borrow_mut();
            asked.push(mark.change);
            // Each is there when it is asked for the second time.
            Ok(asked
                .iter()
                .filter(|change| **change == mark.change)
                .count()
                == 2)
        });
        let arrivals = arrivals.unwrap();
        let changes: Vec<_> = arrivals.iter().map(|(change, _)| *change).collect();
        assert_eq!(changes, [3, 7, 9]);
        assert_eq!(*asked.borrow(), [3, 3, 7, 7, 9, 9]);
        assert_eq!(seen.load(Ordering::Relaxed), 3);
    }
}
