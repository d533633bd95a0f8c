//! What an operator should know of the settings, with the level at which it matters.

use std::fmt;

use tracing::{Level, debug, info, warn};

/// Something that an operator should know of the settings: one without effect, or with less than they may think.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    level: Level,
    text: String,
}

impl Note {
    /// Something that is probably not as it was meant.
    pub(super) fn warn(text: String) -> Self {
        let level = Level::WARN;
        Self { level, text }
    }

    /// Something that is as it was meant, and good to know.
    pub(super) fn info(text: String) -> Self {
        let level = Level::INFO;
        Self { level, text }
    }

    /// Something that changes nothing.
    pub(super) fn debug(text: String) -> Self {
        let level = Level::DEBUG;
        Self { level, text }
    }

    /// Writes it to the log.
    pub fn log(&self) {
        match self.level {
            Level::WARN => warn!("{}", self.text),
            Level::INFO => info!("{}", self.text),
            _ => debug!("{}", self.text),
        }
    }

    #[cfg(test)]
    pub(super) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        let text = change(self.text);
        Self { text, ..self }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// With its level before it, as in a log.
#[cfg(test)]
impl PartialEq<&str> for Note {
    fn eq(&self, other: &&str) -> bool {
        format!("{} {}", self.level, self.text) == **other
    }
}
