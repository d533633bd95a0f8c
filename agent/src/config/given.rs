//! A setting as somebody gave it, with the place where they did, so that what is wrong with it can be told there.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a setting was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// On the command line; the name without its dashes.
    Flag(&'static str),
    /// In the file of `--config`.
    Field {
        /// The file.
        file: Arc<Path>,
        /// The path of the field, as `conntrack.min`.
        field: &'static str,
    },
}

/// A setting and its place.
#[derive(Debug, Clone)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Why the configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting that cannot be used.
    #[error("invalid value {value:?} for {place}: {reason}")]
    Value {
        /// What was given.
        value: String,
        /// The flag, or the field and its file.
        place: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The file of `--config` cannot be used as a whole.
    #[error("--config {}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Field { file, field } => write!(f, "{field} in {}", file.display()),
        }
    }
}

impl Place {
    /// The error that a value from here cannot be used.
    pub(super) fn refuse(&self, value: impl ToString, reason: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            value: value.to_string(),
            place: self.to_string(),
            reason: reason.into(),
        }
    }
}

impl<T> Given<T> {
    /// A setting by flag.
    pub(super) fn flag(name: &'static str, value: T) -> Self {
        Self {
            value,
            place: Place::Flag(name),
        }
    }
}

impl<T: ToString> Given<T> {
    /// Turns the value into what it stands for.
    ///
    /// # Errors
    /// What `parse` says is wrong, and where.
    pub(super) fn parse<U>(
        &self,
        parse: impl FnOnce(&T) -> Result<U, String>,
    ) -> Result<U, ConfigError> {
        parse(&self.value).map_err(|reason| self.place.refuse(self.value.to_string(), reason))
    }
}

impl Given<Vec<String>> {
    /// Turns each value of a list into what it stands for.
    ///
    /// # Errors
    /// What `parse` says is wrong with the first bad one, and where.
    pub(super) fn parse_each<U>(
        &self,
        parse: impl Fn(&str) -> Result<U, String>,
    ) -> Result<Vec<U>, ConfigError> {
        let values = self.value.iter();
        values
            .map(|value| parse(value).map_err(|reason| self.place.refuse(value, reason)))
            .collect()
    }
}
