//! Deadlines, cancellations and ends: what becomes of requests without their server's doing.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::entry::{Entry, Purpose};
use super::flight::{far_away, Flight};
use super::holds::TrackId;
use super::track::Kind;
use crate::context::Context;
use crate::error::{Error, Why};
use crate::internal::{Heartbeat, KillClient};
use crate::metrics::Counter;
use crate::request::Request;

/// A lost connection is closed at its server ahead of all else, however long that takes.
const KILL_DEADLINE: Duration = Duration::from_secs(3600);

/// With every so manyth heartbeat the server is asked for its replicas.
const REPLICAS_EVERY: u32 = 5;

impl Flight {
    /// Answers what is past its deadline. What was sent stays until its replies are in.
    pub(super) fn expire(&mut self, now: Instant) {
        if now < self.next_deadline {
            return;
        }
        let mut next = far_away();
        let mut must_let_go = false;
        let context = self.context.clone();
        for (_, track) in self.tracks.iter_mut() {
            for sent in &mut track.sent {
                expire_or_note(&mut sent.entry.request, now, &mut next, &context);
            }
            if let Kind::Durable(level) = track.kind {
                let due = track.confirmation.expire(&context, level, now);
                next = due.map_or(next, |due| due.min(next));
            }
            for entry in &mut track.pending {
                if expire_or_note(&mut entry.request, now, &mut next, &context) {
                    self.answered += 1;
                    must_let_go |= entry.must_let_go() || self.holds.is_awaited(entry);
                }
            }
        }
        for entry in self.holds.parked_mut() {
            if expire_or_note(&mut entry.request, now, &mut next, &context) {
                self.answered += 1;
                must_let_go |= entry.must_let_go();
            }
        }
        for (at, entry) in &mut self.delayed {
            if expire_or_note(&mut entry.request, now, &mut next, &context) {
                // Others wait for it.
                *at = now;
            }
        }
        self.tidy(must_let_go);
        // To look through a hundred thousand requests takes a while: not over and over.
        self.next_deadline = next.max(now + now.elapsed() * 4);
    }

    /// Answers these requests at once, unless they are answered already.
    pub(super) fn cancel(&mut self, ids: &HashSet<u64>) {
        let mut must_let_go = false;
        let context = self.context.clone();
        let mut answered = 0;
        let mut cancel = |entry: &mut Entry| {
            let is_news = !entry.request.is_answered();
            if is_news {
                answer_cancelled(&mut entry.request, &context);
                answered += 1;
            }
            is_news
        };
        for id in ids {
            for (_, track) in self.tracks.iter_mut() {
                for entry in track.of_request(*id) {
                    let lets_go = entry.must_let_go() || self.holds.is_awaited(entry);
                    must_let_go |= cancel(entry) && lets_go;
                }
            }
            for entry in self.holds.of_request(*id) {
                must_let_go |= cancel(entry) && entry.must_let_go();
            }
        }
        self.answered += answered;
        for (_, track) in self.tracks.iter_mut() {
            let sent = track.sent.iter_mut().map(|sent| &mut sent.entry.request);
            for request in sent.chain(track.confirmation.requests()) {
                if ids.contains(&request.id) {
                    request.began = true;
                    answer_cancelled(request, &context);
                }
            }
        }
        for (at, entry) in &mut self.delayed {
            if ids.contains(&entry.request.id) {
                answer_cancelled(&mut entry.request, &context);
                *at = Instant::now();
            }
        }
        self.tidy(must_let_go);
    }

    /// What is answered and holds nothing may stay until it comes up, so that each of a hundred
    /// thousand cancellations does not move all the rest.
    fn tidy(&mut self, must_let_go: bool) {
        let pending: usize = self.tracks.iter().map(|(_, it)| it.pending.len()).sum();
        let waiting = pending + self.holds.parked();
        if must_let_go || self.answered > 64 && self.answered * 2 > waiting {
            self.take_answered();
        }
    }

