//! Follows one kind of object: lists it, watches it, and goes on after whatever happens, for as long as events are taken.
//!
//! A list is handed on when it is complete, and only then: what breaks off half-way never says that something is gone.

use std::marker::PhantomData;
use std::time::Duration;

use http::header::ACCEPT;
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info};

use super::encoding::{Encoding, Object, Received, Said};
use super::exchange::Answer;
use super::pace::Pace;
use super::server::{Api, Server};
use super::trouble::{Sort, Trouble};
use super::{NOT_HEADLESS, Patience, is_without};
use crate::event::Event;
use crate::model::{ObjectName, Parsed};

/// How many objects a page of a list has, where the server has no streaming lists. As in client-go.
const PAGE_OBJECTS: u32 = 500;

/// How long the server may keep a watch open; the next goes on where it ended.
const WATCH_SECONDS: u32 = 290;

/// How long to wait before looking again whether the server has a kind that proxyd can do without.
const WITHOUT_PAUSE: Duration = Duration::from_secs(300);

/// How the objects of one kind become events.
pub(super) struct Kind<T, F> {
    /// The plural name.
    pub(super) what: &'static str,
    /// From the API's type to the model's.
    pub(super) translate: F,
    /// All objects of the kind.
    pub(super) listed: fn(Vec<Parsed<T>>) -> Event,
    /// One is new or changed.
    pub(super) applied: fn(Parsed<T>) -> Event,
    /// One is gone.
    pub(super) deleted: fn(ObjectName) -> Event,
}

/// What is asked of the server.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    /// A selector of labels.
    pub(super) labels: Option<String>,
    /// A selector of fields.
    pub(super) fields: Option<String>,
    /// Lists in pages, for a server without streaming lists.
    pub(super) pages: bool,
    /// JSON and nothing else, for a server that refuses to choose.
    pub(super) json_only: bool,
}

/// Follows one kind until events are no longer taken.
pub(super) async fn follow<K, T, F>(
    api: &Api,
    asked: Asked,
    patience: Patience,
    send: impl Fn(Event) -> bool,
    kind: Kind<T, F>,
) where
    K: Object,
    F: Fn(&K) -> Parsed<T>,
{
    let mut follower = Follower {
        client: &api.client,
        server: &api.server,
        requests: Request::new(K::url_path(&(), None)),
        asked,
        patience,
        send,
        kind,
        version: None,
        heard: Instant::now(),
        is_known: false,
        is_without: false,
        pace: Pace::new(),
        lists_at_once: false,
        told: Vec::new(),
        is_failing: false,
        of_kind: false,
        api_type: PhantomData,
    };
    loop {
        let mut session = Session::default();
        let ended = follower.session(&mut session).await;
        match ended {
            Ended::NotTaken => return,
            Ended::With(trouble) => {
                if let Some(pause) = follower.after(&trouble, &session) {
                    sleep(pause).await;
                }
            }
        }
    }
}

/// One kind of object, and how far it is known.
struct Follower<'a, K, T, F, S> {
    client: &'a Client,
    server: &'a Server,
    requests: Request,
    asked: Asked,
    patience: Patience,
    send: S,
    kind: Kind<T, F>,
    /// The version of all that is known; without one everything is listed.
    version: Option<String>,
    /// When the server last said something of the kind.
    heard: Instant,
    /// All objects were listed once.
    is_known: bool,
    /// The server does not have the kind, and that was said.
    is_without: bool,
    pace: Pace,
    /// A list was made without a pause since a watch last worked.
    lists_at_once: bool,
    /// What was said of this outage. The same is not said again.
    told: Vec<Sort>,
    /// That it fails was said, and not yet that it works again.
    is_failing: bool,
    /// Some of what was said was of this kind of object alone.
    of_kind: bool,
    api_type: PhantomData<fn(&K)>,
}

/// What became of one watch.
#[derive(Debug, Default)]
struct Session {
    /// The server said something of the kind.
    has_heard: bool,
    /// It worked for long enough to be called working.
    is_settled: bool,
}

/// How a watch ends.
enum Ended {
    /// Nobody takes events any more.
    NotTaken,
    /// Something went wrong, or the server closed it.
    With(Trouble),
}

impl From<Trouble> for Ended {
    fn from(trouble: Trouble) -> Self {
        Self::With(trouble)
    }
}

