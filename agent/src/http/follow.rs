//! Listeners that follow a wanted set: what is wanted is listened on, what no longer is is closed.
//!
//! Those that stay are left alone. What cannot be listened on is told once for each reason, and tried again by whoever
//! calls [`Listeners::follow`] again; it never ends the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::listen::listen;
use super::serve::Listening;
use crate::model::ObjectName;

/// A Service, and an address and port at which something is listened for on its behalf.
pub(crate) type Place = (ObjectName, SocketAddr);

/// What happened to a listener.
#[derive(Debug)]
pub(crate) enum Followed {
    /// It is there, after it was refused.
    AfterAll,
    /// It is gone, since it is no longer wanted.
    Gone,
    /// It cannot be had, for this reason, which is another one than the last time.
    Refused(String),
}

/// The listeners that are there, and those that cannot be had.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// What it means that two Services want one port, and what to do.
    twice: &'static str,
    listening: BTreeMap<Place, Listening>,
    /// What could not be listened on, and the reason that was told.
    refused: BTreeMap<Place, String>,
}

impl Listeners {
    /// None yet. `twice` says what it means that two Services want one port, and what to do.
    pub(crate) fn new(twice: &'static str) -> Self {
        Self {
            twice,
            listening: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Closes what is not wanted, before anything is opened: a port may pass from one Service to another. Then opens what
    /// is not there yet; `start` makes the server of a place.
    pub(crate) async fn follow<S>(
        &mut self,
        wanted: BTreeSet<Place>,
        mut start: impl FnMut(&Place, TcpListener) -> S,
        mut tell: impl FnMut(&Place, Followed),
    ) where
        S: Future<Output = Infallible> + Send + 'static,
    {
        self.refused.retain(|place, _| wanted.contains(place));
        let (kept, gone) = std::mem::take(&mut self.listening)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(place, _)| wanted.contains(place));
        self.listening = kept;
        for (place, listening) in gone {
            tell(&place, Followed::Gone);
            listening.stop().await;
        }
        for place in wanted {
            if self.listening.contains_key(&place) {
                continue;
            }
            let listener = match self.owner(place.1) {
                Some(owner) => Err(format!(
                    "proxyd itself has port {} already, for Service {owner}: {}",
                    place.1.port(),
                    self.twice,
                )),
                None => listen(place.1).map_err(|error| error.to_string()),
            };
            match listener {
                Ok(listener) => {
                    if self.refused.remove(&place).is_some() {
                        tell(&place, Followed::AfterAll);
                    }
                    let server = start(&place, listener);
                    self.listening.insert(place, Listening::start(server));
                }
                Err(reason) => {
                    if self.refused.get(&place) != Some(&reason) {
                        tell(&place, Followed::Refused(reason.clone()));
                        self.refused.insert(place, reason);
                    }
                }
            }
        }
    }

    /// The Service on whose behalf somebody listens there already.
    fn owner(&self, address: SocketAddr) -> Option<&ObjectName> {
        let mut places = self.listening.keys();
        let owner = places.find(|(_, other)| is_same(*other, address));
        owner.map(|(service, _)| service)
    }

    /// Whether something cannot be had now, and should be tried again.
    pub(crate) fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }
}

/// Whether who listens at one of the addresses keeps others from the other one.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (is_any || one.ip() == other.ip())
}
