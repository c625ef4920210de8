//! All requests that are under way: which track each takes, who waits for whom, and what becomes of
//! them when tracks come and go. What passes between a track and its server is in `exchange.rs`, deadlines
//! and ends are in `upkeep.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::entry::{Entry, Nobody, Purpose};
use super::fork;
use super::holds::{Holds, TrackId};
use super::track::{Tracks, NOWHERE};
use crate::connection::TimeSample;
use crate::context::Context;
use crate::error::{Error, Why};
use crate::request::{Operation, Request};
use crate::topology::View;

pub(super) struct Flight {
    pub(super) context: Arc<Context>,
    pub(super) tracks: Tracks,
    /// What waits for other operations.
    pub(super) holds: Holds,
    /// What is tried again at a time of its own.
    pub(super) delayed: Vec<(Instant, Entry)>,
    /// How many of those that wait are answered already: they are taken out when they come up, or
    /// when they are the greater part.
    pub(super) answered: usize,
    /// No unanswered request has an earlier deadline.
    pub(super) next_deadline: Instant,
    /// How long requests wait for servers that do not serve.
    pub(super) grace: Duration,
    /// How many connections there have been.
    lives: u64,
    /// What servers said of their replicas.
    pub(super) reports: Vec<(TrackId, Bytes)>,
    /// The track whose server has the reference clock.
    reference: Option<TrackId>,
    /// Whether a server said that what is known of the topology is outdated.
    pub(super) is_outdated: bool,
    /// Whether requests may have to take other tracks than those that they are on.
    pub(super) must_reroute: bool,
}

pub(super) fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365)
}

impl Flight {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Flight {
            context,
            tracks: Tracks::new(),
            holds: Holds::default(),
            delayed: Vec::new(),
            answered: 0,
            next_deadline: far_away(),
            grace: Duration::ZERO,
            lives: 0,
            reports: Vec::new(),
            reference: None,
            is_outdated: false,
            must_reroute: false,
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        let delayed = self.delayed.iter().map(|(at, _)| *at);
        let resting = self.tracks.iter();
        let resting = resting.filter_map(|(_, track)| track.confirmation.rests_until());
        delayed
            .chain(resting)
            .fold(self.next_deadline, Instant::min)
    }

    /// Takes a request on.
    pub(super) fn accept(&mut self, mut request: Request) {
        self.next_deadline = self.next_deadline.min(request.deadline);
        if request.durability.is_none() && request.operation.is_write() {
            request.durability = Some(self.context.durability());
        }
        if self.context.keys.is_clustered() {
            request = match fork::split(&self.context, request) {
                fork::Split::Whole(request) => request,
                fork::Split::Parts(parts) => {
                    for part in parts {
                        self.place(Entry::new(part, Purpose::Caller));
                    }
                    return;
                }
            };
        }
        self.place(Entry::new(request, Purpose::Caller));
    }

    /// Whether steps of it are done that no connection can confirm any more.
    pub(super) fn has_lost_steps(&self, id: TrackId, entry: &Entry) -> bool {
        let life = self.tracks.peek(id).map(|track| track.life);
        entry.stepped_on.is_some() && entry.stepped_on != life
    }

    /// Puts a request on the track that it takes, or has it wait for others on the same things.
    pub(super) fn place(&mut self, mut entry: Entry) {
        let id = self.tracks.route(&self.context, &entry);
        if self.has_lost_steps(id, &entry) {
            return self.refuse(entry, Why::Closed);
        }
        // What holds the things that it is on is the first on them.
        if !entry.holds && !self.holds.may_place(&entry, id) {
            return self.holds.park(entry);
        }
        let track = self.tracks.get(id);
        let refused = track.and_then(|track| track.refuses(self.grace));
        if let Some(why) = refused {
            return self.refuse(entry, why);
        }
        self.holds.place(&mut entry, id);
        self.put(id, entry);
    }

    fn put(&mut self, id: TrackId, entry: Entry) {
        if let Some(track) = self.tracks.get(id) {
            track.insert(entry);
        }
    }

    /// Answers that the server does not serve.
    pub(super) fn refuse(&mut self, mut entry: Entry, why: Why) {
        let error = match entry.request.began {
            true => Error::Unknown(why),
            false => Error::Unavailable(why),
        };
        entry.request.answer(&self.context, Err(error));
        self.finish(entry);
    }

    /// An operation is over: what waited for it may go on.
    pub(super) fn finish(&mut self, mut entry: Entry) -> Request {
        let (context, tracks) = (&self.context, &mut self.tracks);
        let next = self
            .holds
            .let_go(&mut entry, |waiting| tracks.route(context, waiting));
        self.put_all(next);
        entry.request
    }

