//! MQTT topic names and topic filters, by the rules of MQTT 5.0, sections 4.7 and 4.8.

use std::fmt;

/// The most bytes that a topic name or filter may have [MQTT-4.7.3-3].
pub const MAX_BYTES: usize = 65_535;

const SHARE: &str = "$share/";

/// Why something is no topic name, or no topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicError {
    /// It has no character [MQTT-4.7.3-1].
    Empty,
    /// It has more than [`MAX_BYTES`] bytes [MQTT-4.7.3-3].
    TooLong,
    /// It is not UTF-8 [MQTT-1.5.4-1].
    NotUtf8,
    /// It holds the null character [MQTT-4.7.3-2].
    NullCharacter,
    /// A topic name holds `+` or `#` [MQTT-3.3.2-2].
    WildcardInName,
    /// A `#` that is not the whole of the last level [MQTT-4.7.1-1].
    MultiLevelWildcard,
    /// A `+` that is not the whole of its level [MQTT-4.7.1-2].
    SingleLevelWildcard,
    /// `$share/` with no group name behind it [MQTT-4.8.2-1].
    ShareGroupEmpty,
    /// A group name that holds `+` or `#` [MQTT-4.8.2-2].
    ShareGroupWildcard,
    /// `$share/Group` with no filter behind it [MQTT-4.8.2-2].
    ShareFilterMissing,
    /// A shared filter within a shared filter.
    ShareNested,
}

impl TopicError {
    /// The reason as the Erlang side names it.
    pub fn name(self) -> &'static str {
        match self {
            TopicError::Empty => "empty",
            TopicError::TooLong => "too_long",
            TopicError::NotUtf8 => "not_utf8",
            TopicError::NullCharacter => "null_character",
            TopicError::WildcardInName => "wildcard_in_name",
            TopicError::MultiLevelWildcard => "multi_level_wildcard",
            TopicError::SingleLevelWildcard => "single_level_wildcard",
            TopicError::ShareGroupEmpty => "share_group_empty",
            TopicError::ShareGroupWildcard => "share_group_wildcard",
            TopicError::ShareFilterMissing => "share_filter_missing",
            TopicError::ShareNested => "share_nested",
        }
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TopicError::Empty => "a topic has at least one character",
            TopicError::TooLong => "a topic has at most 65535 bytes",
            TopicError::NotUtf8 => "a topic is UTF-8",
            TopicError::NullCharacter => "a topic holds no null character",
            TopicError::WildcardInName => "a topic name holds no wildcard",
            TopicError::MultiLevelWildcard => "# stands alone in the last level of a filter",
            TopicError::SingleLevelWildcard => "+ stands alone in its level of a filter",
            TopicError::ShareGroupEmpty => "$share/ is followed by a group name",
            TopicError::ShareGroupWildcard => "the group name of a shared filter holds no wildcard",
            TopicError::ShareFilterMissing => "$share/Group is followed by / and a filter",
            TopicError::ShareNested => "a shared filter holds no other one",
        })
    }
}

impl std::error::Error for TopicError {}

/// A valid topic filter, with the parts of a shared one taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter<'a> {
    /// The filter as the client sent it, for instance `$share/group/a/+`.
    pub full: &'a str,
    /// The group of a shared filter, for instance `group`.
    pub group: Option<&'a str>,
    /// What topic names are matched with, for instance `a/+`: `full`, unless the filter is shared.
    pub real: &'a str,
}

impl Filter<'_> {
    /// Whether a name other than the filter itself can match: it is a wildcard filter or a shared one.
    pub fn needs_trie(&self) -> bool {
        self.group.is_some() || is_wildcard(self.real)
    }

    /// Whether this valid topic name matches.
    pub fn matches(&self, name: &str) -> bool {
        matches(name, self.real)
    }
}

