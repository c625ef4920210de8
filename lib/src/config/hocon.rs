//! HOCON text to the tree.
//!
//! The parser is the crate `hocon-parser`; `scan` stands in front of it. What is refused, and why,
//! is in `docs/configuration.md`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread;

use hocon::{HoconValue, ScalarType};

use super::error::{ConfigError, ErrorKind};
use super::explain::{explain, syntax};
use super::scan::{scan, Outline, Refused};
use super::validate::{KEYS, ROOT};
use super::value::{Value, MAX_DEPTH};
use super::Config;

/// Ample for a file of some thirty keys.
const LONGEST_FILE: usize = 64 * 1024;

/// The parser recurses, and a caller's stack may be small: BEAM's dirty schedulers have 320 KB.
const PARSER_STACK: usize = 8 * 1024 * 1024;

impl Config {
    /// Reads, parses and validates a HOCON file.
    ///
    /// # Errors
    /// One error where the file cannot be read or parsed, otherwise all those of
    /// [`Config::from_value`]; each with the file, and with the line where it is known.
    pub fn load_file(path: impl AsRef<Path>) -> Result<Config, Vec<ConfigError>> {
        let path = path.as_ref();
        let loaded = match read_file(path) {
            Ok(bytes) => parse_bytes(&bytes),
            Err(error) => Err(vec![ConfigError::new(
                ErrorKind::Unreadable,
                "",
                format!("a file that cannot be read: {error}"),
                "a readable HOCON file",
            )]),
        };
        loaded.map_err(|mut errors| {
            for error in &mut errors {
                error.file = Some(path.to_owned());
            }
            errors
        })
    }

    /// Parses and validates HOCON text.
    ///
    /// # Errors
    /// As [`Config::load_file`], without the file.
    pub fn from_hocon(text: &str) -> Result<Config, Vec<ConfigError>> {
        let (tree, outline) = parse(text).map_err(|error| vec![error])?;
        Config::from_value(&tree).map_err(|mut errors| {
            for error in &mut errors {
                error.line = line_of(&outline, &error.path);
            }
            errors
        })
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LONGEST_FILE as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse_bytes(bytes: &[u8]) -> Result<Config, Vec<ConfigError>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Config::from_hocon(text),
        Err(_) if bytes.len() > LONGEST_FILE => Err(vec![too_long()]),
        Err(error) => {
            let line = bytes[..error.valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            Err(vec![syntax(line, "bytes that are not UTF-8", "UTF-8 text")])
        }
    }
}

/// Parses `text` to a tree, without the variables that only its substitutions use.
fn parse(text: &str) -> Result<(Value, Outline), ConfigError> {
    if text.len() > LONGEST_FILE {
        return Err(too_long());
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let broken = || {
        ConfigError::new(
            ErrorKind::Syntax,
            "",
            "text that breaks the parser",
            "HOCON",
        )
    };
    thread::scope(|scope| {
        thread::Builder::new()
            .name("emqx_redis_hocon".to_owned())
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, || parse_here(text))
            .map_err(|error| {
                let found = format!("no thread to parse in: {error}");
                ConfigError::new(ErrorKind::Unreadable, "", found, "a thread")
            })?
            .join()
            .unwrap_or_else(|_| Err(broken()))
    })
}

fn parse_here(text: &str) -> Result<(Value, Outline), ConfigError> {
    let tokens = hocon::tokenize(text).map_err(|error| explain(error.into()))?;
    let outline = scan(text, &tokens).map_err(
        |Refused {
             line,
             found,
             expected,
         }| syntax(line, found, expected),
    )?;
    let parsed = hocon::parse(text).map_err(explain)?;
    let pairs = parsed
        .keys()
        .into_iter()
        .filter(|key| KEYS.contains(key) || !outline.variables.contains(*key))
        .map(|key| {
            // A key that is more than a word would have to be quoted for `get`. None of ours is,
            // so that its value is of no interest: the key itself is refused.
            let word = key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let value = parsed.get(key).filter(|_| word);
            Ok((
                key.to_owned(),
                value.map_or(Ok(Value::Null), |value| convert(value, 1))?,
            ))
        })
        .collect::<Result<_, ConfigError>>()?;
    Ok((Value::Map(pairs), outline))
}

fn convert(value: &HoconValue, depth: usize) -> Result<Value, ConfigError> {
    if depth > MAX_DEPTH {
        return Err(ConfigError::new(
            ErrorKind::Syntax,
            "",
            "values nested too deep",
            "at most 64 levels",
        ));
    }
    Ok(match value {
        HoconValue::Object(fields) => Value::Map(
            fields
                .iter()
                .map(|(key, value)| Ok((key.clone(), convert(value, depth + 1)?)))
                .collect::<Result<_, ConfigError>>()?,
        ),
        HoconValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| convert(item, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        HoconValue::Scalar(scalar) => match scalar.value_type {
            ScalarType::Null => Value::Null,
            ScalarType::Boolean => Value::Bool(scalar.raw == "true"),
            ScalarType::String => Value::Str(scalar.raw.clone()),
            ScalarType::Number => number(&scalar.raw),
            _ => return Err(unknown_value()),
        },
        _ => return Err(unknown_value()),
    })
}

/// The parser's types are open: a kind of value that a later one may bring is refused.
fn unknown_value() -> ConfigError {
    ConfigError::new(ErrorKind::Syntax, "", "an unknown kind of value", "HOCON")
}

/// A number as written. One with a leading zero stays text, so that a key that takes an integer
/// refuses it: `010` might mean eight.
fn number(raw: &str) -> Value {
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    if digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Value::Str(raw.to_owned());
    }
    match raw.parse() {
        Ok(integer) => Value::Int(integer),
        Err(_) => Value::Float(raw.parse().unwrap_or(f64::NAN)),
    }
}

fn line_of(outline: &Outline, path: &str) -> Option<usize> {
    let key = path.split('[').next().unwrap_or(path);
    let line = |path: &str| outline.lines.get(path).copied();
    line(&format!("{ROOT}.{key}")).or_else(|| line(key))
}

fn too_long() -> ConfigError {
    ConfigError::new(ErrorKind::Syntax, "", "more than 64 KB", "at most 64 KB")
}
