//! Requests to the API server, counted as client-go counts them: by code, method and host, and how long answers took to begin.
//!
//! There is one API server. Whoever sends requests tells its name once, and then of each request ([`Requests::answered`]).

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::exposition::Out;
use super::histogram::Histogram;
use super::{add, read};

/// The methods that an API server knows.
const METHODS: [&str; 5] = ["DELETE", "GET", "PATCH", "POST", "PUT"];

/// The lowest code of an answer, and how many there are.
const LOWEST_CODE: u16 = 100;
const CODES: usize = 500;

/// The buckets of client-go, in milliseconds.
const BUCKETS_MS: [u64; 12] = [
    5, 25, 100, 250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000,
];

/// Counts of the requests to the API server.
#[derive(Debug)]
pub struct Requests {
    host: OnceLock<String>,
    of_methods: [OfMethod; METHODS.len()],
}

/// Requests with one method.
#[derive(Debug)]
struct OfMethod {
    /// By the answer's code.
    answers: Box<[AtomicU64]>,
    /// Those without an answer.
    errors: AtomicU64,
    durations: Histogram,
}

impl Default for Requests {
    fn default() -> Self {
        let of_method = |_| OfMethod {
            answers: (0..CODES).map(|_| AtomicU64::new(0)).collect(),
            errors: AtomicU64::new(0),
            durations: Histogram::new(BUCKETS_MS.map(Duration::from_millis)),
        };
        Self {
            host: OnceLock::new(),
            of_methods: std::array::from_fn(of_method),
        }
    }
}

impl Requests {
    /// The requests go to this host and port. What is said first stays.
    pub fn go_to(&self, host: &str) {
        self.host.get_or_init(|| host.to_owned());
    }

    /// A request was answered with a code, none for one that got no answer, so long after it was sent.
    pub fn answered(&self, method: &str, code: Option<u16>, took: Duration) {
        let Some(of_method) = METHODS.iter().position(|known| *known == method) else {
            return;
        };
        let of_method = &self.of_methods[of_method];
        let index = code.and_then(|code| code.checked_sub(LOWEST_CODE));
        let answers = index.and_then(|index| of_method.answers.get(usize::from(index)));
        add(answers.unwrap_or(&of_method.errors), 1);
        of_method.durations.observe(took);
    }

    /// Writes what was counted; nothing where nobody ever sent a request.
    pub(super) fn encode(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let Some(host) = self.host.get() else {
            return Ok(());
        };
        let counts = self.counts();
        let labels = |code, method| [("code", code), ("host", host.as_str()), ("method", method)];
        let series = counts
            .iter()
            .map(|(code, method, count)| (labels(code.as_str(), *method), *count));
        let help = "Requests to the API server, by the code of the answer";
        out.counters("rest_client_requests", help, series)?;
        let durations = METHODS.iter().zip(&self.of_methods).map(|(verb, method)| {
            let labels = [("host", host.as_str()), ("verb", *verb)];
            (labels, method.durations.read())
        });
        out.histogram_series(
            "rest_client_request_duration_seconds",
            "Time until the API server's answer to a request began",
            durations.filter(|(_, reading)| reading.count > 0),
        )
    }

    /// Code, method, and how many; those that never were are left out.
    fn counts(&self) -> Vec<(String, &'static str, u64)> {
        let methods = METHODS.iter().zip(&self.of_methods);
        let all = methods.flat_map(|(method, counted)| {
            let codes = (LOWEST_CODE..).map(|code| code.to_string());
            let answers = codes.zip(counted.answers.iter());
            // How client-go names what has no code.
            let errors = ("<error>".to_owned(), &counted.errors);
            answers
                .chain([errors])
                .map(move |(code, count)| (code, *method, read(count)))
        });
        all.filter(|(_, _, count)| *count > 0).collect()
    }
}
