//! A watch as a stream of frames: lines of JSON, or messages of protobuf.
//!
//! A frame that is ready alone is sent as the shared bytes it is; many that are ready at once (the initial events of a
//! large collection) are sent together in larger chunks.

use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, interval_at, sleep_until};

use super::Shared;
use super::encoding::Encoding;
use super::object::{Change, Filter, Object, bookmark};
use super::query::{Start, WatchRequest};
use super::resource::Resource;
use super::store::{Cut, Signal, Subscription};

/// The frames of a watch, until its timeout or a cut.
pub(super) fn stream(
    shared: Arc<Shared>,
    (resource, encoding): (Resource, Encoding),
    request: WatchRequest,
    subscription: Subscription,
) -> impl Stream<Item = io::Result<Bytes>> {
    let now = Instant::now();
    let every = shared.options.bookmark_interval;
    let watch = Watch {
        resource,
        encoding,
        bookmarks: request.bookmarks.then(|| interval_at(now + every, every)),
        deadline: request.timeout.map(|timeout| now + timeout),
        told: subscription.version,
        after: subscription.version,
        initial: subscription.initial.into_iter(),
        ends_initial: request.bookmarks && matches!(request.start, Start::StreamingList(_)),
        signals: subscription.signals,
        filter: request.filter,
        hung: shared.hung.subscribe(),
        shared,
        closing: None,
        cut_list: None,
    }
    .cut_half_way();
    futures::stream::unfold(watch, async |mut watch| {
        watch.next().await.map(|item| (item, watch))
    })
}

const CHUNK_BYTES: usize = 256 * 1024;

struct Watch {
    shared: Arc<Shared>,
    resource: Resource,
    encoding: Encoding,
    filter: Filter,
    bookmarks: Option<Interval>,
    deadline: Option<Instant>,
    /// The version of the last write this watch has heard of.
    told: u64,
    /// Writes up to this one are known to the client.
    after: u64,
    initial: std::vec::IntoIter<Arc<Object>>,
    ends_initial: bool,
    signals: mpsc::UnboundedReceiver<Signal>,
    hung: watch::Receiver<bool>,
    closing: Option<Cut>,
    /// How the watch ends after its initial events.
    cut_list: Option<Cut>,
}

impl Watch {
    /// Leaves out half of the initial events of a streaming list, if a test asked for it.
    fn cut_half_way(mut self) -> Self {
        if self.ends_initial {
            self.cut_list = self.shared.faults().cut_list();
        }
        if self.cut_list.is_some() {
            let half = self.initial.len().div_ceil(2);
            self.initial.by_ref().take(half).for_each(drop);
            self.ends_initial = false;
        }
        self
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            self.hung.wait_for(|hung| !hung).await.ok()?;
            if let Some(chunk) = self.ready() {
                return Some(Ok(chunk));
            }
            match self.closing {
                Some(Cut::Clean) => return None,
                Some(Cut::Broken) => {
                    self.closing = Some(Cut::Clean);
                    return Some(break_off().await);
                }
                Some(Cut::HalfLine) => {
                    self.closing = Some(Cut::Broken);
                    let whole = bookmark(self.resource, self.encoding, self.told, false);
                    return Some(Ok(whole.slice(..whole.len() / 2)));
                }
                None => {}
            }
            tokio::select! {
                biased;
                // A hung watch must not say another word, whatever else is ready.
                _ = self.hung.changed() => {}
                signal = self.signals.recv() => {
                    if let Some(frame) = self.take(signal.unwrap_or(Signal::Cut(Cut::Clean))) {
                        return Some(Ok(frame));
                    }
                }
                () = wait_until(self.deadline) => {
                    self.closing = Some(Cut::Clean);
                    if self.bookmarks.is_some() && let Some(frame) = self.bookmark() {
                        return Some(Ok(frame));
                    }
                }
                () = tick(&mut self.bookmarks) => {
                    if let Some(frame) = self.bookmark() {
                        return Some(Ok(frame));
                    }
                }
            }
        }
    }

    /// What can be sent without waiting: the rest of the initial events, then what was signalled.
    fn ready(&mut self) -> Option<Bytes> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK_BYTES && self.closing.is_none() {
            let frame = if let Some(object) = self.initial.next() {
                self.filter
                    .matches(&object)
                    .then(|| object.frame(Change::Added, self.encoding))
            } else if self.cut_list.is_some() {
                self.closing = self.cut_list.take();
                None
            } else if std::mem::take(&mut self.ends_initial) {
                Some(bookmark(self.resource, self.encoding, self.after, true))
            } else if let Ok(signal) = self.signals.try_recv() {
                self.take(signal)
            } else {
                break;
            };
            if let Some(frame) = frame {
                bytes += frame.len();
                frames.push(frame);
            }
        }
        match frames.len() {
            0 => None,
            1 => frames.pop(),
            _ => Some(frames.concat().into()),
        }
    }

    fn take(&mut self, signal: Signal) -> Option<Bytes> {
        match signal {
            Signal::Event(event) => {
                self.told = event.version;
                // A client may have asked for changes after a version the server has not reached yet.
                let frame = (event.version > self.after)
                    .then(|| event.frame_for(&self.filter, self.encoding))
                    .flatten()?;
                if self.shared.faults().garble_event() {
                    return Some(self.encoding.half(&frame));
                }
                Some(frame)
            }
            Signal::Cut(cut) => {
                self.closing = Some(cut);
                None
            }
        }
    }

    /// A bookmark of the newest version of which every write has been told. None is older than what the client asked
    /// for: a server whose versions began anew has nothing to say (cacheWatcher.process in apiserver's storage/cacher).
    fn bookmark(&self) -> Option<Bytes> {
        let store = self.shared.store();
        // Writes are signalled under this lock, so none can be on its way when the channel is empty.
        let version = if self.signals.is_empty() {
            store.version()
        } else {
            self.told
        };
        (version >= self.after).then(|| bookmark(self.resource, self.encoding, version, false))
    }
}

/// The end of a body whose connection breaks.
pub(super) async fn break_off() -> io::Result<Bytes> {
    // hyper sends what it has when a body is not ready, and drops it when a body fails.
    tokio::task::yield_now().await;
    Err(io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "cut by the test",
    ))
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
