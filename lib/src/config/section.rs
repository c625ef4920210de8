//! Reading one map of the tree: which keys it may hold, and what went wrong with each.

use std::path::Path;

use super::error::{ConfigError, ErrorKind};
use super::suggest::nearest;
use super::value::Value;

/// A fault in one value; its path is added by the [`Section`] that reads it.
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) found: String,
    pub(super) expected: String,
}

impl Fault {
    pub(super) fn new(
        kind: ErrorKind,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Fault {
            kind,
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// A value of another type. It names the type alone, so it is safe for secrets.
    pub(super) fn wrong_type(value: &Value, expected: impl Into<String>) -> Self {
        Fault::new(ErrorKind::WrongType, value.type_name(), expected)
    }

    /// A value of the right type that is out of range or malformed. Never for secrets.
    pub(super) fn bad(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Fault::new(ErrorKind::BadValue, found, expected)
    }
}

/// `text` quoted, escaped and cut to a length that fits a log line.
pub(super) fn quote(text: &str) -> String {
    quote_up_to(60, text)
}

/// A file's path quoted: whole, as its end says most, unless it is no path at all.
pub(super) fn quote_path(path: &Path) -> String {
    quote_up_to(1024, &path.display().to_string())
}

fn quote_up_to(longest: usize, text: &str) -> String {
    match text.char_indices().nth(longest) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// One map while it is read. Every key that is asked for is thereby known; [`Section::finish`]
/// refuses the others.
pub(super) struct Section<'a> {
    path: String,
    pairs: &'a [(String, Value)],
    asked: Vec<&'static str>,
    errors: Vec<ConfigError>,
}

impl<'a> Section<'a> {
    /// The map `value` at `path`; `None` and null are a map without keys.
    pub(super) fn new(path: impl Into<String>, value: Option<&'a Value>) -> Self {
        let mut section = Section {
            path: path.into(),
            pairs: &[],
            asked: Vec::new(),
            errors: Vec::new(),
        };
        match value {
            None | Some(Value::Null) => {}
            Some(Value::Map(pairs)) => section.pairs = pairs,
            Some(other) => section.errors.push(ConfigError::new(
                ErrorKind::WrongType,
                section.path.clone(),
                other.type_name(),
                "a map of keys",
            )),
        }
        section
    }

    /// The value at `key`; null is as good as not set.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        let (_, value) = self.pairs.iter().find(|(k, _)| k == key)?;
        (*value != Value::Null).then_some(value)
    }

    /// The section below `key`.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let value = self.value(key);
        Section::new(self.path_of(key), value)
    }

    /// The value at `key` as `parse` understands it, or `default` where it is not set. `None` says
    /// that it is faulty, which has then been reported.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Value) -> Result<T, Fault>,
    ) -> Option<T> {
        match self.value(key).map(parse) {
            None => Some(default),
            Some(Ok(parsed)) => Some(parsed),
            Some(Err(fault)) => {
                self.report(key, fault);
                None
            }
        }
    }

    /// Reports a fault at `key`, which may carry an index: `servers[1]`.
    pub(super) fn report(&mut self, key: &str, fault: Fault) {
        let path = self.path_of(key);
        self.errors.push(ConfigError::new(
            fault.kind,
            path,
            fault.found,
            fault.expected,
        ));
    }

    /// What went wrong in this map, unknown keys and keys that stand twice included.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        let mut seen: Vec<&str> = Vec::new();
        for (key, _) in self.pairs {
            if !self.asked.contains(&key.as_str()) {
                let fault = self.unknown(key);
                self.report(&printable(key), fault);
            } else if seen.contains(&key.as_str()) {
                let fault = Fault::new(ErrorKind::DuplicateKey, "the key twice", "each key once");
                self.report(key, fault);
            } else {
                seen.push(key);
            }
        }
        self.errors
    }

    fn unknown(&self, key: &str) -> Fault {
        let expected = match nearest(key, &self.asked) {
            Some(known) => format!("a known key: did you mean {known}?"),
            None => format!("one of {}", self.asked.join(", ")),
        };
        Fault::new(ErrorKind::UnknownKey, "an unknown key", expected)
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }
}

/// A key as it may stand in a path: short and without control characters.
fn printable(key: &str) -> String {
    key.chars().take(60).flat_map(char::escape_debug).collect()
}
