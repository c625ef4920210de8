//! A value that must never be seen: it prints as a mask.

use std::fmt;

/// What stands for a secret wherever a configuration is shown.
pub const MASK: &str = "******";

/// A password or a key. `Debug` and `Display` print [`MASK`]; only [`Secret::expose`] gives the bytes, so
/// that every place which sees them can be found by its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Wraps the bytes of a secret.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Secret(bytes.into().into_boxed_slice())
    }

    /// The secret itself, for AUTH and TLS alone.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_a_mask_only() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {secret:#?}"),
            "****** ****** ******"
        );
        assert_eq!(secret.expose(), b"hunter2");
    }
}
