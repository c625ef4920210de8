//! The tree that every source of configuration is brought to before it is validated.

use std::fmt;

/// How deep a source of trees may nest them. Validation does not recurse, but dropping does.
pub const MAX_DEPTH: usize = 64;

/// An untyped configuration value. A HOCON file, an Erlang map and `sys.config` all become this.
///
/// `Debug` shows keys and types alone, since any string might be a secret.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// Not set: the key's default holds.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Any other number. No key takes one; it is here to be refused by name.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes that are not UTF-8. Only a password may be that.
    Bytes(Vec<u8>),
    /// A list.
    Array(Vec<Value>),
    /// Keys and values in the order written. A key that stands twice is refused, not merged.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// What this is, without what it holds: safe to show even for a secret.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Str(_) => "a string",
            Value::Bytes(_) => "bytes that are not UTF-8",
            Value::Array(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The value at `key`, when this is a map that holds it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(pairs) => pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.to_owned())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Map(pairs) => f
                .debug_map()
                .entries(pairs.iter().map(|(key, value)| (key, value)))
                .finish(),
            Value::Array(items) => f.debug_list().entries(items).finish(),
            other => f.write_str(other.type_name()),
        }
    }
}
