//! Why a term could not be written, or bytes could not be read.

use std::fmt;

/// Why [`encode`](super::encode) gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// The encoding would be larger, or take longer, than the budget allows. With a larger budget
    /// it may work.
    OverBudget,
    /// The term holds something that has no encoding.
    Unencodable {
        /// What it is: `"a port"`, `"a local fun"`.
        what: &'static str,
        /// Where it is, from the outside in, empty for the term itself: `.subs[3]{2}` is the second
        /// element of the tuple that is the third element of the list at the key `subs`.
        path: String,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverBudget => f.write_str("the term is too large"),
            Self::Unencodable { what, path } if path.is_empty() => {
                write!(f, "the term is {what}, which cannot be stored")
            }
            Self::Unencodable { what, path } => {
                write!(f, "the term holds {what} at {path}, which cannot be stored")
            }
        }
    }
}

impl std::error::Error for EncodeError {}

/// Why [`decode`](super::decode) refused its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecodeError {
    Truncated,
    TrailingBytes,
    TooDeep,
    TooLarge,
    ReservedByte,
    NotFinite,
    AtomBudget,
    AtomTooLong,
    AtomNotUtf8,
    DuplicateKey,
    UnknownExtension,
    BadExtension,
    /// The value holds large maps, and this thread is no scheduler's: on one it can be decoded.
    NeedsScheduler,
}

impl DecodeError {
    /// The reason as the Erlang side names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::TrailingBytes => "trailing_bytes",
            Self::TooDeep => "too_deep",
            Self::TooLarge => "too_large",
            Self::ReservedByte => "reserved_byte",
            Self::NotFinite => "not_finite",
            Self::AtomBudget => "atom_budget",
            Self::AtomTooLong => "atom_too_long",
            Self::AtomNotUtf8 => "atom_not_utf8",
            Self::DuplicateKey => "duplicate_key",
            Self::UnknownExtension => "unknown_extension",
            Self::BadExtension => "bad_extension",
            Self::NeedsScheduler => "needs_scheduler",
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the value ends too early",
            Self::TrailingBytes => "bytes follow the value",
            Self::TooDeep => "the value is nested too deeply",
            Self::TooLarge => "the value is too large",
            Self::ReservedByte => "the byte 0xc1, which MessagePack never uses",
            Self::NotFinite => "a float that is infinite or not a number",
            Self::AtomBudget => "the value names a new atom, and no more of them may be made",
            Self::AtomTooLong => "a string of more than 255 characters, too long for an atom",
            Self::AtomNotUtf8 => "a string that is not UTF-8",
            Self::DuplicateKey => "a map holds one key twice",
            Self::UnknownExtension => "an extension type that is not known here",
            Self::BadExtension => "an extension's payload is malformed",
            Self::NeedsScheduler => "large maps, which only a scheduler can make",
        })
    }
}

impl std::error::Error for DecodeError {}
