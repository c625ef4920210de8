//! The routes that this node added for itself: what it adds again where Redis has lost them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

/// The filters, each with what was last asked for. It outlives an engine that ends by a fault, since nobody adds its
/// routes again then.
#[derive(Debug, Default)]
pub struct Own(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// In order, so that they can be gone through in slices: schedulers wait for the lock.
    filters: BTreeMap<Box<[u8]>, Mark>,
    last: u64,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The number of the operation on it that was submitted last.
    last: u64,
    /// Whether the route was added, and no deletion of it submitted since.
    wanted: bool,
}

/// What an operation on an own route must say of its end.
#[derive(Debug)]
pub struct Claim {
    number: u64,
    adds: bool,
    was_wanted: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was certainly not done.
    NotDone,
    /// Nobody knows.
    Unknown,
}

impl Own {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// An operation on the filter is submitted. From now on no route that is being deleted is added again.
    pub fn submitted(&self, filter: &[u8], adds: bool) -> Claim {
        let mut marks = self.marks();
        marks.last += 1;
        let number = marks.last;
        let before = marks.filters.get(filter).copied();
        let was_wanted = before.is_some_and(|mark| mark.wanted);
        let mark = Mark {
            last: number,
            wanted: adds && was_wanted,
        };
        marks.filters.insert(filter.into(), mark);
        Claim {
            number,
            adds,
            was_wanted,
        }
    }

    /// The operation is over. Only the one that was submitted last decides.
    pub fn ended(&self, filter: &[u8], claim: &Claim, outcome: Outcome) {
        let mut marks = self.marks();
        let Some(mark) = marks.filters.get_mut(filter) else {
            return;
        };
        if mark.last != claim.number {
            return;
        }
        mark.wanted = match (claim.adds, outcome) {
            (true, Outcome::Done) => true,
            (true, _) => mark.wanted,
            (false, Outcome::NotDone) => claim.was_wanted,
            (false, _) => false,
        };
        if !mark.wanted {
            marks.filters.remove(filter);
        }
    }

    /// Whether the route is to be there.
    pub fn wants(&self, filter: &[u8]) -> bool {
        let marks = self.marks();
        marks.filters.get(filter).is_some_and(|mark| mark.wanted)
    }

    /// A slice of the filters whose routes are to be there, from behind `after` on, and whether it was the last.
    pub fn wanted(&self, after: Option<&[u8]>, most: usize) -> (Vec<Vec<u8>>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let marks = self.marks();
        let rest = marks.filters.range::<[u8], _>((from, Bound::Unbounded));
        let wanted = rest.filter(|(_, mark)| mark.wanted);
        let slice: Vec<Vec<u8>> = wanted
            .take(most)
            .map(|(filter, _)| filter.to_vec())
            .collect();
        let is_last = slice.len() < most;
        (slice, is_last)
    }

    /// Forgets all: the storage was stopped.
    pub fn clear(&self) {
        self.marks().filters.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_operation_decides() {
        let own = Own::default();
        let add = own.submitted(b"a", true);
        let delete = own.submitted(b"a", false);
        own.ended(b"a", &add, Outcome::Done);
        assert!(!own.wants(b"a"), "a deletion is on its way");
        own.ended(b"a", &delete, Outcome::Unknown);
        assert!(own.marks().filters.is_empty());
    }

    #[test]
    fn a_deletion_that_was_not_done_changes_nothing() {
        let own = Own::default();
        let add = own.submitted(b"a", true);
        own.ended(b"a", &add, Outcome::Done);
        let delete = own.submitted(b"a", false);
        assert!(!own.wants(b"a"));
        own.ended(b"a", &delete, Outcome::NotDone);
        assert!(own.wants(b"a"));
        let again = own.submitted(b"a", true);
        own.ended(b"a", &again, Outcome::Unknown);
        assert!(own.wants(b"a"), "it was there before");
    }

    #[test]
    fn all_are_found_in_slices() {
        let own = Own::default();
        for number in 0..10 {
            let filter = format!("a/{number}").into_bytes();
            let add = own.submitted(&filter, true);
            own.ended(&filter, &add, Outcome::Done);
        }
        let delete = own.submitted(b"a/3", false);
        let mut found = Vec::new();
        loop {
            let after = found.last().cloned();
            let (slice, is_last) = own.wanted(after.as_deref(), 4);
            found.extend(slice);
            if is_last {
                break;
            }
        }
        own.ended(b"a/3", &delete, Outcome::Done);
        let digits: Vec<u8> = found.iter().map(|filter| filter[2]).collect();
        assert_eq!(digits, b"012456789");
    }
}
