//! A hash table of numbers that grows by a part at a time (extendible hashing), so that no change takes long.
//!
//! What a number stands for is kept elsewhere; its hash is kept here, so that growing reads nothing else.

use hashbrown::HashTable;

use super::label::allocated;

/// A part with more than these is split in two: it fills a table of 2,048 places.
const PART: usize = 1_792;
/// A table's places are told apart by the low bits of a hash, and parts by those above.
const SHIFT: u32 = 11;
const MAX_BITS: u32 = 20;

#[derive(Default)]
pub(super) struct Index {
    /// The part for each value of the hash's bits; its length is a power of two.
    directory: Vec<u32>,
    parts: Vec<Part>,
    len: usize,
    bytes: usize,
}

struct Part {
    table: HashTable<Slot>,
    /// How many bits of the hash all of this part have in common.
    bits: u32,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    id: u32,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The number with this hash that is the right one.
    pub(super) fn find(&self, hash: u32, mut right: impl FnMut(u32) -> bool) -> Option<u32> {
        let part = &self.parts.get(self.part(hash)?)?.table;
        let is_it = |slot: &Slot| slot.hash == hash && right(slot.id);
        part.find(spread(hash), is_it).map(|slot| slot.id)
    }

    /// Adds a number that is not there.
    pub(super) fn insert(&mut self, hash: u32, id: u32) {
        if self.parts.is_empty() {
            self.directory.push(0);
            self.parts.push(Part::new(0, 0));
        }
        let mut part = self.part(hash).unwrap_or_default();
        // All of a part may have the next bits in common, so once may not be enough.
        while self.parts[part].table.len() >= PART && self.parts[part].bits < MAX_BITS {
            self.split(part, hash);
            part = self.part(hash).unwrap_or_default();
        }
        self.change(part, |table| {
            table.insert_unique(spread(hash), Slot { hash, id }, rehash);
        });
        self.len += 1;
    }

    /// Puts another number in the place of one that is there.
    pub(super) fn replace(&mut self, hash: u32, old: u32, new: u32) {
        let part = self.part(hash).and_then(|part| self.parts.get_mut(part));
        let is_it = |slot: &Slot| slot.hash == hash && slot.id == old;
        if let Some(slot) = part.and_then(|part| part.table.find_mut(spread(hash), is_it)) {
            slot.id = new;
        }
    }

    pub(super) fn remove(&mut self, hash: u32, id: u32) {
        let Some(part) = self.part(hash) else {
            return;
        };
        let is_it = |slot: &Slot| slot.hash == hash && slot.id == id;
        let Ok(entry) = self.parts[part].table.find_entry(spread(hash), is_it) else {
            return;
        };
        entry.remove();
        self.len -= 1;
        if self.len == 0 {
            *self = Index::default();
            return;
        }
        let table = &self.parts[part].table;
        let (len, room) = (table.len(), table.capacity());
        if len < room / 4 {
            self.change(part, |table| table.shrink_to(len * 2, rehash));
        }
    }

    /// The bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let parts = self.parts.capacity() * size_of::<Part>();
        self.bytes + allocated(parts) + allocated(self.directory.capacity() * 4)
    }

    fn part(&self, hash: u32) -> Option<usize> {
        let bits = (hash >> SHIFT) as usize & self.directory.len().wrapping_sub(1);
        self.directory.get(bits).map(|part| *part as usize)
    }

    fn split(&mut self, part: usize, hash: u32) {
        let bits = self.parts[part].bits;
        let apart = |slot: &Slot| slot.hash >> (SHIFT + bits) & 1 == 1;
        if self.directory.len() == 1 << bits {
            self.directory.extend_from_within(..);
        }
        let common = (hash >> SHIFT) as usize & ((1 << bits) - 1);
        let new = self.parts.len() as u32;
        let places = self.directory.iter_mut().skip(common | 1 << bits);
        places.step_by(2 << bits).for_each(|place| *place = new);

        let moved = self.parts[part]
            .table
            .iter()
            .filter(|slot| apart(slot))
            .count();
        let kept = self.parts[part].table.len() - moved;
        self.parts.push(Part::new(bits + 1, moved));
        let old = std::mem::replace(&mut self.parts[part], Part::new(bits + 1, kept));
        self.bytes -= allocated(old.table.allocation_size());
        for slot in old.table {
            let part = if apart(&slot) { new as usize } else { part };
            let table = &mut self.parts[part].table;
            table.insert_unique(spread(slot.hash), slot, rehash);
        }
        for part in [part, new as usize] {
            self.bytes += allocated(self.parts[part].table.allocation_size());
        }
    }

    fn change(&mut self, part: usize, change: impl FnOnce(&mut HashTable<Slot>)) {
        let table = &mut self.parts[part].table;
        let before = allocated(table.allocation_size());
        change(table);
        self.bytes = self.bytes - before + allocated(table.allocation_size());
    }
}

impl Part {
    fn new(bits: u32, room: usize) -> Self {
        Part {
            table: HashTable::with_capacity(room),
            bits,
        }
    }
}

/// A table uses the highest bits and the lowest ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

fn rehash(slot: &Slot) -> u64 {
    spread(slot.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scatter(id: u32) -> u32 {
        id.wrapping_mul(0x9e37_79b9) ^ id.wrapping_mul(0x85eb_ca6b) >> 15
    }

    #[test]
    fn an_index_splits_and_shrinks() {
        let mut index = Index::default();
        assert_eq!(index.find(1, |_| true), None);
        for id in 0..100_000 {
            index.insert(scatter(id), id);
        }
        assert!(index.parts.len() >= 100_000 / PART && index.directory.len().is_power_of_two());
        assert!(index.bytes() < 100_000 * 25);
        for id in 0..100_000 {
            assert_eq!(index.find(scatter(id), |found| found == id), Some(id));
            assert_eq!(index.find(scatter(id), |found| found == id + 1), None);
        }
        index.replace(scatter(5), 5, 200_000);
        assert_eq!(index.find(scatter(5), |id| id == 200_000), Some(200_000));
        index.replace(scatter(5), 200_000, 5);
        let full = index.bytes();
        for id in 0..99_990 {
            index.remove(scatter(id), id);
        }
        assert!(index.len() == 10 && index.bytes() < full / 50);
        for id in 99_990..100_000 {
            assert_eq!(index.find(scatter(id), |found| found == id), Some(id));
            index.remove(scatter(id), id);
            index.remove(scatter(id), id);
        }
        assert_eq!((index.len(), index.bytes()), (0, 0));
    }

    #[test]
    fn equal_hashes_are_told_apart() {
        let mut index = Index::default();
        for id in 0..2 * PART as u32 {
            index.insert(7, id);
        }
        assert_eq!(index.find(7, |id| id == 2_000), Some(2_000));
        index.remove(7, 2_000);
        assert_eq!(index.find(7, |id| id == 2_000), None);
        assert_eq!(index.len(), 2 * PART - 1);
    }
}
