//! Who waits for whom. What an operation is on is bound to one connection as long as operations on it are
//! under way there, and an operation of several steps holds it altogether; later operations on the
//! same things are parked, in the order submitted, until their turn comes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::entry::{Entry, EntryId};

/// Numbers a connection, see `track.rs`.
pub(super) type TrackId = usize;

#[derive(Default)]
pub(super) struct Holds {
    /// Of each thing that is under way: where, and of how many operations.
    bound: HashMap<u64, Bound, BuildHasherDefault<Identity>>,
    /// Of each thing that is held or waited for.
    lines: HashMap<u64, Line>,
    /// What waits, by id: that is, in the order submitted.
    parked: BTreeMap<EntryId, Entry>,
}

struct Bound {
    track: TrackId,
    count: usize,
    /// Of how many on other tracks: what holds the thing went elsewhere, and they had not noticed yet.
    elsewhere: usize,
}

impl Bound {
    fn is_only_on(&self, track: TrackId) -> bool {
        self.track == track && self.elsewhere == 0
    }
}

#[derive(Default)]
struct Line {
    /// The ids of the operations that take steps on the thing; those behind them wait. More than one only where an
    /// operation turned out to need another step when the next one was sent already, and where connections
    /// were lost.
    holders: Vec<EntryId>,
    /// The ids of those that are parked, in order.
    waiting: VecDeque<EntryId>,
}

impl Line {
    /// Whether an operation must wait for one that is ahead of it.
    fn is_held(&self, id: EntryId) -> bool {
        self.holders.iter().any(|holder| *holder < id)
    }
}

