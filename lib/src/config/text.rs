//! Text: names, paths, the prefix of keys.

use std::path::PathBuf;

use super::section::{quote, Fault};
use super::value::Value;

/// What the data layout's keys begin with. None may stand in a prefix: were `session:` one, then
/// client `session:x` without a prefix and client `x` behind it would share a key. As long as none
/// does, the keys of any two different prefixes are disjoint.
const KEY_FAMILIES: [&str; 11] = [
    "session:", "msg:", "msgq:", "sent:", "epoch:", "sync:", "expiry:", "route:", "trie:", "psub:",
    "meta:",
];

const LONGEST_PREFIX: usize = 256;

/// Any text, as it stands.
pub(super) fn string<'a>(value: &'a Value, expected: &str) -> Result<&'a str, Fault> {
    match value {
        Value::Str(text) => Ok(text),
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
            Err(Fault::wrong_type(value, format!("{expected}, in quotes")))
        }
        other => Err(Fault::wrong_type(other, expected)),
    }
}

/// The name under which sentinels know a master, by the rule of Sentinel itself; empty is none.
pub(super) fn master_name(value: &Value) -> Result<Option<String>, Fault> {
    const EXPECTED: &str = "a master's name of letters, digits, '.', '-' and '_'";
    let name = string(value, EXPECTED)?;
    if name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    {
        Ok(non_empty(name))
    } else {
        Err(Fault::bad(quote(name), EXPECTED))
    }
}

/// An ACL user's name, by the rule of Redis; empty is none.
pub(super) fn user_name(value: &Value) -> Result<Option<String>, Fault> {
    const EXPECTED: &str = "a user's name without spaces or control characters";
    let name = string(value, EXPECTED)?;
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Err(Fault::bad(quote(name), EXPECTED))
    } else {
        Ok(non_empty(name))
    }
}

/// A file's path; empty is none.
pub(super) fn path(value: &Value) -> Result<Option<PathBuf>, Fault> {
    const EXPECTED: &str = "a file's path";
    let text = string(value, EXPECTED)?;
    if text.contains('\0') {
        Err(Fault::bad(quote(text), EXPECTED))
    } else {
        Ok(non_empty(text).map(PathBuf::from))
    }
}

/// What stands before every key. Braces would move the keys' hash tags, the characters of glob
/// patterns would make `P*` in an ACL rule or SCAN match more than the prefix, and white space and
/// control characters cannot be seen or typed.
pub(super) fn key_prefix(value: &Value) -> Result<String, Fault> {
    const EXPECTED: &str =
        "at most 256 bytes without white space, control characters and any of { } * ? [ ] \\ ^";
    let prefix = string(value, EXPECTED)?;
    let illegal = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '{' | '}' | '*' | '?' | '[' | ']' | '\\' | '^')
    };
    if prefix.len() > LONGEST_PREFIX || prefix.contains(illegal) {
        return Err(Fault::bad(quote(prefix), EXPECTED));
    }
    if let Some(family) = KEY_FAMILIES.iter().find(|family| prefix.contains(**family)) {
        let expected = format!("a prefix without {family:?}, which begins keys of the data itself");
        return Err(Fault::bad(quote(prefix), expected));
    }
    Ok(prefix.to_owned())
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
