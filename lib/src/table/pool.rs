//! Byte strings that many routes have in common, each kept once: destinations, values, groups.

use ahash::RandomState;

use super::index::Index;
use super::label::Label;
use super::slab::{Slab, NONE};

#[derive(Default)]
pub(super) struct Pool {
    strings: Slab<Counted>,
    index: Index,
    heap: usize,
}

struct Counted {
    bytes: Label,
    uses: u32,
}

impl Pool {
    /// The number of these bytes, with one more use. The empty string is [`NONE`].
    pub(super) fn take(&mut self, state: &RandomState, bytes: &[u8]) -> u32 {
        if let Some(id) = self.number(state, bytes) {
            if id != NONE {
                self.strings[id].uses += 1;
            }
            return id;
        }
        let bytes = Label::new(bytes);
        let hash = hash(state, bytes.as_bytes());
        self.heap += bytes.heap();
        let id = self.strings.insert(Counted { bytes, uses: 1 });
        self.index.insert(hash, id);
        id
    }

    /// The number of these bytes, if they have one.
    pub(super) fn number(&self, state: &RandomState, bytes: &[u8]) -> Option<u32> {
        if bytes.is_empty() {
            return Some(NONE);
        }
        let is_it = |id| self.strings[id].bytes.as_bytes() == bytes;
        self.index.find(hash(state, bytes), is_it)
    }

    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        self.strings
            .get(id)
            .map_or(&[], |string| string.bytes.as_bytes())
    }

    /// Ends one use.
    pub(super) fn give_back(&mut self, state: &RandomState, id: u32) {
        if id == NONE {
            return;
        }
        let string = &mut self.strings[id];
        string.uses -= 1;
        if string.uses == 0 {
            self.heap -= string.bytes.heap();
            self.index.remove(hash(state, string.bytes.as_bytes()), id);
            self.strings.remove(id);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.strings.bytes() + self.index.bytes() + self.heap
    }
}

/// The upper half of a keyed hash: clients choose what is hashed.
pub(super) fn hash(state: &RandomState, bytes: &[u8]) -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = state.build_hasher();
    hasher.write(bytes);
    (hasher.finish() >> 32) as u32
}
