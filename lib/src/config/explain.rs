//! The HOCON parser's errors in our words.

use hocon::HoconError;

use super::error::{ConfigError, ErrorKind};

/// A fault in the text at a line.
pub(super) fn syntax(line: usize, found: &str, expected: &str) -> ConfigError {
    ConfigError {
        line: Some(line),
        ..ConfigError::new(ErrorKind::Syntax, "", found, expected)
    }
}

/// The parser's error in our words. Its own may quote the file, and with it a password.
pub(super) fn explain(error: HoconError) -> ConfigError {
    let (message, line) = match &error {
        HoconError::Parse(error) => (error.message.as_str(), error.line),
        HoconError::Resolve(error) => (error.message.as_str(), error.line),
        HoconError::Config(_) => return syntax(1, "a list around everything", "keys and values"),
        _ => ("", 0),
    };
    let (found, expected) = EXPLANATIONS
        .iter()
        .find(|(beginning, ..)| message.starts_with(beginning))
        .map_or(
            ("text that is not HOCON", "HOCON"),
            |(_, found, expected)| (found, expected),
        );
    ConfigError {
        line: (line > 0).then_some(line),
        ..ConfigError::new(ErrorKind::Syntax, "", found, expected)
    }
}

/// How the parser's messages begin, and what they are called here.
const EXPLANATIONS: [(&str, &str, &str); 14] = [
    (
        "unterminated string",
        "a string that does not end on its line",
        "a closing \"",
    ),
    (
        "unterminated triple-quoted",
        "a \"\"\" string without end",
        "a closing \"\"\"",
    ),
    (
        "unterminated substitution",
        "a substitution without end",
        "a closing }",
    ),
    (
        "invalid escape",
        "an unknown escape in a quoted string",
        "one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u",
    ),
    (
        "invalid unicode",
        "a bad \\u escape",
        "\\u and four hexadecimal digits of a character",
    ),
    (
        "unexpected character",
        "a character that an unquoted value cannot hold",
        "quotes around the value",
    ),
    ("expected value", "no value", "a value behind the key"),
    ("expected key", "no key", "a key"),
    (
        "unexpected token after key",
        "a key without a value",
        "= or { behind the key",
    ),
    (
        "could not resolve substitution",
        "a ${...} of something that is not defined",
        "a path in this file or an environment variable; ${?...} may be undefined",
    ),
    (
        "circular substitution",
        "substitutions that read each other",
        "no circle",
    ),
    (
        "value concatenation",
        "values of different types side by side",
        "one value, or values of one type",
    ),
    ("expected ]", "a list without end", "a closing ]"),
    ("expected }", "a map without end", "a closing }"),
];
