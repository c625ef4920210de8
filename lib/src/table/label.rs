//! A short byte string in 24 bytes: up to 22 bytes need no allocation of their own.

/// The most bytes that are kept in place.
const INLINE: usize = 22;

/// Levels of a topic filter, a whole topic, a client id: most are short.
pub(super) enum Label {
    Inline { len: u8, bytes: [u8; INLINE] },
    Boxed(Box<[u8]>),
}

impl Label {
    pub(super) fn new(text: &[u8]) -> Self {
        let mut bytes = [0; INLINE];
        match bytes.get_mut(..text.len()) {
            Some(head) => {
                head.copy_from_slice(text);
                Label::Inline {
                    len: text.len() as u8,
                    bytes,
                }
            }
            None => Label::Boxed(text.into()),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Label::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Label::Boxed(bytes) => bytes,
        }
    }

    /// The text, for labels made of one.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// What is allocated beside the label itself.
    pub(super) fn heap(&self) -> usize {
        match self {
            Label::Inline { .. } => 0,
            Label::Boxed(bytes) => allocated(bytes.len()),
        }
    }
}

/// What an allocation of so many bytes takes: allocators keep a word beside it and round up.
pub(super) fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        _ => (bytes + 8).next_multiple_of(16).max(32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_small_and_give_back_what_they_were_made_of() {
        assert_eq!(size_of::<Label>(), 24);
        let text = "é/0123456789/0123456789";
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let label = Label::new(&text.as_bytes()[..end]);
            assert_eq!(label.as_str(), &text[..end]);
            assert_eq!(label.heap() == 0, end <= INLINE);
        }
    }
}