    /// Has an operation wait for its turn among others on the same things, by its id.
    pub(super) fn line_up(&mut self, entry: Entry) {
        let (context, tracks) = (&self.context, &mut self.tracks);
        let next = self
            .holds
            .line_up(entry, |waiting| tracks.route(context, waiting));
        self.put_all(next);
    }

    fn put_all(&mut self, placed: Vec<(Entry, TrackId)>) {
        let mut placed = VecDeque::from(placed);
        while let Some((mut entry, id)) = placed.pop_front() {
            if !entry.request.is_answered() {
                self.put(id, entry);
                continue;
            }
            // Who waits behind it need not wait for a track that can't send.
            self.answered = self.answered.saturating_sub(1);
            let (context, tracks) = (&self.context, &mut self.tracks);
            let next = self
                .holds
                .let_go(&mut entry, |waiting| tracks.route(context, waiting));
            placed.extend(next);
        }
    }

    /// Leaves an operation of the engine's own, ahead of all others.
    pub(super) fn internal(
        &mut self,
        id: TrackId,
        operation: Box<dyn Operation>,
        purpose: Purpose,
        deadline: Duration,
    ) {
        let request = Request::new(operation, Instant::now() + deadline, Box::new(Nobody));
        self.next_deadline = self.next_deadline.min(request.deadline);
        if let Some(track) = self.tracks.get(id) {
            track.pending.push_front(Entry::new(request, purpose));
        }
    }

    /// Takes a view of who serves what in. Tracks that lead elsewhere are answered: their connections must
    /// be closed, and then [`Flight::remove`] takes them away.
    pub(super) fn adopt(&mut self, view: &View) -> Vec<TrackId> {
        self.must_reroute = true;
        self.tracks.adopt(&self.context, view)
    }

    /// Takes a track away. What it has not sent takes another one.
    pub(super) fn remove(&mut self, id: TrackId) {
        if id == NOWHERE {
            return;
        }
        if let Some(track) = self.tracks.remove(&self.context, id) {
            let callers = track.pending.into_iter();
            let callers = callers.filter(|entry| entry.purpose == Purpose::Caller);
            self.replace(callers.collect());
        }
        if self.reference == Some(id) {
            self.reference = None;
        }
    }

    /// Puts all that is not sent on the tracks that it takes now.
    pub(super) fn reroute(&mut self) {
        self.must_reroute = false;
        let mut waiting = VecDeque::new();
        for (_, track) in self.tracks.iter_mut() {
            let (callers, own): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut track.pending)
                .into_iter()
                .partition(|entry| entry.purpose == Purpose::Caller);
            track.pending = own;
            waiting.extend(callers);
        }
        self.replace(waiting);
    }

    fn replace(&mut self, waiting: VecDeque<Entry>) {
        let mut waiting = Vec::from(waiting);
        waiting.sort_by_key(Entry::id);
        for entry in &mut waiting {
            self.holds.unplace(entry);
        }
        let things: Vec<u64> = waiting.iter().flat_map(Entry::things).collect();
        for entry in waiting {
            self.place(entry);
        }
        // What was parked because they were bound elsewhere.
        let (context, tracks) = (&self.context, &mut self.tracks);
        let next = self
            .holds
            .next_in_line(&things, |waiting| tracks.route(context, waiting));
        self.put_all(next);
    }

    /// Takes in what servers' clocks say. One of them is the reference, of the others only the difference
    /// counts.
    pub(super) fn note_time(&mut self, id: TrackId, samples: &[TimeSample], is_new: bool) {
        let reference = *self.reference.get_or_insert(id);
        let clock = &self.context.clock;
        if reference == id && is_new {
            clock.distrust();
        }
        for sample in samples {
            if reference == id {
                clock.measure(sample.micros, sample.sent, sample.received);
            } else if let Some(track) = self.tracks.get(id) {
                let uncertainty = sample.received.saturating_duration_since(sample.sent) / 2;
                let age = sample.received.elapsed() + uncertainty;
                let skew = sample.micros + age.as_micros() as i64 - clock.reference_micros();
                if is_new || (skew - track.skew).abs() > uncertainty.as_micros() as i64 {
                    track.skew = skew;
                }
            }
        }
    }

    /// The connection of a track is there, or gone.
    pub(super) fn set_up(&mut self, id: TrackId, is_up: bool) {
        if let Some(track) = self.tracks.get(id) {
            track.is_up = is_up;
            if is_up {
                self.lives += 1;
                track.life = self.lives;
                track.skew = 0;
                track.served();
            }
        }
        if !is_up && self.reference == Some(id) {
            let up = self.tracks.iter().find(|(_, track)| track.is_up);
            self.reference = up.map(|(id, _)| id);
            if let Some(track) = self.reference.and_then(|id| self.tracks.get(id)) {
                track.skew = 0;
            }
        }
    }
}
