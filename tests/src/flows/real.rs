//! Makes the calls of a row for real, and holds what comes of them against the table.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::RangeInclusive;

use super::SILENCE;
use super::call::Call;
use super::cast::Cast;
use super::table::Expected;
use crate::traffic::{Answer, Failure, Protocol};
use crate::world::PATIENCE;

/// The fewest questions for a row that is answered, and the most, should one of the servers not turn up.
const QUESTIONS: RangeInclusive<usize> = 6..=80;

/// The source that servers should see.
#[derive(Clone, Copy)]
enum Source {
    /// That of the client.
    Own,
    /// That of the client, but of the node where a client reaches itself.
    OwnButHairpin,
    /// That of the node.
    Node,
}

/// How calls fail without any rules.
pub(super) type Untouched = BTreeMap<Call, Option<Failure>>;

/// What is wrong with a call that should come to this. `keeps_source`: nobody masquerades it, whatever the table says.
pub(super) fn check(
    cast: &Cast,
    call: &Call,
    (expected, keeps_source): (&Expected, bool),
    untouched: &Untouched,
) -> Result<(), String> {
    match expected {
        Expected::Answers {
            servers,
            masqueraded,
            one,
        } => {
            let source = if keeps_source {
                Source::Own
            } else if *masqueraded {
                Source::Node
            } else {
                Source::OwnButHairpin
            };
            let seen = ask_on(cast, call, source, |answered, count| {
                let all = servers.iter().all(|server| answered.contains(server));
                count >= *QUESTIONS.start() && (*one || all)
            })?;
            let known = seen.iter().all(|server| servers.contains(server));
            let enough = seen.len() == if *one { 1 } else { servers.len() };
            (known && enough)
                .then_some(())
                .ok_or_else(|| format!("answers of {}", seen.join(" ")))
        }
        Expected::Unserved => {
            let before = untouched[call];
            let now = call.make(cast, SILENCE).err();
            // The network's own word that nobody is there is lost now and then.
            let nobody = |failure: Failure| match failure {
                Failure::Other(ErrorKind::HostUnreachable) => Failure::TimedOut,
                other => other,
            };
            let same = now.is_some() && now.map(nobody) == before.map(nobody);
            same.then_some(())
                .ok_or_else(|| format!("{now:?}, and {before:?} without rules"))
        }
        Expected::Refused | Expected::Dropped => match (call.make(cast, SILENCE), expected) {
            (Err(Failure::Refused), Expected::Refused)
            | (Err(Failure::TimedOut), Expected::Dropped) => Ok(()),
            // A local socket hears of both from the kernel itself, before any packet leaves.
            (Err(Failure::Other(ErrorKind::PermissionDenied)), expected)
                if call.from == "node-1"
                    && (call.protocol == Protocol::Udp
                        || (call.protocol, expected) == (Protocol::Sctp, &Expected::Dropped)) =>
            {
                Ok(())
            }
            (found, _) => Err(format!("{found:?}")),
        },
    }
}

/// Asks until it is enough, and returns who answered, each once. Every one must have seen the right source.
fn ask_on(
    cast: &Cast,
    call: &Call,
    wanted: Source,
    enough: impl Fn(&[String], usize) -> bool,
) -> Result<Vec<String>, String> {
    let mut seen = Vec::new();
    for question in 1..=*QUESTIONS.end() {
        let answer = call.make(cast, PATIENCE);
        let answer = answer.map_err(|failure| failure.to_string())?;
        let Answer {
            server,
            seen: source,
        } = &answer;
        let name = server.split(':').next().unwrap_or_default();
        let is_node = match wanted {
            Source::Node => true,
            Source::OwnButHairpin => name == call.from,
            Source::Own => false,
        };
        let wanted = if is_node {
            cast.address("node-1", call.family())
        } else {
            call.source(cast)
        };
        if source.ip() != wanted {
            return Err(format!("{answer:?}"));
        }
        if !seen.contains(server) {
            seen.push(server.clone());
        }
        if enough(&seen, question) {
            break;
        }
    }
    seen.sort();
    Ok(seen)
}
