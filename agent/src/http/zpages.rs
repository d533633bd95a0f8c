//! `/statusz` and `/flagz`: what runs, since when and with which flags, as text for people.
//!
//! The layout is that of Kubernetes 1.36 (`k8s.io/component-base/zpages`; KEP-4827, KEP-4828), as are the refusals:
//! who asks for anything but text is told so.

use std::fmt::Write as _;

use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;

use super::metrics;
use crate::version;

/// The name in the headings.
const COMPONENT: &str = "proxyd";

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// The answer of `/statusz` to a request with these headers. `paths` are those that the server has.
pub(super) fn status(request: &HeaderMap, paths: &[&str]) -> Response {
    let now = Timestamp::now();
    let started = metrics::started()
        .and_then(|seconds| {
            #[expect(clippy::cast_possible_truncation, reason = "whole seconds are shown")]
            Timestamp::from_second(seconds as i64).ok()
        })
        .unwrap_or(now);
    answer(request, status_text(started, now, paths))
}

/// The answer of `/flagz` to a request with these headers.
pub(super) fn flags(request: &HeaderMap, flags: &[(String, String)]) -> Response {
    answer(request, flags_text(flags))
}

fn status_text(started: Timestamp, now: Timestamp, paths: &[&str]) -> String {
    let up = now.duration_since(started).as_secs().max(0);
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    format!(
        "\n{COMPONENT} statusz\n{WARNING}\n\n\
         Started: {}\n\
         Up: {hours} hr {minutes:02} min {seconds:02} sec\n\
         Compiler: {}\n\
         Binary version: {}\n\
         Paths: {}\n",
        started.strftime("%a %b %e %H:%M:%S UTC %Y"),
        version::INFO.compiler,
        version::INFO.git_version.trim_start_matches('v'),
        paths.join(" "),
    )
}

fn flags_text(flags: &[(String, String)]) -> String {
    let mut text = format!("\n{COMPONENT} flags\n{WARNING}\n\n");
    for (name, value) in flags {
        writeln!(text, "{name}={value}").expect("a string takes everything");
    }
    text
}

fn answer(request: &HeaderMap, text: String) -> Response {
    let accepted = request.get_all(ACCEPT).into_iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok()).peekable();
    if accepted.peek().is_some() && !accepted.any(takes_text) {
        let refusal = "media type not acceptable, must be: text/plain\n";
        return (StatusCode::NOT_ACCEPTABLE, refusal).into_response();
    }
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// Whether a value of the header `Accept` takes plain text in UTF-8.
fn takes_text(accept: &str) -> bool {
    accept.split(',').any(|accepted| {
        let kind = accepted.split(';').next().unwrap_or_default().trim();
        ["text/plain", "text/*", "*/*"].contains(&kind)
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn status_is_laid_out_as_in_kubernetes() {
        let started: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        let now: Timestamp = "2026-03-05T06:07:09.5Z".parse().unwrap();
        let text = status_text(started, now, &["/healthz", "/metrics"]);
        let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        expect![[r#"

            proxyd statusz
            Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.

            Started: Wed Mar  4 05:06:07 UTC 2026
            Up: 25 hr 01 min 02 sec
            Compiler: rustc
            Binary version: VERSION
            Paths: /healthz /metrics
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn flags_stand_one_in_a_line() {
        let flags = [("a", "1"), ("b-c", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let text = flags_text(&flags);
        assert!(text.starts_with("\nproxyd flags\nWarning: "), "{text}");
        assert!(text.ends_with("only.\n\na=1\nb-c=\n"), "{text}");
    }

    #[test]
    fn text_is_for_those_who_take_it() {
        for (accept, expected) in [
            ("text/plain", true),
            ("text/plain; charset=utf-8", true),
            ("text/html, */*;q=0.1", true),
            ("application/json", false),
            ("text/html", false),
        ] {
            assert_eq!(takes_text(accept), expected, "{accept}");
        }
    }
}
