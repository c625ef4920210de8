//! Numbered slots in chunks: growing never moves what is there, and a chunk that is empty is given back.

use std::ops;

use super::label::allocated;

/// No slot's number.
pub(super) const NONE: u32 = u32::MAX;

const CHUNK: usize = 1024;

/// Values under numbers that stay theirs until they are removed. Numbers are used again.
pub(super) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks with room, and perhaps full ones at the end; the last one is filled first.
    open: Vec<u32>,
    len: usize,
    bytes: usize,
}

struct Chunk<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    used: u32,
    open: bool,
}

enum Slot<T> {
    Full(T),
    /// The next free slot of the chunk.
    Free(u32),
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            chunks: Vec::new(),
            open: Vec::new(),
            len: 0,
            bytes: 0,
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// One more than the highest number there may be.
    pub(super) fn end(&self) -> u32 {
        match self.chunks.last() {
            Some(last) => number(self.chunks.len() - 1, last.slots.len()),
            None => 0,
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&T> {
        let (chunk, slot) = place(id);
        match self.chunks.get(chunk)?.slots.get(slot)? {
            Slot::Full(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        let index = self.chunk_with_room();
        let first = index == 0;
        let chunk = &mut self.chunks[index];
        let slot = chunk.free;
        chunk.used += 1;
        self.len += 1;
        if slot != NONE {
            let full = Slot::Full(value);
            if let Slot::Free(next) = std::mem::replace(&mut chunk.slots[slot as usize], full) {
                chunk.free = next;
            }
            return number(index, slot as usize);
        }
        let slot = chunk.slots.len();
        let before = chunk.bytes();
        // A small table stays small; in a large one a chunk is allocated at once.
        if slot == 0 && !first {
            chunk.slots.reserve_exact(CHUNK);
        }
        chunk.slots.push(Slot::Full(value));
        self.bytes = self.bytes - before + chunk.bytes();
        number(index, slot)
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let (index, slot) = place(id);
        let chunk = self.chunks.get_mut(index)?;
        let place = chunk.slots.get_mut(slot)?;
        if matches!(place, Slot::Free(_)) {
            return None;
        }
        let removed = std::mem::replace(place, Slot::Free(chunk.free));
        chunk.free = slot as u32;
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == 0 {
            self.bytes -= chunk.bytes();
            chunk.slots = Vec::new();
            chunk.free = NONE;
        }
        if !chunk.open {
            chunk.open = true;
            self.open.push(index as u32);
        }
        if self.len == 0 {
            *self = Slab::default();
        }
        match removed {
            Slot::Full(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// The bytes allocated for the slots.
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.chunks.capacity() * size_of::<Chunk<T>>();
        self.bytes + allocated(chunks) + allocated(self.open.capacity() * 4)
    }

    fn chunk_with_room(&mut self) -> usize {
        while let Some(&index) = self.open.last() {
            let chunk = &mut self.chunks[index as usize];
            if (chunk.used as usize) < CHUNK {
                return index as usize;
            }
            chunk.open = false;
            self.open.pop();
        }
        self.open.push(self.chunks.len() as u32);
        self.chunks.push(Chunk {
            slots: Vec::new(),
            free: NONE,
            used: 0,
            open: true,
        });
        self.chunks.len() - 1
    }
}

/// Of a slot that is known to be full.
impl<T> ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        self.get(id).expect("the slot is full")
    }
}

impl<T> ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        let (chunk, slot) = place(id);
        match &mut self.chunks[chunk].slots[slot] {
            Slot::Full(value) => value,
            Slot::Free(_) => unreachable!("the slot is full"),
        }
    }
}

impl<T> Chunk<T> {
    fn bytes(&self) -> usize {
        allocated(self.slots.capacity() * size_of::<Slot<T>>())
    }
}

fn place(id: u32) -> (usize, usize) {
    (id as usize / CHUNK, id as usize % CHUNK)
}

fn number(chunk: usize, slot: usize) -> u32 {
    (chunk * CHUNK + slot) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_slot_takes_no_more_than_what_is_in_it() {
        assert_eq!(
            size_of::<Slot<super::super::Entry>>(),
            size_of::<super::super::Entry>()
        );
        assert_eq!(size_of::<Slot<super::super::trie::Node>>(), 48);
    }

    #[test]
    fn slots_are_used_again_and_chunks_given_back() {
        let mut slab = Slab::default();
        let ids: Vec<_> = (0..5_000u32).map(|value| slab.insert(value)).collect();
        let full = slab.bytes();
        for id in &ids[1_500..3_700] {
            assert!(slab.remove(*id).is_some() && slab.remove(*id).is_none());
        }
        assert!(slab.bytes() < full);
        assert_eq!((slab.get(1_499), slab.get(1_500)), (Some(&1_499), None));
        for value in 0..2_200 {
            assert!(slab.insert(value) < 5_000);
        }
        assert_eq!((slab.bytes(), slab.len()), (full, 5_000));
        for id in ids {
            slab.remove(id);
        }
        assert_eq!((slab.bytes(), slab.len(), slab.end()), (0, 0, 0));
    }

    proptest::proptest! {
        #[test]
        fn a_slab_keeps_what_a_map_keeps(steps in proptest::collection::vec(0..40u32, 0..3_000)) {
            let (mut slab, mut map) = (Slab::default(), HashMap::new());
            for (value, step) in steps.into_iter().enumerate() {
                match map.keys().nth(step as usize).copied() {
                    Some(id) if step > 20 => assert_eq!(slab.remove(id), map.remove(&id)),
                    _ => assert_eq!(map.insert(slab.insert(value), value), None),
                }
                assert_eq!(slab.len(), map.len());
            }
            let all: HashMap<_, _> = (0..slab.end()).filter_map(|id| Some((id, *slab.get(id)?))).collect();
            assert_eq!(all, map);
        }
    }
}
