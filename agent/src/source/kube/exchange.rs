//! One request to an API server, and its answer as lines or as a whole. Gives up when nothing comes for a while.
//!
//! kube's own streams of events leave out lines that are cut short and go on after those that cannot be read; here
//! nothing that the server said is ever left out in silence.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use tokio::time::{Instant, timeout, timeout_at};

use super::trouble::{Trouble, status_retry_after};

/// No line is longer: etcd takes no object over 1.5 MB.
const MAX_LINE_BYTES: usize = 16 << 20;

/// The answer to a request, as it comes.
pub(super) struct Lines {
    body: Body,
    silence: Duration,
    /// When the last bytes came.
    heard: Instant,
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer.
    start: usize,
    /// Up to where no line ends.
    searched: usize,
}

impl Lines {
    /// Sends a request. `silence` is how long the server may say nothing, now and later.
    ///
    /// # Errors
    /// That there is no answer, or that it is a refusal.
    pub(super) async fn of(
        client: &Client,
        request: http::Request<Vec<u8>>,
        silence: Duration,
    ) -> Result<Self, Trouble> {
        let sent = timeout(silence, client.send(request.map(Body::from))).await;
        let response = sent
            .map_err(|_| Trouble::Silent(silence))?
            .map_err(Trouble::NoAnswer)?;
        let (head, body) = response.into_parts();
        let lines = Self {
            body,
            silence,
            heard: Instant::now(),
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        };
        if head.status.is_success() {
            return Ok(lines);
        }
        let wish = head.headers.get(RETRY_AFTER);
        let wish = wish.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        // The code says enough if the rest does not come.
        let text = lines.whole().await.unwrap_or_default();
        let status = serde_json::from_slice(&text).unwrap_or_else(|_| {
            Status::failure(String::from_utf8_lossy(&text).trim(), "")
                .with_code(head.status.as_u16())
        });
        let wish = wish.map(Duration::from_secs);
        let wish = wish.or_else(|| status_retry_after(&status));
        Err(Trouble::Refused(Box::new(status), wish))
    }

    /// The next line; none when the server ended its answer. What it began and did not end is no line. May be
    /// dropped and called again.
    ///
    /// # Errors
    /// That no more can be had.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Trouble> {
        loop {
            let end = self.buffer[self.searched..]
                .iter()
                .position(|&b| b == b'\n');
            if let Some(length) = end {
                let line = self.start..self.searched + length;
                self.start = line.end + 1;
                self.searched = self.start;
                return Ok(Some(&self.buffer[line]));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(Trouble::unreadable("a line without end"));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// That it broke off.
    pub(super) async fn whole(mut self) -> Result<Vec<u8>, Trouble> {
        while self.read().await? {}
        Ok(self.buffer)
    }

    /// Reads more into the buffer; false at the end.
    async fn read(&mut self) -> Result<bool, Trouble> {
        let frame = timeout_at(self.heard + self.silence, self.body.frame()).await;
        let frame = frame.map_err(|_| Trouble::Silent(self.silence))?;
        self.heard = Instant::now();
        match frame {
            None => Ok(false),
            Some(Err(error)) => Err(Trouble::Broken(error)),
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    self.buffer.extend_from_slice(bytes);
                }
                Ok(true)
            }
        }
    }
}
