//! How safe a write must be before it counts as done: the key `persistence.durability`.

use std::fmt;

use super::section::{quote, Fault};
use super::text;
use super::value::Value;

/// More replicas than anybody has of one master.
const MOST_REPLICAS: u32 = 100;

/// What a write waits for. `Display` gives the text that the configuration takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum Durability {
    /// The server's answer.
    #[default]
    None,
    /// That so many replicas, 1 to 100, have received it: WAIT.
    Replicas(u32),
    /// That append-only files hold it: WAITAOF. Not both are 0.
    Aof {
        /// 1 for the server's own file, 0 without it.
        local: u32,
        /// How many replicas' files, 0 to 100.
        replicas: u32,
    },
}

impl Durability {
    /// What [`Durability::parse`] takes, for errors.
    pub const EXPECTED: &'static str =
        "none, replicas:N (N from 1 to 100) or aof:L:R (L 0 or 1, R from 0 to 100, not both 0)";

    /// How many replicas it takes, where it takes any.
    pub fn replicas(self) -> Option<u32> {
        match self {
            Durability::None => None,
            Durability::Replicas(replicas) | Durability::Aof { replicas, .. } => Some(replicas),
        }
    }

    /// The level that `none`, `replicas:N` or `aof:L:R` names; `None` for any other text.
    pub fn parse(text: &str) -> Option<Durability> {
        if text == "none" {
            return Some(Durability::None);
        }
        let (level, numbers) = text.split_once(':')?;
        match (level, numbers.split_once(':')) {
            ("replicas", None) => match number(numbers)? {
                0 => None,
                replicas => Some(Durability::Replicas(replicas)),
            },
            ("aof", Some((local, replicas))) => match (number(local)?, number(replicas)?) {
                (0, 0) | (2.., _) => None,
                (local, replicas) => Some(Durability::Aof { local, replicas }),
            },
            _ => None,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Durability::None => f.write_str("none"),
            Durability::Replicas(replicas) => write!(f, "replicas:{replicas}"),
            Durability::Aof { local, replicas } => write!(f, "aof:{local}:{replicas}"),
        }
    }
}

pub(super) fn durability(value: &Value) -> Result<Durability, Fault> {
    let text = text::string(value, Durability::EXPECTED)?;
    Durability::parse(text).ok_or_else(|| Fault::bad(quote(text), Durability::EXPECTED))
}

fn number(digits: &str) -> Option<u32> {
    let is_plain = digits == "0" || digits.starts_with(|c: char| matches!(c, '1'..='9'));
    let number = digits.parse().ok().filter(|_| is_plain)?;
    (number <= MOST_REPLICAS).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_read_as_they_print() {
        let aof = |local, replicas| Durability::Aof { local, replicas };
        for (text, level) in [
            ("none", Durability::None),
            ("replicas:1", Durability::Replicas(1)),
            ("replicas:100", Durability::Replicas(100)),
            ("aof:1:0", aof(1, 0)),
            ("aof:0:2", aof(0, 2)),
            ("aof:1:100", aof(1, 100)),
        ] {
            assert_eq!(Durability::parse(text), Some(level));
            assert_eq!(level.to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_no_level() {
        for text in [
            "",
            "None",
            "replicas",
            "replicas:",
            "replicas:0",
            "replicas:01",
            "replicas:101",
            "replicas:+1",
            "replicas:1:1",
            "replicas:4294967297",
            "aof",
            "aof:1",
            "aof:0:0",
            "aof:2:0",
            "aof:1:101",
            "aof:1:1:1",
            "aof:-1:1",
            " none",
        ] {
            assert_eq!(Durability::parse(text), None, "{text:?}");
        }
    }
}
