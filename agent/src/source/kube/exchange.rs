//! One request to an API server, and its answer event by event or as a whole. Gives up when nothing comes for a while.
//!
//! kube's own streams of events read JSON alone, leave out lines that are cut short and go on after those that cannot
//! be read; here nothing that the server said is ever left out in silence.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use tokio::time::{Instant, timeout, timeout_at};

use super::encoding::{Encoding, Object, Page, Said};
use super::trouble::{Trouble, status_retry_after};

/// No answer that is read as a whole is longer. A page has 500 objects, each of which may have 1.5 MB but seldom a
/// hundredth of it.
const MAX_WHOLE_BYTES: usize = 256 << 20;

/// The answer to a request, as it comes.
pub(super) struct Answer {
    body: Body,
    encoding: Encoding,
    silence: Duration,
    /// When the last bytes came.
    heard: Instant,
    buffer: Vec<u8>,
    /// Where the next event begins in the buffer.
    start: usize,
    /// Up to where no line ends.
    searched: usize,
}

impl Answer {
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
        let answer = Self {
            body,
            encoding: Encoding::of(&head.headers),
            silence,
            heard: Instant::now(),
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        };
        if head.status.is_success() {
            return Ok(answer);
        }
        let wish = head.headers.get(RETRY_AFTER);
        let wish = wish.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        // The code says enough if the rest does not come.
        let encoding = answer.encoding;
        let body = answer.whole().await.unwrap_or_default();
        let status = encoding.status(&body).unwrap_or_else(|| {
            Status::failure(String::from_utf8_lossy(&body).trim(), "")
                .with_code(head.status.as_u16())
        });
        let wish = wish.map(Duration::from_secs);
        let wish = wish.or_else(|| status_retry_after(&status));
        Err(Trouble::Refused(Box::new(status), wish))
    }

    /// The next event of a watch; none when the server ended its answer. What it began and did not end is no event.
    /// May be dropped and called again.
    ///
    /// # Errors
    /// That no more can be had, or that what came is no event.
    pub(super) async fn next<K: Object>(&mut self) -> Result<Option<Said<K>>, Trouble> {
        loop {
            let begun = &self.buffer[self.start..];
            let frame = self.encoding.frame(begun, self.searched - self.start)?;
            if let Some((event, end)) = frame {
                let said = self.encoding.event(&begun[event]);
                self.start += end;
                self.searched = self.start;
                return said.map(Some);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = self.buffer.len();
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// The whole answer as a page of a list.
    ///
    /// # Errors
    /// That it broke off, or that it is no list.
    pub(super) async fn page<K: Object>(self) -> Result<Page<K>, Trouble> {
        let encoding = self.encoding;
        encoding.page(&self.whole().await?)
    }

    async fn whole(mut self) -> Result<Vec<u8>, Trouble> {
        while self.read().await? {
            if self.buffer.len() > MAX_WHOLE_BYTES {
                let reason = format!("an answer of more than {MAX_WHOLE_BYTES} bytes");
                return Err(Trouble::Unreadable(reason));
            }
        }
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