impl<K, T, F, S> Follower<'_, K, T, F, S>
where
    K: Object,
    F: Fn(&K) -> Parsed<T>,
    S: Fn(Event) -> bool,
{
    /// Lists if nothing is known, and watches.
    async fn session(&mut self, session: &mut Session) -> Ended {
        match self.try_session(session).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn try_session(
        &mut self,
        session: &mut Session,
    ) -> Result<std::convert::Infallible, Ended> {
        if self.version.is_none() && self.asked.pages {
            let (listed, version) = self.list_pages().await?;
            self.complete(listed, version, session)?;
        }
        let mut answer = self.begin_watch().await?;
        if self.version.is_none() {
            let (listed, version) = self.read_initial_events(&mut answer).await?;
            self.complete(listed, version, session)?;
        }
        let settles = Instant::now() + self.patience.settled;
        loop {
            let next = if session.is_settled {
                answer.next().await
            } else if let Ok(next) = timeout_at(settles, answer.next()).await {
                next
            } else {
                session.is_settled = true;
                self.settle(session);
                continue;
            };
            self.take(next?.ok_or(Trouble::Closed)?)?;
            session.has_heard = true;
            self.works();
            if session.is_settled {
                self.settle(session);
            }
        }
    }

    /// Begins to watch where the last watch ended; else with a list of everything.
    async fn begin_watch(&self) -> Result<Answer, Trouble> {
        let params = WatchParams {
            label_selector: self.asked.labels.clone(),
            field_selector: self.asked.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: self.version.is_none(),
        };
        // Version 0 is whatever the server has at hand.
        let version = self.version.as_deref().unwrap_or("0");
        let request = self.requests.watch(&params, version);
        self.send_request(request).await
    }

    async fn send_request(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Answer, Trouble> {
        let mut request = request.expect("parameters that are constant but for selectors");
        let accepted = Encoding::accepted(self.asked.json_only);
        request.headers_mut().insert(ACCEPT, accepted);
        Answer::of(self.client, request, self.patience.silence).await
    }

    /// The objects at the beginning of a streaming list, and their version.
    async fn read_initial_events(
        &self,
        answer: &mut Answer,
    ) -> Result<(Vec<Parsed<T>>, String), Trouble> {
        let mut listed: Vec<Parsed<T>> = Vec::new();
        loop {
            match answer.next().await?.ok_or(Trouble::Closed)? {
                Said::Added(object) => listed.push(self.parsed(object)),
                // A change that came while the list was sent.
                Said::Modified(object) => {
                    let parsed = self.parsed(object);
                    listed.retain(|other| other.name != parsed.name);
                    listed.push(parsed);
                }
                Said::Deleted { name, .. } => listed.retain(|other| other.name != name),
                Said::Bookmark { version, ends_list } => {
                    if ends_list {
                        return Ok((listed, version));
                    }
                }
                Said::Error(status) => return Err(Trouble::ClosedWith(status)),
            }
        }
    }

    /// The object as the model has it. One that cannot be decoded is one that cannot be served.
    fn parsed(&self, received: Received<K>) -> Parsed<T> {
        match received.object {
            Ok(object) => (self.kind.translate)(&object),
            Err(complaint) => Parsed {
                name: received.name,
                object: None,
                complaints: vec![complaint],
                trigger: None,
            },
        }
    }

    /// All pages of a list, and their version.
    async fn list_pages(&self) -> Result<(Vec<Parsed<T>>, String), Trouble> {
        let mut listed = Vec::new();
        let mut params = ListParams {
            label_selector: self.asked.labels.clone(),
            field_selector: self.asked.fields.clone(),
            limit: Some(PAGE_OBJECTS),
            ..ListParams::default()
        };
        loop {
            let answer = self.send_request(self.requests.list(&params)).await?;
            let page = answer.page().await?;
            listed.extend(page.items.into_iter().map(|object| self.parsed(object)));
            params.continue_token = page.next;
            if params.continue_token.is_none() {
                return Ok((listed, page.version));
            }
        }
    }

    /// Hands a complete list on.
    fn complete(
        &mut self,
        listed: Vec<Parsed<T>>,
        version: String,
        session: &mut Session,
    ) -> Result<(), Ended> {
        self.advance(version)?;
        session.has_heard = true;
        self.is_known = true;
        self.is_without = false;
        self.works();
        self.give((self.kind.listed)(listed))
    }

    /// Takes an event of a watch.
    fn take(&mut self, event: Said<K>) -> Result<(), Ended> {
        match event {
            Said::Added(object) | Said::Modified(object) => {
                self.advance(object.version.clone())?;
                self.give((self.kind.applied)(self.parsed(object)))
            }
            Said::Deleted { name, version } => {
                self.advance(version)?;
                self.give((self.kind.deleted)(name))
            }
            Said::Bookmark { version, .. } => Ok(self.advance(version)?),
            Said::Error(status) => Err(Trouble::ClosedWith(status).into()),
        }
    }

    /// Notes the version of what the server said. Versions are numbers and grow: kube-apiserver has never made others,
    /// and since Kubernetes 1.35 clients may rely on it (KEP-5504).
    fn advance(&mut self, version: String) -> Result<(), Trouble> {
        if version.is_empty() {
            return Err(Trouble::unreadable("an object without a resourceVersion"));
        }
        let number = |text: &str| text.parse::<u128>().ok();
        let before = self.version.as_deref().and_then(number);
        if number(&version).is_some_and(|now| before.is_some_and(|before| now < before)) {
            return Err(Trouble::WentBack);
        }
        self.version = Some(version);
        self.heard = Instant::now();
        Ok(())
    }

    fn give(&self, event: Event) -> Result<(), Ended> {
        match (self.send)(event) {
            true => Ok(()),
            false => Err(Ended::NotTaken),
        }
    }

    /// Decides what comes next: whether to list everything, and how long to wait before.
    fn after(&mut self, trouble: &Trouble, session: &Session) -> Option<Duration> {
        let what = self.kind.what;
        if let Some(less) = self.asked.less_after(trouble) {
            info!("{what}: the API server is an older one; asking it for less");
            self.asked = less;
            return None;
        }
        if !self.is_known
            && let Trouble::Refused(status, _) = trouble
            && is_without(what, status)
        {
            if !std::mem::replace(&mut self.is_without, true) {
                info!(
                    "the API server shows no {what} ({}); addresses of theirs that no Service has are not dropped",
                    status.message
                );
                // If nobody takes it, the next that is sent says so.
                (self.send)((self.kind.listed)(Vec::new()));
            }
            return Some(WITHOUT_PAUSE);
        }
        // A server whose versions began anew is silent to those who watch from a version that it has yet to reach. It is
        // noticed when a watch says nothing from its beginning on, or many short ones in a row do not.
        let is_deaf = !session.has_heard
            && (matches!(trouble, Trouble::Silent(_))
                || self.heard.elapsed() >= 4 * self.patience.silence);
        let resumed = self.version.is_some();
        if is_deaf || !trouble.can_resume() {
            self.version = None;
        }
        // A server that is back after a while says that it has no history. Its list comes at once, but once.
        if resumed && trouble.is_gone() && !std::mem::replace(&mut self.lists_at_once, true) {
            debug!("listing {what} anew: {}", trouble.explain(what));
            return None;
        }
        if session.is_settled && trouble.is_ordinary() && !is_deaf {
            debug!("watching {what} anew: {}", trouble.explain(what));
            return None;
        }
        let sort = trouble.sort();
        if !self.told.contains(&sort) {
            self.told.push(sort);
            self.is_failing = true;
            self.of_kind |= !trouble.is_of_server();
            self.server.tell(what, trouble);
        }
        Some(self.pace.pause(trouble.retry_after()))
    }

    /// The server says what it should.
    fn works(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            let of_kind = std::mem::take(&mut self.of_kind);
            self.server.works(self.kind.what, of_kind);
        }
    }

    /// A watch has held for so long that the next trouble is another one. If the last one was silence, it has to say
    /// something first.
    fn settle(&mut self, session: &Session) {
        if session.has_heard || !self.told.contains(&Sort::Silence) {
            self.works();
            self.told.clear();
            self.pace = Pace::new();
            self.lists_at_once = false;
        }
    }
}

impl Asked {
    /// What to ask an older server for, if that is why it refused: 422 Invalid comes from one without streaming
    /// lists, 400 Bad Request from one that cannot select Services by ClusterIP, 406 Not Acceptable and 415 Unsupported
    /// Media Type from one that wants to hear of JSON alone.
    fn less_after(&self, trouble: &Trouble) -> Option<Self> {
        let Trouble::Refused(status, _) = trouble else {
            return None;
        };
        let mut less = self.clone();
        if status.code == 422 && !self.pages {
            less.pages = true;
        } else if status.code == 400 && self.fields.as_deref() == Some(NOT_HEADLESS) {
            less.fields = None;
        } else if matches!(status.code, 406 | 415) && !self.json_only {
            less.json_only = true;
        } else {
            return None;
        }
        Some(less)
    }
}
