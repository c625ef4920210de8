//! Going through all routes in slices, while the table changes between them.

use super::routes::Routes;
use super::slab::NONE;
use super::text::Text;
use super::{Found, Place, Table};

/// Where a scan goes on. The default is the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    entry: u32,
    slot: u32,
    born: u64,
}

impl Table {
    /// Visits routes from a cursor on, in at most `slots` places of storage, one at least; a filter with up to
    /// 32 routes is one place. Returns where to go on, or `None` at the end.
    ///
    /// The table may change between the slices: a route that is there all the time is visited, perhaps more than
    /// once; one that came or went meanwhile may be.
    pub fn scan(
        &self,
        mut cursor: Cursor,
        slots: usize,
        mut visit: impl FnMut(Found<'_>),
    ) -> Option<Cursor> {
        let (mut real, mut shared) = (Text::default(), Vec::new());
        let mut left = slots.max(1);
        while cursor.entry < self.entries.end() {
            if left == 0 {
                return Some(cursor);
            }
            left -= 1;
            if let Some(entry) = self.entries.get(cursor.entry) {
                let real = match &entry.place {
                    Place::Exact(name) => name.as_bytes(),
                    Place::Node { id, multi } => {
                        real.write(&self.trie, *id);
                        real.filter(*multi)
                    }
                };
                let mut last = NONE;
                let mut visit = |route: &_| visit(self.found(route, real, &mut shared, &mut last));
                match &entry.routes {
                    Routes::One(route) => visit(route),
                    Routes::Few(routes) => routes.iter().for_each(visit),
                    Routes::Many(many) => {
                        let start = if cursor.born == many.born {
                            cursor.slot
                        } else {
                            0
                        };
                        let end = many.slots.end().min(start.saturating_add(left as u32 + 1));
                        let slice = (start..end).filter_map(|slot| many.slots.get(slot));
                        slice.for_each(visit);
                        left -= (end.saturating_sub(start) as usize)
                            .saturating_sub(1)
                            .min(left);
                        if end < many.slots.end() {
                            (cursor.slot, cursor.born) = (end, many.born);
                            continue;
                        }
                    }
                }
            }
            cursor = Cursor {
                entry: cursor.entry + 1,
                ..Cursor::default()
            };
        }
        None
    }
}