    /// Removes what is answered from where it waits, and lets go of what it held.
    fn take_answered(&mut self) {
        self.answered = 0;
        for entry in self.holds.take_answered() {
            self.finish(entry);
        }
        let is_answered = |entry: &Entry| entry.request.is_answered();
        let ids: Vec<TrackId> = self.tracks.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(track) = self.tracks.get(id) else {
                continue;
            };
            if track.pending.iter().any(is_answered) {
                let (answered, rest): (VecDeque<_>, VecDeque<_>) =
                    std::mem::take(&mut track.pending)
                        .into_iter()
                        .partition(is_answered);
                track.pending = rest;
                answered
                    .into_iter()
                    .for_each(|entry| drop(self.end(id, entry)));
            }
        }
    }

    /// Fails what waits for a track; what has done a step may have changed something.
    pub(super) fn fail_pending(&mut self, id: TrackId, error: &Error) {
        // What is over lets others go on, perhaps on this very track.
        while let Some(mut entry) = self.tracks.get(id).and_then(|it| it.pending.pop_front()) {
            let error = ended(&entry, error);
            entry.request.answer(&self.context, Err(error));
            self.end(id, entry);
        }
    }

    /// The connection of a track is gone after `written` bytes. What begins behind them was never sent and
    /// waits for the next connection. Of the rest nobody knows whether it was done: where
    /// `may_repeat`, what can be repeated waits too, ahead of what came later.
    pub(super) fn abort_sent(&mut self, id: TrackId, written: u64, why: &Why, may_repeat: bool) {
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        let error = Error::Unknown(why.clone());
        track.confirmation.fail(&self.context, &error);
        // The next connection loads the scripts itself, and closes the lost ones.
        track.loading_scripts = false;
        track.heartbeat_due = false;
        track.pending.retain(|it| it.purpose == Purpose::Caller);
        self.give_up(id, why, |entry| entry.stepped_on.is_some());
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        for mut sent in std::mem::take(&mut track.sent) {
            let left = sent.begin < written;
            let repeats = !left || may_repeat && sent.entry.request.operation.may_repeat();
            // Of a durable write in steps the steps that are done can't be confirmed any more.
            let repeats = repeats && sent.entry.stepped_on.is_none();
            let request = &mut sent.entry.request;
            if request.is_answered() || sent.entry.purpose != Purpose::Caller || !repeats {
                request.answer(&self.context, Err(error.clone()));
                self.end(id, sent.entry);
                continue;
            }
            if left {
                request.began = true;
                sent.entry.is_doubtful = true;
            }
            if sent.entry.asking.take().is_some() {
                self.must_reroute = true;
            }
            self.context.metrics.add(Counter::Retried, 1);
            if sent.again {
                // The one ahead of it, which was not done, may be elsewhere.
                self.line_up(sent.entry);
            } else if let Some(track) = self.tracks.get(id) {
                track.insert(sent.entry);
            }
        }
    }

    /// The lost connection can't be closed at the server: what may have been done there is not repeated.
    pub(super) fn give_doubtful_up(&mut self, id: TrackId, why: &Why) {
        self.give_up(id, why, |entry| entry.is_doubtful);
    }

    /// Answers that nobody knows what became of these that wait for a track.
    fn give_up(&mut self, id: TrackId, why: &Why, which: impl Fn(&Entry) -> bool) {
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        let (over, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut track.pending)
            .into_iter()
            .partition(which);
        track.pending = rest;
        for mut entry in over {
            let error = Error::Unknown(why.clone());
            entry.request.answer(&self.context, Err(error));
            self.end(id, entry);
        }
    }

    /// Has a lost connection closed at its server, ahead of all that a track sends there from now on.
    pub(super) fn kill(&mut self, id: TrackId, client: i64) {
        let operation = Box::new(KillClient(client));
        self.internal(id, operation, Purpose::Kill, KILL_DEADLINE);
    }

    /// Answers everything that is left.
    pub(super) fn stop(&mut self) {
        for (_, mut entry) in std::mem::take(&mut self.delayed) {
            let error = ended(&entry, &Error::Stopped);
            entry.request.answer(&self.context, Err(error));
            self.finish(entry);
        }
        // What ends lets others go on, which then end in their turn.
        while self.holds.parked() > 0 || self.tracks.iter().any(|(_, it)| !it.pending.is_empty()) {
            for entry in self.holds.parked_mut() {
                let error = ended(entry, &Error::Stopped);
                entry.request.answer(&self.context, Err(error));
            }
            self.take_answered();
            // What was let go may have taken a track that is new.
            let ids: Vec<TrackId> = self.tracks.iter().map(|(id, _)| id).collect();
            for id in ids {
                self.fail_pending(id, &Error::Stopped);
            }
        }
    }

    /// Sees to it that the server is asked for its time every `period`.
    pub(super) fn heartbeat(
        &mut self,
        id: TrackId,
        now: Instant,
        period: Duration,
        deadline: Duration,
    ) {
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        if track.is_up && !track.heartbeat_due && now.duration_since(track.heartbeat_sent) >= period
        {
            track.heartbeat_due = true;
            track.heartbeat_sent = now;
            track.heartbeats = track.heartbeats.wrapping_add(1);
            let asks_for_replicas =
                track.kind == Kind::Data && track.heartbeats % REPLICAS_EVERY == 0;
            let operation = Box::new(Heartbeat { asks_for_replicas });
            self.internal(id, operation, Purpose::Heartbeat, deadline);
        }
    }

    /// Whether answers are due on a track and its server has been silent for `limit`. Commands of users
    /// may be slow: on their connection the deadline of what is waited for counts as well.
    pub(super) fn is_hung(
        &self,
        id: TrackId,
        now: Instant,
        last_read: Instant,
        limit: Duration,
    ) -> bool {
        let Some(track) = self.tracks.peek(id) else {
            return false;
        };
        track.sent.front().is_some_and(|sent| {
            let silent_since = last_read.max(sent.at);
            now.saturating_duration_since(silent_since) >= limit
                && (track.kind != Kind::Query || sent.entry.request.deadline <= now)
        })
    }
}

/// What a request that is given up is told.
fn ended(entry: &Entry, error: &Error) -> Error {
    match error {
        Error::Unavailable(why) if entry.request.began => Error::Unknown(why.clone()),
        Error::Stopped if entry.request.began => Error::Unknown(Why::Stopped),
        _ => error.clone(),
    }
}

fn answer_cancelled(request: &mut Request, context: &Context) {
    let error = match request.began {
        true => Error::Unknown(Why::Cancelled),
        false => Error::Cancelled,
    };
    request.answer(context, Err(error));
}

/// True when it was answered here.
fn expire_or_note(
    request: &mut Request,
    now: Instant,
    next: &mut Instant,
    context: &Context,
) -> bool {
    if request.is_answered() {
        return false;
    }
    if request.deadline <= now {
        request.answer(context, Err(Error::Timeout));
        return true;
    }
    *next = (*next).min(request.deadline);
    false
}
