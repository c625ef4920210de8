//! The text of a wildcard filter, put together from the labels of its nodes.

use super::slab::NONE;
use super::trie::{Trie, ROOT};

const MULTI: &[u8] = b"/#";
/// Most filters are shorter.
const ROOM: usize = 128;

/// The filters that end at a node. It is written from its end on, since a node knows its parent.
#[derive(Default)]
pub(super) struct Text {
    /// Behind the text there is always the level of the filter that goes on with `#`.
    bytes: Vec<u8>,
    start: usize,
}

impl Text {
    /// Writes the levels of a node.
    pub(super) fn write(&mut self, trie: &Trie, id: u32) {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact(ROOM);
            self.bytes.resize(ROOM - MULTI.len(), 0);
            self.bytes.extend_from_slice(MULTI);
        }
        self.start = self.bytes.len() - MULTI.len();
        let mut node = trie.node(id);
        while node.parent != NONE {
            self.put(node.label.as_bytes());
            if node.parent != ROOT {
                self.put(b"/");
            }
            node = trie.node(node.parent);
        }
        // The filter # has no slash.
        if id == ROOT {
            self.start += 1;
        }
    }

    /// The filter of the node that was written last: the one that ends there, or the one that goes on with `#`.
    pub(super) fn filter(&self, multi: bool) -> &[u8] {
        let end = self.bytes.len() - if multi { 0 } else { MULTI.len() };
        self.bytes.get(self.start..end).unwrap_or_default()
    }

    fn put(&mut self, label: &[u8]) {
        if label.len() > self.start {
            let more = self.bytes.len().max(label.len());
            self.bytes.splice(..0, std::iter::repeat_n(0, more));
            self.start += more;
        }
        let end = self.start;
        self.start -= label.len();
        self.bytes[self.start..end].copy_from_slice(label);
    }
}
