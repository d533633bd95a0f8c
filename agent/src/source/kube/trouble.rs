//! What can go wrong between the agent and an API server, in words.

use std::error::Error;
use std::time::Duration;

use kube::core::Status;

/// Why a list or a watch ended.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There was no HTTP answer.
    NoAnswer(kube::Error),
    /// An HTTP status that is an error, and when the server wants to be asked again.
    Refused(Box<Status>, Option<Duration>),
    /// The connection broke in the middle of an answer.
    Broken(kube::Error),
    /// Not a byte came for this long.
    Silent(Duration),
    /// The server ended a watch, as it does after a while.
    Closed,
    /// The server ended a watch and said why.
    ClosedWith(Box<Status>),
    /// What came is not what the API says.
    Unreadable(String),
    /// The versions of the objects went back: the cluster is another one, or came out of a backup.
    WentBack,
}

/// What is told once in an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sort {
    NoAnswer,
    Status(u16),
    End,
    Silence,
    Nonsense,
}

impl Trouble {
    /// Something that is not an answer of the API.
    pub(super) fn unreadable(error: impl ToString) -> Self {
        Self::Unreadable(error.to_string())
    }

    /// What makes two of them the same news.
    pub(super) fn sort(&self) -> Sort {
        match self {
            Self::NoAnswer(_) => Sort::NoAnswer,
            Self::Refused(status, _) | Self::ClosedWith(status) => Sort::Status(status.code),
            Self::Broken(_) | Self::Closed => Sort::End,
            Self::Silent(_) => Sort::Silence,
            Self::Unreadable(_) | Self::WentBack => Sort::Nonsense,
        }
    }

    /// When the server wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(_, after) => *after,
            Self::ClosedWith(status) => status_retry_after(status),
            _ => None,
        }
    }

    /// Whether the watch can go on where it ended. Else everything has to be listed: the server no longer knows what
    /// came since, may be another one, or something that it said is lost.
    pub(super) fn can_resume(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Silent(_) | Self::Closed => true,
            Self::Refused(status, _) => status.code != 410,
            Self::ClosedWith(status) => status.code == 429,
            // Whoever restores etcd from a backup stops every API server meanwhile. Otherwise nothing is lost by
            // this: an API server that comes back knows no history, and answers 410 to all who ask for it.
            Self::NoAnswer(_) => false,
            Self::Unreadable(_) | Self::WentBack => false,
        }
    }

    /// Whether it is the server's as a whole, and not that of one kind of object.
    pub(super) fn is_of_server(&self) -> bool {
        matches!(
            self.sort(),
            Sort::NoAnswer | Sort::Silence | Sort::Status(401)
        )
    }

    /// Whether a watch that worked is made anew at once after this.
    pub(super) fn is_ordinary(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Silent(_) | Self::Closed => true,
            Self::Unreadable(_) | Self::WentBack => true,
            Self::ClosedWith(_) | Self::NoAnswer(_) | Self::Refused(..) => false,
        }
    }

    /// Whether the server no longer knows what came since the version that it was asked for.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Refused(status, _) | Self::ClosedWith(status) => status.code == 410,
            _ => false,
        }
    }

    /// What went wrong with a kind of object, and what to do about it.
    pub(super) fn explain(&self, what: &str) -> String {
        match self {
            Self::NoAnswer(error) => explain(what, error),
            Self::Refused(status, _) => refused(what, status),
            Self::Broken(error) => {
                format!("the connection to the API server broke: {}", cause(error))
            }
            Self::Silent(silence) => {
                format!("the API server said nothing for {} s", silence.as_secs())
            }
            Self::Closed => "the API server ended the watch".to_owned(),
            Self::ClosedWith(status) => {
                format!("the API server ended the watch: {}", status.message)
            }
            Self::Unreadable(why) => format!("what came is not what an API server says: {why}"),
            Self::WentBack => "the versions of objects went back".to_owned(),
        }
    }
}

/// When a status says to ask again.
pub(super) fn status_retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// What went wrong, and what to do about it.
pub(super) fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => refused(what, status),
        error => format!("no answer from the API server: {}", cause(error)),
    }
}

fn refused(what: &str, status: &Status) -> String {
    let message = &status.message;
    match status.code {
        401 => format!(
            "the API server does not know the caller ({message}); check the token or certificate"
        ),
        403 => {
            format!("not allowed ({message}); grant the verbs list and watch on {what} to proxyd")
        }
        code => format!("the API server answered {code} ({message})"),
    }
}

/// Why it failed: the first cause. What libraries say on top of it tells of themselves.
fn cause(error: &dyn Error) -> String {
    let mut first = error;
    while let Some(cause) = first.source() {
        first = cause;
    }
    let text = first.to_string();
    let end = text.find(" (os error ").unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_is_told_without_what_libraries_say_of_it() {
        let refused = std::io::Error::from_raw_os_error(nix::errno::Errno::ECONNREFUSED as i32);
        let wrapped = std::io::Error::other(kube::Error::Service(Box::new(refused)));
        let error = kube::Error::Service(Box::new(wrapped));
        assert_eq!(
            explain("services", &error),
            "no answer from the API server: Connection refused"
        );
    }
}
