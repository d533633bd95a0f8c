//! The API server as messages name it, and what is known of it as a whole, so that it is said once and not for each kind
//! of object.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Client;
use tracing::{debug, info, warn};

use super::trouble::{Sort, Trouble};

/// A client of an API server.
#[derive(Clone)]
pub struct Api {
    /// Asks it.
    pub client: Client,
    /// What messages say of it.
    pub(super) server: Arc<Server>,
    /// Lists come in pages, though the server may have streaming lists.
    pub(super) in_pages: bool,
}

impl Api {
    /// Asks for lists in pages, also where the server has streaming lists.
    #[must_use]
    pub fn without_streaming_lists(self) -> Self {
        Self {
            in_pages: true,
            ..self
        }
    }
}

/// What messages say of an API server.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// Where it is; empty if that is not known.
    pub(super) url: String,
    /// Whether the address is that of the Service `kubernetes`, as pods are told.
    pub(super) is_cluster_ip: bool,
    /// The kinds of object that cannot be had because the server cannot, each with why.
    away: Mutex<BTreeSet<(Sort, &'static str)>>,
}

impl From<Client> for Api {
    fn from(client: Client) -> Self {
        Self {
            client,
            server: Arc::default(),
            in_pages: false,
        }
    }
}

impl Server {
    /// A server at an address.
    pub(super) fn at(url: String, is_cluster_ip: bool) -> Self {
        Self {
            url,
            is_cluster_ip,
            away: Mutex::default(),
        }
    }

    /// ` at URL`, if that is known.
    pub(super) fn at_url(&self) -> String {
        if self.url.is_empty() {
            String::new()
        } else {
            format!(" at {}", self.url)
        }
    }

    /// What to do where nobody answers; empty if that is not known.
    pub(super) fn advice(&self) -> &'static str {
        if self.is_cluster_ip {
            " (the address is that of KUBERNETES_SERVICE_HOST, which is a ClusterIP and reaches nobody before a proxy \
             serves it: give --master URL or --kubeconfig FILE with an address of the API server itself)"
        } else {
            ""
        }
    }

    /// Tells of a trouble with a kind of object, or, once for all kinds, with the server.
    pub(super) fn tell(&self, what: &'static str, trouble: &Trouble) {
        let why = trouble.explain(what);
        let advice = match trouble.sort() {
            Sort::NoAnswer => self.advice(),
            _ => "",
        };
        let at = self.at_url();
        if !trouble.is_of_server() {
            warn!("watching {what}: {why}; trying again{at}");
            return;
        }
        let sort = trouble.sort();
        let mut away = self.away();
        let is_known = away.iter().any(|(known, _)| *known == sort);
        away.insert((sort, what));
        if !is_known {
            warn!("{why}; trying again{at}{advice}");
        }
        debug!("watching {what}: {why}; trying again{at}");
    }

    /// Tells that a kind of object can be had again, after trouble with it (`of_kind`), or with the server.
    pub(super) fn works(&self, what: &str, of_kind: bool) {
        let mut away = self.away();
        let before = away.len();
        away.retain(|(_, kind)| *kind != what);
        if before > 0 && away.is_empty() {
            info!("the API server{} answers again", self.at_url());
        }
        if of_kind {
            info!("watching {what} again");
        }
    }

    fn away(&self) -> MutexGuard<'_, BTreeSet<(Sort, &'static str)>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_and_one_that_only_a_proxy_serves_is_explained() {
        let server = Server::at("https://10.96.0.1:443".to_owned(), true);
        assert_eq!(server.at_url(), " at https://10.96.0.1:443");
        for part in [
            "KUBERNETES_SERVICE_HOST",
            "--master URL",
            "--kubeconfig FILE",
        ] {
            assert!(server.advice().contains(part), "{part}");
        }
        let server = Server::at("https://192.0.2.1:6443".to_owned(), false);
        assert_eq!(server.advice(), "");
        assert_eq!(Server::default().at_url(), "");
    }

    #[test]
    fn what_is_wrong_with_the_server_is_over_when_the_last_kind_works() {
        let server = Server::default();
        let silent = Trouble::Silent(std::time::Duration::from_secs(90));
        for what in ["services", "nodes"] {
            server.tell(what, &silent);
        }
        server.tell("services", &Trouble::Closed);
        assert_eq!(server.away().len(), 2, "the end of a watch is of one kind");
        server.works("services", true);
        assert_eq!(server.away().len(), 1);
        server.works("nodes", false);
        assert!(server.away().is_empty());
    }
}