/// Checks a topic name: what a message is published to.
pub fn validate_name(name: &[u8]) -> Result<&str, TopicError> {
    let name = validate_string(name)?;
    if is_wildcard(name) {
        return Err(TopicError::WildcardInName);
    }
    Ok(name)
}

/// Checks a topic filter, shared or not: what a client subscribes to.
pub fn validate_filter(filter: &[u8]) -> Result<&str, TopicError> {
    parse_filter(filter).map(|filter| filter.full)
}

/// Checks a topic filter and takes it apart.
pub fn parse_filter(filter: &[u8]) -> Result<Filter<'_>, TopicError> {
    let full = validate_string(filter)?;
    let Some(shared) = full.strip_prefix(SHARE) else {
        validate_levels(full)?;
        return Ok(Filter {
            full,
            group: None,
            real: full,
        });
    };
    let (group, real) = shared.split_once('/').unwrap_or((shared, ""));
    if group.is_empty() {
        return Err(TopicError::ShareGroupEmpty);
    }
    if is_wildcard(group) {
        return Err(TopicError::ShareGroupWildcard);
    }
    if real.is_empty() {
        return Err(TopicError::ShareFilterMissing);
    }
    if real.starts_with(SHARE) {
        return Err(TopicError::ShareNested);
    }
    validate_levels(real)?;
    Ok(Filter {
        full,
        group: Some(group),
        real,
    })
}

/// Whether a valid filter (not a shared one) has a wildcard.
pub fn is_wildcard(filter: &str) -> bool {
    filter.contains(['+', '#'])
}

/// Whether a valid topic name matches a valid filter; of a shared filter, give the real one.
///
/// Level by level: `+` is any one level, an empty one too; `#` is all that follows, and its parent. Neither is
/// a first level that begins with `$` [MQTT-4.7.2-1].
pub fn matches(name: &str, filter: &str) -> bool {
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = name.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn validate_string(topic: &[u8]) -> Result<&str, TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    if topic.len() > MAX_BYTES {
        return Err(TopicError::TooLong);
    }
    if topic.contains(&0) {
        return Err(TopicError::NullCharacter);
    }
    std::str::from_utf8(topic).map_err(|_| TopicError::NotUtf8)
}

