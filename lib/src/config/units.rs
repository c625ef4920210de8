//! Numbers with units: times, times to live, byte sizes.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::section::{quote, Fault};
use super::value::Value;
use super::Ttl;

/// Milliseconds of each unit of time, in the order in which a duration names them.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Bytes of each unit of size. KB is 1,024 bytes, as in EMQX and in Redis's own configuration.
const SIZE_UNITS: [(&str, u64); 5] = [
    ("TB", 1 << 40),
    ("GB", 1 << 30),
    ("MB", 1 << 20),
    ("KB", 1 << 10),
    ("B", 1),
];

const DURATION_FORM: &str =
    "numbers with the units d, h, m, s, ms in this order, such as \"1h30m\"";
const TTL_FORM: &str = "1 to 4294967295 seconds, as an integer or such as \"24h\", or \"infinity\"";

/// `true` or `false`, also as text: what comes from an environment variable is always text.
pub(super) fn boolean(value: &Value) -> Result<bool, Fault> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Str(text) if text == "true" => Ok(true),
        Value::Str(text) if text == "false" => Ok(false),
        Value::Str(text) => Err(Fault::bad(quote(text), "true or false")),
        other => Err(Fault::wrong_type(other, "true or false")),
    }
}

/// An integer in `range`, also as text.
pub(super) fn integer(value: &Value, range: RangeInclusive<u64>) -> Result<u64, Fault> {
    let expected = || format!("an integer from {} to {}", range.start(), range.end());
    let number = match value {
        Value::Int(number) => {
            u64::try_from(*number).map_err(|_| Fault::bad(number.to_string(), expected()))?
        }
        Value::Str(text) => digits(text).ok_or_else(|| Fault::bad(quote(text), expected()))?,
        other => return Err(Fault::wrong_type(other, expected())),
    };
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(Fault::bad(number.to_string(), expected()))
    }
}

/// A time: text with units, or an integer that counts milliseconds.
pub(super) fn timeout(value: &Value, range: RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let expected = || {
        format!(
            "{} to {}: milliseconds as an integer, or {DURATION_FORM}",
            format_duration(*range.start()),
            format_duration(*range.end())
        )
    };
    let (found, millis) = match value {
        Value::Int(number) => (number.to_string(), u64::try_from(*number).ok()),
        Value::Str(text) => (quote(text), digits(text).or_else(|| parse_duration(text))),
        other => return Err(Fault::wrong_type(other, expected())),
    };
    millis
        .map(Duration::from_millis)
        .filter(|duration| range.contains(duration))
        .ok_or_else(|| Fault::bad(found, expected()))
}

/// A time to live: text with units, an integer that counts seconds, or `infinity`.
pub(super) fn ttl(value: &Value) -> Result<Ttl, Fault> {
    let (found, seconds) = match value {
        Value::Int(number) => (number.to_string(), u64::try_from(*number).ok()),
        Value::Str(text) if text == "infinity" => return Ok(Ttl::Infinity),
        Value::Str(text) => (quote(text), digits(text).or_else(|| whole_seconds(text))),
        other => return Err(Fault::wrong_type(other, TTL_FORM)),
    };
    match seconds.and_then(|seconds| u32::try_from(seconds).ok()) {
        None | Some(0) => Err(Fault::bad(found, TTL_FORM)),
        Some(seconds) => Ok(Ttl::Seconds(seconds)),
    }
}

/// A size: text with a unit, or an integer that counts bytes.
pub(super) fn byte_size(value: &Value, range: RangeInclusive<u64>) -> Result<u64, Fault> {
    let expected = || {
        format!(
            "{} to {}: bytes as an integer, or a number with B, KB, MB, GB or TB, such as \"128MB\"",
            format_size(*range.start()),
            format_size(*range.end())
        )
    };
    let (found, bytes) = match value {
        Value::Int(number) => (number.to_string(), u64::try_from(*number).ok()),
        Value::Str(text) => (quote(text), digits(text).or_else(|| parse_size(text))),
        other => return Err(Fault::wrong_type(other, expected())),
    };
    bytes
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| Fault::bad(found, expected()))
}

/// A decimal integer without sign, space or leading zero (`010` might have been meant as octal).
fn digits(text: &str) -> Option<u64> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Milliseconds of `1h30m`, `5s`, `1m 30s`.
fn parse_duration(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut units = TIME_UNITS.iter();
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit());
        let (name, after) = split(after.trim_start(), |c| c.is_ascii_alphabetic());
        // `units` goes on behind the unit found, so none stands twice or after a smaller one.
        let (_, factor) = units.find(|(unit, _)| *unit == name)?;
        millis = millis.checked_add(digits(number)?.checked_mul(*factor)?)?;
        rest = after.trim_start();
    }
    (!text.trim().is_empty()).then_some(millis)
}

fn whole_seconds(text: &str) -> Option<u64> {
    parse_duration(text)
        .filter(|millis| millis % 1000 == 0)
        .map(|millis| millis / 1000)
}

/// Bytes of `128MB`. A unit is in capitals or in small letters; `kB` is refused, since HOCON means
/// 1,000 by it.
fn parse_size(text: &str) -> Option<u64> {
    let (number, name) = split(text.trim(), |c| c.is_ascii_digit());
    let name = name.trim_start();
    let (_, factor) = SIZE_UNITS
        .iter()
        .find(|(unit, _)| *unit == name || unit.to_ascii_lowercase() == name)?;
    digits(number)?.checked_mul(*factor)
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// A duration as the configuration takes it: `1h30m`.
pub(super) fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    // Days are left out: "24h" is how a day is usually written.
    for (unit, factor) in &TIME_UNITS[1..] {
        let count = rest / factor;
        rest %= factor;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

/// A size as the configuration takes it, in the greatest unit that divides it: `128MB`.
pub(super) fn format_size(bytes: u64) -> String {
    let (unit, factor) = SIZE_UNITS
        .iter()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_numbers_with_descending_units() {
        for (text, millis) in [
            ("5s", 5000),
            ("1500ms", 1500),
            ("24h", 86_400_000),
            ("24 h", 86_400_000),
            ("1h30m", 5_400_000),
            ("1d 2h 3m 4s 5ms", 93_784_005),
            (" 2m ", 120_000),
        ] {
            assert_eq!(parse_duration(text), Some(millis), "{text}");
        }
        for text in [
            "",
            " ",
            "s",
            "5",
            "5x",
            "5S",
            "1.5h",
            "-5s",
            "5s5s",
            "30m1h",
            "1h30",
            "05s",
            "99999999999999999999s",
            "213503982335d",
            "5s\0",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("128MB", 128 << 20),
            ("128mb", 128 << 20),
            ("1KB", 1024),
            ("7 B", 7),
            ("2GB", 2 << 30),
            ("1TB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "MB",
            "1kB",
            "1Mb",
            "1K",
            "1.5MB",
            "-1MB",
            "1MBMB",
            "99999999999TB",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_formatted_reads_back(millis in 0u64..=10_000_000_000, bytes in 1u64..=1 << 50) {
            prop_assert_eq!(parse_duration(&format_duration(Duration::from_millis(millis))), Some(millis));
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let value = Value::Str(text);
            let _ = (boolean(&value), integer(&value, 0..=9), ttl(&value), byte_size(&value, 1..=9));
            let _ = timeout(&value, Duration::ZERO..=Duration::from_secs(1));
        }
    }
}