/// Things are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Holds {
    /// Whether an operation may go to a track: nothing before it on the same things is under way
    /// elsewhere, or waits.
    pub(super) fn may_place(&self, entry: &Entry, track: TrackId) -> bool {
        let things = entry.request.operation.affinity();
        things.each().iter().all(|thing| {
            let elsewhere = self
                .bound
                .get(thing)
                .is_some_and(|it| !it.is_only_on(track));
            let waits = !self.lines.is_empty() && self.has_earlier(*thing, entry);
            !elsewhere && !waits
        })
    }

    /// Whether an earlier operation waits for the thing.
    fn has_earlier(&self, thing: u64, entry: &Entry) -> bool {
        let first = self.lines.get(&thing).and_then(|line| line.waiting.front());
        first.is_some_and(|first| *first < entry.id())
    }

    /// Binds what an operation is on to a track. One that holds it takes it along.
    pub(super) fn place(&mut self, entry: &mut Entry, track: TrackId) {
        entry.placed_on = Some(track);
        for thing in entry.request.operation.affinity().each() {
            let bound = self.bound.entry(*thing).or_insert(Bound {
                track,
                count: 0,
                elsewhere: 0,
            });
            if bound.track != track {
                bound.elsewhere += std::mem::take(&mut bound.count);
                bound.track = track;
            }
            bound.count += 1;
        }
    }

    pub(super) fn unplace(&mut self, entry: &mut Entry) {
        let Some(track) = entry.placed_on.take() else {
            return;
        };
        for thing in entry.request.operation.affinity().each() {
            if let Some(bound) = self.bound.get_mut(thing) {
                // One that was counted elsewhere may be on this track again by now: the sum is what counts.
                if bound.track == track && bound.count > 0 || bound.elsewhere == 0 {
                    bound.count -= 1;
                } else {
                    bound.elsewhere -= 1;
                }
                if bound.count + bound.elsewhere == 0 {
                    self.bound.remove(thing);
                }
            }
        }
    }

    /// Whether an operation must wait for an earlier one.
    pub(super) fn is_held(&self, entry: &Entry) -> bool {
        if self.lines.is_empty() {
            return false;
        }
        let things = entry.request.operation.affinity();
        things.each().iter().any(|thing| {
            let line = self.lines.get(thing);
            line.is_some_and(|line| line.is_held(entry.id())) || self.has_earlier(*thing, entry)
        })
    }

    pub(super) fn hold(&mut self, entry: &mut Entry) {
        if !entry.holds {
            entry.holds = true;
            for thing in entry.request.operation.affinity().each() {
                let line = self.lines.entry(*thing).or_default();
                line.holders.push(entry.id());
            }
        }
    }

    pub(super) fn park(&mut self, mut entry: Entry) {
        self.unplace(&mut entry);
        for thing in entry.request.operation.affinity().each() {
            let waiting = &mut self.lines.entry(*thing).or_default().waiting;
            let at = waiting.partition_point(|id| *id < entry.id());
            waiting.insert(at, entry.id());
        }
        self.parked.insert(entry.id(), entry);
    }

    /// An operation is over, or was never sent. Answers those whose turn comes with that, see
    /// [`Holds::next_in_line`].
    pub(super) fn let_go(
        &mut self,
        entry: &mut Entry,
        route: impl FnMut(&Entry) -> TrackId,
    ) -> Vec<(Entry, TrackId)> {
        self.unplace(entry);
        if self.lines.is_empty() {
            return Vec::new();
        }
        self.release(entry);
        self.next_in_line(&entry.things(), route)
    }

    /// Parks an operation, whatever it holds. That may have been what the first of those that wait for the
    /// same things was waiting for, which may be itself: answers whose turn comes.
    pub(super) fn line_up(
        &mut self,
        mut entry: Entry,
        route: impl FnMut(&Entry) -> TrackId,
    ) -> Vec<(Entry, TrackId)> {
        let things = entry.things();
        self.release(&mut entry);
        self.park(entry);
        self.next_in_line(&things, route)
    }

    fn release(&mut self, entry: &mut Entry) {
        if std::mem::take(&mut entry.holds) {
            for thing in entry.request.operation.affinity().each() {
                if let Some(line) = self.lines.get_mut(thing) {
                    line.holders.retain(|holder| *holder != entry.id());
                }
            }
        }
    }

    /// Those that wait for nothing any more, in order: of each line up to the first that will hold it itself, so
    /// that a long line is not gone through for each of its operations. They are placed on the track that
    /// `route` names.
    pub(super) fn next_in_line(
        &mut self,
        things: &[u64],
        mut route: impl FnMut(&Entry) -> TrackId,
    ) -> Vec<(Entry, TrackId)> {
        let mut next = Vec::new();
        if self.lines.is_empty() {
            return next;
        }
        for thing in things {
            while let Some((entry, track)) = self.take_first(*thing, &mut route) {
                let will_hold = entry.request.operation.is_stepwise();
                next.push((entry, track));
                if will_hold {
                    break;
                }
            }
            self.tidy(*thing);
        }
        next
    }

    /// The first that waits for a thing, if it waits for nothing else.
    fn take_first(
        &mut self,
        thing: u64,
        route: &mut impl FnMut(&Entry) -> TrackId,
    ) -> Option<(Entry, TrackId)> {
        let id = *self.lines.get(&thing)?.waiting.front()?;
        let waiting = self.parked.get(&id)?;
        let things = waiting.things();
        let is_next = things.iter().all(|thing| {
            let line = self.lines.get(thing);
            line.is_some_and(|line| !line.is_held(id) && line.waiting.front() == Some(&id))
        });
        if !is_next {
            return None;
        }
        let track = route(waiting);
        let is_elsewhere = |thing| {
            self.bound
                .get(thing)
                .is_some_and(|it| !it.is_only_on(track))
        };
        if things.iter().any(is_elsewhere) {
            return None;
        }
        for thing in &things {
            if let Some(line) = self.lines.get_mut(thing) {
                line.waiting.pop_front();
            }
            self.tidy(*thing);
        }
        let mut entry = self.parked.remove(&id)?;
        self.place(&mut entry, track);
        Some((entry, track))
    }

    /// Forgets a line without holders and without anyone who waits.
    fn tidy(&mut self, thing: u64) {
        let is_over = |line: &Line| line.holders.is_empty() && line.waiting.is_empty();
        if self.lines.get(&thing).is_some_and(is_over) {
            self.lines.remove(&thing);
        }
    }

    /// Whether others wait for the same things.
    pub(super) fn is_awaited(&self, entry: &Entry) -> bool {
        let things = entry.request.operation.affinity();
        let waits = |thing| {
            self.lines
                .get(thing)
                .is_some_and(|it| !it.waiting.is_empty())
        };
        !self.lines.is_empty() && things.each().iter().any(waits)
    }

    /// How many wait.
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Those of one request that wait.
    pub(super) fn of_request(&mut self, id: u64) -> impl Iterator<Item = &mut Entry> {
        self.parked
            .range_mut((id, 0)..=(id, u32::MAX))
            .map(|(_, entry)| entry)
    }

    pub(super) fn parked_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.parked.values_mut()
    }

    /// Takes out those that are answered already.
    pub(super) fn take_answered(&mut self) -> Vec<Entry> {
        let ids: Vec<EntryId> = self
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::entry::{Nobody, Purpose};
    use super::*;
    use crate::internal::KillClient;
    use crate::metrics::OperationKind;
    use crate::request::{Affinity, Operation, Request, Step};
    use crate::{context::Context, resp::Commands, resp::Frame};

    struct On(u64);

    impl Operation for On {
        fn kind(&self) -> OperationKind {
            KillClient(0).kind()
        }
        fn affinity(&self) -> Affinity<'_> {
            Affinity::One(self.0)
        }
        fn encode(&mut self, _: &Context, _: &mut Commands<'_>) {}
        fn decode(&mut self, _: &Context, _: Vec<Frame>) -> Step {
            Step::Again
        }
        fn size(&self) -> usize {
            0
        }
    }

    fn entry(id: u64) -> Entry {
        let mut request = Request::new(Box::new(On(7)), Instant::now(), Box::new(Nobody));
        request.id = id;
        Entry::new(request, Purpose::Caller)
    }

    /// The first was put off; the second went to a track that can't send; the first then went to another.
    #[test]
    fn what_went_elsewhere_meanwhile_is_not_overtaken() {
        let mut holds = Holds::default();
        let (mut first, mut second, third) = (entry(1), entry(2), entry(3));
        holds.hold(&mut first);
        assert!(holds.may_place(&second, 1));
        holds.place(&mut second, 1);
        holds.place(&mut first, 2);
        assert!(holds.let_go(&mut first, |_| 2).is_empty());
        assert!(!holds.may_place(&third, 2));
        holds.park(third);
        let next = holds.let_go(&mut second, |_| 2);
        assert_eq!(next.len(), 1);
        for (mut entry, _) in next {
            holds.let_go(&mut entry, |_| 2);
        }
        assert!(holds.bound.is_empty() && holds.lines.is_empty());
    }
}