fn validate_levels(filter: &str) -> Result<(), TopicError> {
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(TopicError::MultiLevelWildcard);
        }
        if level.contains('+') && level != "+" {
            return Err(TopicError::SingleLevelWildcard);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_matches(filter: &str, names: &[&str]) {
        for name in names {
            assert!(matches(name, filter), "{name:?} should match {filter:?}");
        }
    }

    fn assert_misses(filter: &str, names: &[&str]) {
        for name in names {
            assert!(
                !matches(name, filter),
                "{name:?} should not match {filter:?}"
            );
        }
    }

    #[test]
    fn multi_level_wildcard_as_in_section_4_7_1_2() {
        let names = [
            "sport/tennis/player1",
            "sport/tennis/player1/ranking",
            "sport/tennis/player1/score/wimbledon",
        ];
        assert_matches("sport/tennis/player1/#", &names);
        assert_misses(
            "sport/tennis/player1/#",
            &["sport/tennis/player2", "sport/tennis/player10"],
        );
        assert_matches("sport/#", &["sport"]);
        assert_matches("#", &["sport", "/", "a//b"]);
        assert!(validate_filter(b"sport/tennis/#").is_ok());
        for invalid in ["sport/tennis#", "sport/tennis/#/ranking"] {
            let error = validate_filter(invalid.as_bytes());
            assert_eq!(error, Err(TopicError::MultiLevelWildcard));
        }
    }

    #[test]
    fn single_level_wildcard_as_in_section_4_7_1_3() {
        let names = ["sport/tennis/player1", "sport/tennis/player2"];
        assert_matches("sport/tennis/+", &names);
        assert_misses(
            "sport/tennis/+",
            &["sport/tennis/player1/ranking", "sport/tennis"],
        );
        assert_misses("sport/+", &["sport"]);
        assert_matches("sport/+", &["sport/"]);
        for valid in ["+", "+/tennis/#", "sport/+/player1"] {
            assert!(validate_filter(valid.as_bytes()).is_ok());
        }
        assert_eq!(
            validate_filter(b"sport+"),
            Err(TopicError::SingleLevelWildcard)
        );
        assert_matches("+/+", &["/finance"]);
        assert_matches("/+", &["/finance"]);
        assert_misses("+", &["/finance"]);
    }

    #[test]
    fn topics_beginning_with_a_dollar_as_in_section_4_7_2() {
        assert_misses("#", &["$SYS", "$SYS/monitor/Clients", "$"]);
        assert_misses("+/monitor/Clients", &["$SYS/monitor/Clients"]);
        assert_matches("$SYS/#", &["$SYS", "$SYS/monitor/Clients"]);
        assert_matches("$SYS/monitor/+", &["$SYS/monitor/Clients"]);
        // Only the first level counts.
        assert_matches("a/+", &["a/$b"]);
        assert_matches("+/#", &["/$b"]);
    }

    #[test]
    fn levels_are_compared_as_they_are_as_in_section_4_7_3() {
        assert_matches("ACCOUNTS", &["ACCOUNTS"]);
        assert_misses("ACCOUNTS", &["Accounts", "/ACCOUNTS", "ACCOUNTS/"]);
        assert_matches("Accounts payable", &["Accounts payable"]);
        assert_misses("/", &["", "//"]);
        assert_matches("+//+", &["a//b", "//"]);
        assert_misses("a/+/b", &["a/b"]);
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(validate_name("a/é b/".as_bytes()), Ok("a/é b/"));
        assert_eq!(validate_name(b"$share/group/a"), Ok("$share/group/a"));
        assert_eq!(validate_name(b""), Err(TopicError::Empty));
        assert_eq!(validate_name(b"a\0"), Err(TopicError::NullCharacter));
        assert_eq!(validate_name(b"a\xff"), Err(TopicError::NotUtf8));
        assert_eq!(validate_name(b"a\xed\xa0\x80"), Err(TopicError::NotUtf8)); // half a surrogate pair
        for wildcard in ["a/+", "#", "a+", "a#/b"] {
            assert_eq!(
                validate_name(wildcard.as_bytes()),
                Err(TopicError::WildcardInName)
            );
        }
        assert!(validate_name(&[b'/'; MAX_BYTES]).is_ok());
        assert_eq!(
            validate_name(&[b'/'; MAX_BYTES + 1]),
            Err(TopicError::TooLong)
        );
    }

    #[test]
    fn filters_are_checked() {
        assert_eq!(validate_filter(b"+/\xc3\xa9//#"), Ok("+/é//#"));
        assert_eq!(validate_filter(b""), Err(TopicError::Empty));
        assert_eq!(validate_filter(b"\0"), Err(TopicError::NullCharacter));
        assert_eq!(validate_filter(b"\xc3"), Err(TopicError::NotUtf8));
        assert_eq!(
            validate_filter(&[b'a'; MAX_BYTES + 1]),
            Err(TopicError::TooLong)
        );
        for invalid in ["##", "#/", "a#", "a/#b", "#/#"] {
            let error = validate_filter(invalid.as_bytes());
            assert_eq!(error, Err(TopicError::MultiLevelWildcard), "{invalid}");
        }
        for invalid in ["++", "a+/b", "a/+b"] {
            let error = validate_filter(invalid.as_bytes());
            assert_eq!(error, Err(TopicError::SingleLevelWildcard), "{invalid}");
        }
    }

    #[test]
    fn shared_filters_are_taken_apart() {
        let filter = parse_filter(b"$share/group//a/+").unwrap();
        assert_eq!((filter.group, filter.real), (Some("group"), "/a/+"));
        assert!(filter.matches("/a/b") && filter.needs_trie());
        assert!(parse_filter(b"$share/group/a").unwrap().needs_trie());
        // Without the slash it is a filter like any other.
        assert_eq!(parse_filter(b"$share").unwrap().group, None);
        assert!(!parse_filter(b"$share").unwrap().needs_trie());
        let cases = [
            ("$share/", TopicError::ShareGroupEmpty),
            ("$share//a", TopicError::ShareGroupEmpty),
            ("$share/+/a", TopicError::ShareGroupWildcard),
            ("$share/g#/a", TopicError::ShareGroupWildcard),
            ("$share/g", TopicError::ShareFilterMissing),
            ("$share/g/", TopicError::ShareFilterMissing),
            ("$share/g/a+", TopicError::SingleLevelWildcard),
            ("$share/g/$share/h/a", TopicError::ShareNested),
        ];
        for (filter, error) in cases {
            assert_eq!(parse_filter(filter.as_bytes()), Err(error), "{filter}");
        }
    }

    /// The rules once more, by recursion over lists of levels.
    fn matches_by_definition(name: &[&str], filter: &[&str], first: bool) -> bool {
        let reserved = first && name.first().is_some_and(|level| level.starts_with('$'));
        match (name, filter) {
            (_, ["#"]) => !reserved,
            ([], []) => true,
            ([_, name @ ..], ["+", filter @ ..]) => {
                !reserved && matches_by_definition(name, filter, false)
            }
            ([level, name @ ..], [wanted, filter @ ..]) => {
                level == wanted && matches_by_definition(name, filter, false)
            }
            _ => false,
        }
    }

    /// A name, and a filter that often matches it: its levels, some of them made wildcards or others, cut or
    /// prolonged.
    fn name_and_filter() -> impl Strategy<Value = (String, String)> {
        let level = || prop::sample::select(vec!["a", "b", "", "$a", "é"]);
        let change = prop_oneof![
            3 => Just(None),
            2 => Just(Some("+")),
            1 => level().prop_map(Some),
        ];
        let changes = prop::collection::vec(change, 1..7);
        (prop::collection::vec(level(), 1..6), changes, any::<bool>())
            .prop_map(|(name, changes, multi_level)| {
                let mut filter: Vec<_> = changes
                    .iter()
                    .zip(name.iter().chain(["a"].iter().cycle()))
                    .map(|(change, level)| change.unwrap_or(level))
                    .collect();
                if multi_level {
                    *filter.last_mut().expect("it has a level") = "#";
                }
                (name.join("/"), filter.join("/"))
            })
            .prop_filter("a topic is not empty", |(name, filter)| {
                !name.is_empty() && !filter.is_empty()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn matching_is_as_defined((name, filter) in name_and_filter()) {
            prop_assert!(validate_filter(filter.as_bytes()).is_ok());
            let name_levels: Vec<_> = name.split('/').collect();
            let filter_levels: Vec<_> = filter.split('/').collect();
            let expected = matches_by_definition(&name_levels, &filter_levels, true);
            prop_assert_eq!(matches(&name, &filter), expected, "{} {}", name, filter);
        }

        /// Whatever a filter without wildcards matches, it is itself; and it is a valid name.
        #[test]
        fn a_filter_without_wildcards_matches_itself(topic in "[a+#/$\u{0}é]{0,6}") {
            prop_assert_eq!(
                validate_name(topic.as_bytes()).is_ok(),
                validate_filter(topic.as_bytes()).is_ok() && !is_wildcard(&topic)
            );
            if validate_name(topic.as_bytes()).is_ok() {
                prop_assert!(matches(&topic, &topic));
            }
        }

        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(filter) = parse_filter(&bytes) {
                prop_assert_eq!(filter.full.as_bytes(), &bytes[..]);
                prop_assert!(filter.full.ends_with(filter.real));
            }
        }
    }
}
