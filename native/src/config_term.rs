//! The configuration from and to terms.

use emqx_redis_core::config::{ConfigError, Value};
use rustler::types::map::MapIterator;
use rustler::{Binary, Encoder, Env, ListIterator, Term, TermType};

use crate::atoms;
use crate::error_term::binary;

/// Deeper than any configuration is.
const MAX_DEPTH: usize = 16;

/// A term as a tree. What has no place in a configuration becomes text that no key takes.
pub(crate) fn decode(term: Term<'_>) -> Value {
    decode_at(term, 0)
}

fn decode_at(term: Term<'_>, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Str("…".into());
    }
    match term.get_type() {
        TermType::Atom => match term.atom_to_string() {
            Ok(name) if name == "true" => Value::Bool(true),
            Ok(name) if name == "false" => Value::Bool(false),
            Ok(name) if name == "undefined" => Value::Null,
            Ok(name) => Value::Str(name),
            Err(_) => Value::Str("an atom".into()),
        },
        TermType::Binary => match term.decode::<Binary<'_>>() {
            Ok(bytes) => match String::from_utf8(bytes.to_vec()) {
                Ok(text) => Value::Str(text),
                Err(_) => Value::Bytes(bytes.to_vec()),
            },
            Err(_) => Value::Str("a bitstring".into()),
        },
        TermType::Integer => match term.decode() {
            Ok(value) => Value::Int(value),
            Err(_) => Value::Float(f64::INFINITY),
        },
        TermType::Float => term.decode().map_or(Value::Null, Value::Float),
        TermType::List => decode_list(term, depth),
        TermType::Map => match MapIterator::new(term) {
            Some(pairs) => Value::Map(
                pairs
                    .map(|(key, value)| (decode_key(key), decode_at(value, depth + 1)))
                    .collect(),
            ),
            None => Value::Null,
        },
        TermType::Tuple => decode_tuple(term),
        _ => Value::Str("a term that no configuration holds".into()),
    }
}

/// Text may come as a list of characters: a list of integers is taken for one, the empty list too.
fn decode_list(term: Term<'_>, depth: usize) -> Value {
    let Ok(elements) = term.decode::<ListIterator<'_>>() else {
        return Value::Str("an improper list".into());
    };
    let elements: Vec<Term<'_>> = elements.collect();
    let text: Option<String> = elements
        .iter()
        .map(|it| it.decode::<u32>().ok().and_then(char::from_u32))
        .collect();
    match text {
        Some(text) => Value::Str(text),
        _ => Value::Array(
            elements
                .into_iter()
                .map(|it| decode_at(it, depth + 1))
                .collect(),
        ),
    }
}

/// A tuple of a word and numbers, as levels of durability are: `{aof, 1, 0}` becomes `aof:1:0`.
fn decode_tuple(term: Term<'_>) -> Value {
    let words: Option<Vec<String>> = rustler::types::tuple::get_tuple(term)
        .unwrap_or_default()
        .into_iter()
        .map(|element| match element.get_type() {
            TermType::Atom => element.atom_to_string().ok(),
            TermType::Integer => element.decode::<i64>().ok().map(|it| it.to_string()),
            _ => None,
        })
        .collect();
    match words {
        Some(words) if (2..=3).contains(&words.len()) => Value::Str(words.join(":")),
        _ => Value::Str("a tuple that no configuration holds".into()),
    }
}

fn decode_key(term: Term<'_>) -> String {
    match decode_at(term, 0) {
        Value::Str(name) => name,
        Value::Bool(name) => name.to_string(),
        Value::Int(name) => name.to_string(),
        Value::Null => "undefined".into(),
        other => other.type_name().into(),
    }
}

/// A tree as a term: keys are atoms where they are known ones, text is binaries.
pub(crate) fn encode<'a>(env: Env<'a>, value: &Value) -> Term<'a> {
    match value {
        Value::Null => atoms::undefined().to_term(env),
        Value::Bool(value) => value.encode(env),
        Value::Int(value) => value.encode(env),
        Value::Float(value) => value.encode(env),
        Value::Str(text) => binary(env, text.as_bytes()),
        Value::Bytes(bytes) => binary(env, bytes),
        Value::Array(elements) => {
            let elements: Vec<Term<'a>> = elements.iter().map(|it| encode(env, it)).collect();
            elements.encode(env)
        }
        Value::Map(pairs) => pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
            // The keys are those of the schema, so that only a fixed number of atoms is made.
            match rustler::Atom::from_str(env, key) {
                Ok(key) => map.map_put(key, encode(env, value)).unwrap_or(map),
                Err(_) => map,
            }
        }),
    }
}

/// `{error, {invalid_config, [#{kind, path, found, expected, file => .., line => ..}]}}`
pub(crate) fn encode_errors<'a>(env: Env<'a>, errors: &[ConfigError]) -> Term<'a> {
    let errors: Vec<Term<'a>> = errors
        .iter()
        .map(|error| encode_config_error(env, error))
        .collect();
    (atoms::error(), (atoms::invalid_config(), errors)).encode(env)
}

fn encode_config_error<'a>(env: Env<'a>, error: &ConfigError) -> Term<'a> {
    let mut pairs = vec![
        ("kind".to_owned(), Value::Null),
        ("path".to_owned(), Value::Str(error.path.clone())),
        ("found".to_owned(), Value::Str(error.found.clone())),
        ("expected".to_owned(), Value::Str(error.expected.clone())),
    ];
    if let Some(file) = &error.file {
        pairs.push(("file".to_owned(), Value::Str(file.display().to_string())));
    }
    if let Some(line) = error.line {
        pairs.push(("line".to_owned(), Value::Int(line as i64)));
    }
    let map = encode(env, &Value::Map(pairs));
    let kind = rustler::Atom::from_str(env, error.kind.as_str());
    match (rustler::Atom::from_str(env, "kind"), kind) {
        (Ok(key), Ok(kind)) => map.map_put(key, kind).unwrap_or(map),
        _ => map,
    }
}

/// A key that can't change while the storage runs.
pub(crate) fn encode_unchangeable<'a>(env: Env<'a>, path: &str) -> Term<'a> {
    let map = encode(
        env,
        &Value::Map(vec![
            ("path".into(), Value::Str(path.into())),
            (
                "found".into(),
                Value::Str("another value than the running storage has".into()),
            ),
            (
                "expected".into(),
                Value::Str("the same value, or a stop and a start".into()),
            ),
        ]),
    );
    let map = match (
        rustler::Atom::from_str(env, "kind"),
        rustler::Atom::from_str(env, "unchangeable"),
    ) {
        (Ok(key), Ok(kind)) => map.map_put(key, kind).unwrap_or(map),
        _ => map,
    };
    (atoms::error(), (atoms::invalid_config(), vec![map])).encode(env)
}
