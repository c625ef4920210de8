//! What is wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// The kinds of fault, as a closed union that a caller can match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A key that no section has.
    UnknownKey,
    /// A key that stands twice in one map.
    DuplicateKey,
    /// A value of another type than the key takes.
    WrongType,
    /// A value of the right type that is out of range or malformed.
    BadValue,
    /// A key that the other keys make necessary.
    Missing,
    /// Keys that cannot stand together.
    Conflict,
    /// A file that could not be read: the configuration itself, a password's, a certificate's.
    Unreadable,
    /// Text that is not HOCON, or HOCON that is refused.
    Syntax,
}

impl ErrorKind {
    /// The kind's name in snake case, as the Erlang side shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::UnknownKey => "unknown_key",
            ErrorKind::DuplicateKey => "duplicate_key",
            ErrorKind::WrongType => "wrong_type",
            ErrorKind::BadValue => "bad_value",
            ErrorKind::Missing => "missing",
            ErrorKind::Conflict => "conflict",
            ErrorKind::Unreadable => "unreadable",
            ErrorKind::Syntax => "syntax",
        }
    }
}

/// One fault: where, what was found there and what was expected. No field ever holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The kind of fault.
    pub kind: ErrorKind,
    /// The key's path below `redis_storage`, such as `redis.servers`; empty for the file itself.
    pub path: String,
    /// What was found, short.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// The file, where the configuration came from one.
    pub file: Option<PathBuf>,
    /// The line in that file, counted from 1, where known.
    pub line: Option<usize>,
}

impl ConfigError {
    pub(crate) fn new(
        kind: ErrorKind,
        path: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        ConfigError {
            kind,
            path: path.into(),
            found: found.into(),
            expected: expected.into(),
            file: None,
            line: None,
        }
    }
}

impl fmt::Display for ConfigError {
    /// `FILE:LINE: PATH: found X, expected Y`, without the parts that are not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

impl std::error::Error for ConfigError {}
