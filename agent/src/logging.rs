//! The log: lines on standard error, as text for people or as JSON with the field names of Kubernetes' components.
//!
//! How much is logged can be changed while the program runs ([`Verbosity`]). The JSON is that of
//! `k8s.io/component-base/logs/json`: `ts` in milliseconds, `caller`, `msg`, `v`, `err`.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::time::SystemTime;

use serde::ser::{SerializeMap as _, Serializer as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// The time, the level and the message, for people.
    Text,
    /// One JSON object.
    Json,
}

/// How much is logged: kube-proxy's levels of `-v`.
#[derive(Debug, Clone)]
pub struct Verbosity {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why a verbosity was not set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerbosityError {
    /// The text is no level.
    #[error("not a whole number")]
    NotANumber,
    /// The log is gone, as the program ends.
    #[error("nobody logs any more")]
    Gone,
}

impl Verbosity {
    /// Sets the level, which is the text of a number as with `-v`.
    ///
    /// # Errors
    /// That the text is no number.
    pub fn set(&self, text: &str) -> Result<(), VerbosityError> {
        let level: i32 = text.parse().map_err(|_| VerbosityError::NotANumber)?;
        let level = u8::try_from(level.clamp(0, i32::from(u8::MAX))).unwrap_or(u8::MAX);
        self.filter
            .reload(filter(level))
            .map_err(|_| VerbosityError::Gone)
    }
}

/// Logs to standard error from now on. For once in a program.
pub fn start(lines: Lines, verbosity: u8) -> Verbosity {
    let is_terminal = io::stderr().is_terminal();
    let (subscriber, verbosity) = subscriber(lines, verbosity, is_terminal, io::stderr);
    subscriber.init();
    verbosity
}

/// What logs to a writer, and what sets how much.
pub(crate) fn subscriber<W>(
    lines: Lines,
    verbosity: u8,
    ansi: bool,
    writer: W,
) -> (impl Subscriber + Send + Sync + use<W>, Verbosity)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(verbosity));
    let lines = tracing_subscriber::fmt::layer::<Layered<_, Registry>>()
        .with_ansi(ansi && lines == Lines::Text)
        .with_writer(writer)
        .event_format(lines);
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    (subscriber, Verbosity { filter: handle })
}

/// As much as kube-proxy's levels of `-v` would log.
fn filter(verbosity: u8) -> EnvFilter {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // What kube's crates log as an error comes back as one too, and is told with what to do about it.
    let others = if verbosity < 6 {
        "warn,kube_client=off,kube_runtime=off"
    } else {
        "debug"
    };
    EnvFilter::builder().parse_lossy(format!("{others},proxyd={level}"))
}

/// The level of `-v` from which events of a level are logged; none for errors, which always are.
fn level_of(metadata: &Metadata<'_>) -> Option<u8> {
    match *metadata.level() {
        Level::ERROR => None,
        Level::WARN => Some(0),
        Level::INFO => Some(1),
        Level::DEBUG => Some(4),
        Level::TRACE => Some(6),
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self {
            Self::Text => format::Format::default()
                .with_target(false)
                .format_event(context, writer, event),
            Self::Json => {
                let line = json(event, SystemTime::now()).map_err(|_| fmt::Error)?;
                writeln!(writer, "{line}")
            }
        }
    }
}

/// An event as a JSON object.
fn json(event: &Event<'_>, now: SystemTime) -> serde_json::Result<String> {
    let mut told = Told::default();
    event.record(&mut told);
    let metadata = event.metadata();
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("ts", &(since.as_secs_f64() * 1e3))?;
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        map.serialize_entry("caller", &format!("{}:{line}", short(file)))?;
    }
    map.serialize_entry("msg", &told.message)?;
    if let Some(level) = level_of(metadata) {
        map.serialize_entry("v", &level)?;
    }
    for (name, value) in &told.others {
        let name = if *name == "error" { "err" } else { name };
        map.serialize_entry(name, value)?;
    }
    map.end()?;
    String::from_utf8(line).map_err(<serde_json::Error as serde::de::Error>::custom)
}

/// A path's last folder and file, as Go's loggers show it.
fn short(path: &str) -> &str {
    let start = path.rmatch_indices('/').nth(1).map(|(at, _)| at + 1);
    &path[start.unwrap_or(0)..]
}

/// What an event says.
#[derive(Debug, Default)]
struct Told {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format!("{value:?}"));
    }
}

impl Told {
    fn record(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.others.push((field.name(), value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::{debug, error, info, trace, warn};

    use super::*;

    /// A log that is kept.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    /// What is logged with a verbosity that may change in between.
    fn log(lines: Lines, verbosity: u8, act: impl FnOnce(&Verbosity, &Kept)) {
        let kept = Kept::default();
        let writer = kept.clone();
        let (subscriber, verbosity) = subscriber(lines, verbosity, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || act(&verbosity, &kept));
    }

    #[test]
    fn json_has_the_fields_of_kubernetes_components() {
        log(Lines::Json, 6, |_, kept| {
            let before = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() * 1e3;
            info!("Service {}: \"served\"\nat last", "default/web");
            warn!(device = "eth0", count = 3, "gone");
            error!(error = "refused", "no rules");
            debug!("synced");
            trace!("sent");
            let text = kept.take();
            let lines: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).expect(line))
                .collect();
            assert_eq!(lines.len(), 5, "{text}");
            let ts = lines[0]["ts"].as_f64().unwrap();
            assert!((before - 1.0..before + 60_000.0).contains(&ts), "{ts}");
            let caller = lines[0]["caller"].as_str().unwrap();
            assert!(caller.starts_with("src/logging.rs:"), "{caller}");
            assert_eq!(lines[0]["msg"], "Service default/web: \"served\"\nat last");
            assert_eq!(lines[1]["device"], "eth0");
            assert_eq!(lines[1]["count"], "3");
            assert_eq!(lines[2]["err"], "refused");
            let levels: Vec<_> = lines.iter().map(|line| line["v"].as_u64()).collect();
            assert_eq!(levels, [Some(1), Some(0), None, Some(4), Some(6)]);
            assert!(text.starts_with("{\"ts\":") && text.contains(",\"caller\":\"src/"));
        });
    }

    #[test]
    fn the_level_changes_while_the_program_runs() {
        log(Lines::Text, 2, |verbosity, kept| {
            let say = || {
                warn!("badly");
                info!("well");
                debug!("in detail");
                kept.take().lines().count()
            };
            assert_eq!(say(), 2);
            verbosity.set("4").unwrap();
            assert_eq!(say(), 3);
            verbosity.set("0").unwrap();
            assert_eq!(say(), 1);
            // As klog: a negative level logs as little as 0, and a large one everything.
            verbosity.set("99999").unwrap();
            assert_eq!(say(), 3);
            verbosity.set("-1").unwrap();
            assert_eq!(say(), 1);
            for text in ["", "four", "4 ", "99999999999999"] {
                assert_eq!(verbosity.set(text), Err(VerbosityError::NotANumber));
            }
            assert_eq!(say(), 1, "a refused level changes nothing");
        });
    }

    #[test]
    fn text_is_for_people() {
        log(Lines::Text, 2, |_, kept| {
            info!("served");
            let text = kept.take();
            assert!(text.ends_with(" INFO served\n"), "{text}");
        });
    }
}
