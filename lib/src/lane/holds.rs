//! Who waits for whom. An operation of several steps holds what it is on; later ones on the same things
//! are parked behind it, in the order submitted, until their turn comes.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::entry::Entry;

#[derive(Default)]
pub(super) struct Holds {
    /// Of each thing that is held or waited for.
    lines: HashMap<u64, Line>,
    /// What waits, by id: that is, in the order submitted.
    parked: BTreeMap<u64, Entry>,
}

#[derive(Default)]
struct Line {
    /// How many operations between two steps are on the thing. More than one only where an operation
    /// turned out to need another step when the next one was sent already.
    holders: usize,
    /// The ids of those that are parked, in order.
    waiting: VecDeque<u64>,
}

impl Holds {
    /// Whether an operation must wait for an earlier one.
    pub(super) fn is_held(&self, entry: &Entry) -> bool {
        if self.lines.is_empty() {
            return false;
        }
        let things = entry.request.operation.affinity();
        things.each().iter().any(|thing| {
            self.lines.get(thing).is_some_and(|line| {
                line.holders > 0
                    || line
                        .waiting
                        .front()
                        .is_some_and(|first| *first < entry.id())
            })
        })
    }

    pub(super) fn hold(&mut self, entry: &mut Entry) {
        if !entry.holds {
            entry.holds = true;
            for thing in entry.request.operation.affinity().each() {
                self.lines.entry(*thing).or_default().holders += 1;
            }
        }
    }

    pub(super) fn park(&mut self, entry: Entry) {
        for thing in entry.request.operation.affinity().each() {
            let waiting = &mut self.lines.entry(*thing).or_default().waiting;
            let at = waiting.partition_point(|id| *id < entry.id());
            waiting.insert(at, entry.id());
        }
        self.parked.insert(entry.id(), entry);
    }

    /// An operation is over, or was never sent. Answers those whose turn comes with that, in order: of
    /// each line up to the first that will hold it itself, so that a long line is not gone through
    /// for each of its operations.
    pub(super) fn let_go(&mut self, entry: &Entry) -> Vec<Entry> {
        if self.lines.is_empty() {
            return Vec::new();
        }
        let things = entry.things();
        if entry.holds {
            for thing in &things {
                if let Some(line) = self.lines.get_mut(thing) {
                    line.holders = line.holders.saturating_sub(1);
                }
            }
        }
        let mut next = Vec::new();
        for thing in &things {
            while let Some(entry) = self.take_first(*thing) {
                let will_hold = entry.request.operation.is_stepwise();
                next.push(entry);
                if will_hold {
                    break;
                }
            }
            self.tidy(*thing);
        }
        next
    }

    /// The first that waits for a thing, if it waits for nothing else.
    fn take_first(&mut self, thing: u64) -> Option<Entry> {
        let id = *self.lines.get(&thing)?.waiting.front()?;
        let things = self.parked.get(&id)?.things();
        let is_next = things.iter().all(|thing| {
            let line = self.lines.get(thing);
            line.is_some_and(|line| line.holders == 0 && line.waiting.front() == Some(&id))
        });
        if !is_next {
            return None;
        }
        for thing in &things {
            if let Some(line) = self.lines.get_mut(thing) {
                line.waiting.pop_front();
            }
            self.tidy(*thing);
        }
        self.parked.remove(&id)
    }

    /// Forgets a line without holders and without anyone who waits.
    fn tidy(&mut self, thing: u64) {
        let is_over = |line: &Line| line.holders == 0 && line.waiting.is_empty();
        if self.lines.get(&thing).is_some_and(is_over) {
            self.lines.remove(&thing);
        }
    }

    /// How many wait.
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.parked.get_mut(&id)
    }

    pub(super) fn parked_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.parked.values_mut()
    }

    /// Takes out those that are answered already.
    pub(super) fn take_answered(&mut self) -> Vec<Entry> {
        let ids: Vec<u64> = self
            .parked
            .values()
            .filter(|entry| entry.request.is_answered())
            .map(Entry::id)
            .collect();
        let parked = &mut self.parked;
        let answered: Vec<Entry> = ids.iter().filter_map(|id| parked.remove(id)).collect();
        if !answered.is_empty() {
            for line in self.lines.values_mut() {
                line.waiting.retain(|id| parked.contains_key(id));
            }
        }
        answered
    }
}
