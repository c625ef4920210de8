//! What passes between a track and its server: requests become bytes, and replies become answers, next
//! steps, or a retreat.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

use super::confirm;
use super::entry::{Entry, Nobody, Purpose};
use super::flight::Flight;
use super::holds::TrackId;
use super::redirect::{self, Redirect};
use super::track::{Kind, Sent};
use super::wire::Wire;
use crate::connection::{time_reply, TimeSample};
use crate::error::{Error, Why};
use crate::internal::LoadScripts;
use crate::metrics::{Counter, OperationKind};
use crate::repair::Repair;
use crate::request::{Affinity, Answer, Operation, Request, Step};
use crate::resp::{Commands, Frame};

const SCRIPTS_DEADLINE: Duration = Duration::from_secs(5);
/// How long after a server could not do a step it is asked again.
const TRY_AGAIN: Duration = Duration::from_millis(10);
const REFUSED_AGAIN: Duration = Duration::from_millis(100);

impl Flight {
    /// Encodes what waits for a track, as far as its wire has room; true when anything was taken up.
    pub(super) fn send_pending(&mut self, id: TrackId, wire: &mut Wire) -> bool {
        let Some(track) = self.tracks.get(id) else {
            return false;
        };
        let is_durable = matches!(track.kind, Kind::Durable(_));
        if is_durable && track.confirmation.is_asked {
            return false;
        }
        let mut sends = false;
        while wire.has_room() {
            let Some(entry) = self.tracks.get(id).and_then(|it| it.pending.pop_front()) else {
                break;
            };
            // Whatever becomes of it, others may go on elsewhere.
            sends = true;
            if let Some(entry) = self.check(id, entry) {
                self.send(id, entry, wire);
            }
        }
        if is_durable {
            sends |= self.ask_to_confirm(id, wire);
        }
        sends
    }

    /// The entry, if it is still to be sent and its turn has come.
    fn check(&mut self, id: TrackId, mut entry: Entry) -> Option<Entry> {
        if entry.request.is_answered() {
            self.answered = self.answered.saturating_sub(1);
            self.end(id, entry);
            return None;
        }
        if self.holds.is_held(&entry) {
            self.line_up(entry);
            return None;
        }
        if self.has_lost_steps(id, &entry) {
            self.refuse(entry, Why::Closed);
            return None;
        }
        if !entry.holds && entry.request.is_abandoned() {
            entry.request.abandon(&self.context);
            self.end(id, entry);
            return None;
        }
        let unsupported = self.tracks.peek(id).and_then(|it| it.unsupported.clone());
        if let (Some(what), Purpose::Caller) = (unsupported, entry.purpose) {
            let error = Err(Error::Unsupported(what));
            entry.request.answer(&self.context, error);
            self.end(id, entry);
            return None;
        }
        Some(entry)
    }

    /// True when bytes were written for it.
    fn send(&mut self, id: TrackId, mut entry: Entry, wire: &mut Wire) -> bool {
        let Some(track) = self.tracks.get(id) else {
            return false;
        };
        self.context.clock.set_skew(track.skew);
        let begin = wire.end();
        let output = wire.output();
        let length = output.len();
        let mut commands = Commands::new(output);
        if entry.asking.is_some() {
            commands.command(&[b"ASKING"]);
        }
        let asking = commands.count();
        let (operation, context) = (&mut entry.request.operation, &self.context);
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            operation.encode(context, &mut commands);
            commands.count()
        }));
        match encoded {
            Ok(count) if count == asking => {
                wire.output().truncate(length);
                self.decode(id, entry, Vec::new());
                false
            }
            Ok(expected) => {
                self.context.metrics.add(Counter::Sent, 1);
                if entry.request.operation.is_stepwise() {
                    self.holds.hold(&mut entry);
                }
                let now = Instant::now();
                track.last_used = now;
                if let (Kind::Durable(_), Some(slot)) =
                    (track.kind, entry.request.operation.slot(&self.context))
                {
                    track.confirmation.slot = slot;
                    track.confirmation.asking.clone_from(&entry.asking);
                }
                track.sent.push_back(Sent {
                    entry,
                    replies: Vec::with_capacity(expected),
                    expected,
                    begin,
                    at: now,
                    again: false,
                });
                true
            }
            Err(panic) => {
                wire.output().truncate(length);
                self.panicked(&mut entry, panic);
                self.end(id, entry);
                false
            }
        }
    }

    /// Ends a batch of durable writes, if anything of it is done or under way.
    pub(super) fn ask_to_confirm(&mut self, id: TrackId, wire: &mut Wire) -> bool {
        let Some(track) = self.tracks.get(id) else {
            return false;
        };
        let callers = |sent: &&Sent| sent.entry.purpose == Purpose::Caller;
        let Kind::Durable(level) = track.kind else {
            return false;
        };
        if track.confirmation.is_asked {
            return false;
        }
        if track.confirmation.is_empty() && !track.sent.iter().any(|sent| callers(&sent)) {
            return false;
        }
        let now = Instant::now();
        if track
            .confirmation
            .rests_until()
            .is_some_and(|until| now < until)
        {
            return false;
        }
        let deadlines = track.sent.iter().filter(callers);
        let deadlines = deadlines.map(|sent| sent.entry.request.deadline);
        let slice = track.confirmation.slice(level, deadlines, now);
        let operation = track.confirmation.question(level, slice);
        track.confirmation.is_asked = true;
        let request = Request::new(Box::new(operation), now + slice * 100, Box::new(Nobody));
        let mut entry = Entry::new(request, Purpose::Confirm);
        if track.confirmation.prolonged().is_none() {
            entry.asking.clone_from(&track.confirmation.asking);
        }
        self.send(id, entry, wire)
    }

    /// Takes one reply in; false when nothing was asked.
    pub(super) fn reply(&mut self, id: TrackId, frame: Frame) -> bool {
        let Some(track) = self.tracks.get(id) else {
            return false;
        };
        let Some(sent) = track.sent.front_mut() else {
            return false;
        };
        sent.replies.push(frame);
        if sent.replies.len() < sent.expected {
            return true;
        }
        let Some(mut sent) = track.sent.pop_front() else {
            return true;
        };
        if sent.entry.asking.take().is_some() {
            sent.replies.remove(0);
        }
        match sent.entry.purpose {
            Purpose::Heartbeat => self.take_time(id, &sent),
            Purpose::Confirm => self.take_confirmation(id, &sent.replies),
            _ => {}
        }
        if sent.again {
            self.context.metrics.add(Counter::Retried, 1);
            self.once_more(id, sent.entry);
        } else {
            self.decode(id, sent.entry, sent.replies);
        }
        true
    }

    fn take_time(&mut self, id: TrackId, sent: &Sent) {
        if let Some(micros) = sent.replies.first().and_then(time_reply) {
            let sample = TimeSample {
                micros,
                sent: sent.at,
                received: Instant::now(),
            };
            self.note_time(id, &[sample], false);
        }
        if let Some(Frame::Bulk(info)) = sent.replies.get(1) {
            self.reports.push((id, info.clone()));
        }
    }

    fn take_confirmation(&mut self, id: TrackId, replies: &[Frame]) {
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        let Kind::Durable(level) = track.kind else {
            return;
        };
        for text in replies.iter().filter_map(Frame::error) {
            let text = String::from_utf8_lossy(text);
            tracing::warn!(error = %text, "writes could not be confirmed as durable");
        }
        let (reached, is_enough) = confirm::read(level, replies);
        let (context, now) = (&self.context, Instant::now());
        track.confirmation.confirm(context, reached, is_enough, now);
        track.confirmation.note_errors(replies, now);
        if track.confirmation.note_mark(replies.first()) {
            // The slot is moving away: write the mark in another one.
            let slot = track.confirmation.slot;
            let own = self.tracks.number_of(id);
            let mut others = (slot + 1..crate::slots::SLOTS).chain(0..slot);
            let other = others.find(|other| own == Some(self.context.slots.owner(*other)));
            if let (Some(other), Some(track)) = (other, self.tracks.get(id)) {
                track.confirmation.slot = other;
                track.confirmation.asking = None;
            }
        }
    }

    fn decode(&mut self, id: TrackId, mut entry: Entry, replies: Vec<Frame>) {
        if entry.purpose == Purpose::Caller && self.retreats(id, &mut entry, &replies) {
            return self.retreat(id, entry, &replies);
        }
        let context = &self.context;
        let operation = &mut entry.request.operation;
        let step = catch_unwind(AssertUnwindSafe(|| operation.decode(context, replies)));
        match step {
            Ok(Step::Done(result)) => self.done(id, entry, result),
            Ok(Step::Again) => {
                self.note_step(id, &mut entry);
                self.next_step(id, entry);
            }
            Ok(Step::LoadScripts) => {
                self.context.metrics.add(Counter::Retried, 1);
                self.load_scripts(id);
                // Of a write for several some may be done.
                if matches!(entry.request.operation.affinity(), Affinity::Many(_)) {
                    self.note_step(id, &mut entry);
                }
                self.next_step(id, entry);
            }
            Ok(Step::Repair(keys, error)) => {
                let kind = entry.request.operation.kind();
                let is_write = entry.request.operation.is_write();
                if is_write {
                    self.note_step(id, &mut entry);
                }
                let repair = Repair::new(kind, entry.things(), keys, error).after_write(is_write);
                entry.request.operation = Box::new(repair);
                self.next_step(id, entry);
            }
            Err(panic) => {
                self.panicked(&mut entry, panic);
                self.end(id, entry);
            }
        }
    }

    /// The operation is over. A durable write that is done is answered when it is confirmed.
    fn done(&mut self, id: TrackId, mut entry: Entry, result: Result<Answer, Error>) {
        let is_caller = entry.purpose == Purpose::Caller;
        let is_durable = self.tracks.get(id).is_some_and(|track| {
            // The heartbeat is answered also where nothing is served.
            if is_caller {
                track.served();
            }
            is_caller && matches!(track.kind, Kind::Durable(_))
        });
        match result {
            result @ (Ok(_) | Err(Error::PartialBatch(_))) if is_durable => {
                let request = self.end(id, entry);
                if let Some(track) = self.tracks.get(id) {
                    track.confirmation.add(request, result);
                }
            }
            result => {
                entry.request.answer(&self.context, result);
                self.end(id, entry);
            }
        }
    }

    /// Whether the replies say that the server did not do the step and another one, or another time, may.
    fn retreats(&mut self, id: TrackId, entry: &mut Entry, replies: &[Frame]) -> bool {
        if entry.request.is_answered() || replies.is_empty() {
            return false;
        }
        if entry.request.operation.takes_redirects() {
            self.note_moved(id, replies);
            return false;
        }
        match redirect::of(replies) {
            None => false,
            // A script of a caller's may have done a part of its work before it was refused the rest.
            Some(_)
                if entry.request.operation.kind() == OperationKind::Query
                    && redirect::is_within_script(replies) =>
            {
                false
            }
            // A single server that is a replica stays one: the caller is told.
            Some(Redirect::Refused(Why::NotMaster)) => self.context.follows_masters(),
            Some(Redirect::Refused(_)) => true,
            // A node of a cluster that the settings call a single server: likewise.
            Some(_) => self.context.keys.is_clustered(),
        }
    }

    /// Has the step sent again, to whom the server named or when it may serve.
    fn retreat(&mut self, id: TrackId, mut entry: Entry, replies: &[Frame]) {
        let Some(redirect) = redirect::of(replies) else {
            return;
        };
        self.context.metrics.add(Counter::Redirected, 1);
        let now = Instant::now();
        // Outside a cluster a write for several is several units, of which some may be done.
        if matches!(entry.request.operation.affinity(), Affinity::Many(_)) {
            entry.request.began = true;
        }
        // Two servers that each name the other are asked less often.
        entry.redirects += 1;
        let mut at = if entry.redirects > 3 {
            now + TRY_AGAIN
        } else {
            now
        };
        match redirect {
            Redirect::Moved(..) => self.note_moved(id, replies),
            Redirect::Ask(location) => {
                let asked = self.tracks.peek(id).and_then(|it| it.server.as_ref());
                entry.asking = asked.and_then(|asked| location.server(asked));
            }
            Redirect::TryAgain => at = now + TRY_AGAIN,
            Redirect::Refused(why) => {
                self.is_outdated = true;
                let since = *entry.refused_since.get_or_insert(now);
                let since = match self.tracks.get(id) {
                    Some(track) => track.refused(why.clone(), now).min(since),
                    None => since,
                };
                if now >= since + self.grace {
                    return self.refuse(entry, why);
                }
                at = now + REFUSED_AGAIN;
            }
        }
        self.holds.unplace(&mut entry);
        if !entry.holds {
            self.holds.hold(&mut entry);
            self.send_behind_again(id, &entry);
        }
        if at > now {
            self.delayed.push((at, entry));
        } else {
            self.place(entry);
        }
    }

    /// Takes in who owns slots now.
    fn note_moved(&mut self, id: TrackId, replies: &[Frame]) {
        let Some(asked) = self.tracks.peek(id).and_then(|it| it.server.clone()) else {
            return;
        };
        for (slot, location) in redirect::moved(replies) {
            if let Some(server) = location.server(&asked) {
                self.tracks.moved(&self.context, slot, &server);
                self.must_reroute = true;
            }
            self.is_outdated = true;
        }
    }

    /// Sends again what was put off, when its time has come.
    pub(super) fn send_delayed(&mut self, now: Instant) -> bool {
        let due = |delayed: &mut (Instant, Entry)| delayed.0 <= now;
        let due: Vec<_> = self.delayed.extract_if(.., due).collect();
        let any = !due.is_empty();
        for (_, entry) in due {
            match entry.request.is_answered() {
                true => drop(self.finish(entry)),
                false => self.place(entry),
            }
        }
        any
    }

    /// A step is done. Of a durable write only this connection can confirm it.
    fn note_step(&self, id: TrackId, entry: &mut Entry) {
        let track = self.tracks.peek(id);
        let durable = track.filter(|track| matches!(track.kind, Kind::Durable(_)));
        entry.stepped_on = durable.map(|track| track.life);
    }

    /// An operation has another step; whatever else is on the same client waits for it.
    fn next_step(&mut self, id: TrackId, mut entry: Entry) {
        if entry.request.is_answered() {
            self.end(id, entry);
            return;
        }
        entry.request.began = true;
        if !entry.holds {
            self.holds.hold(&mut entry);
            self.read_again_behind(id, &entry);
        }
        self.holds.unplace(&mut entry);
        self.place(entry);
    }

    /// What was sent behind an operation that was not done is to be done again. That operation may still have
    /// to wait for its own second time, and so has what comes behind it.
    fn once_more(&mut self, id: TrackId, mut entry: Entry) {
        if entry.request.is_answered() {
            self.end(id, entry);
            return;
        }
        entry.request.began = true;
        self.line_up(entry);
    }

    /// The server does not know a script: all of them are loaded ahead of what is sent from here on.
    fn load_scripts(&mut self, id: TrackId) {
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        if !std::mem::replace(&mut track.loading_scripts, true) {
            let operation = Box::new(LoadScripts);
            self.internal(id, operation, Purpose::Scripts, SCRIPTS_DEADLINE);
            // An operation was not done, but what was sent behind it and needs no script was, or will be. All
            // of it is done once more, in order; every operation may be repeated as long as none came between.
            self.send_again(id, |operation| !operation.affinity().each().is_empty());
        }
    }

    /// An operation needs a second step although most of its kind do not: what was sent behind it on the
    /// same thing and reads it in steps has begun too early, and begins anew.
    fn read_again_behind(&mut self, id: TrackId, first: &Entry) {
        let things = first.things();
        self.send_again(id, |operation| {
            operation.is_stepwise() && is_on(operation, &things)
        });
    }

    /// An operation was not done: what was sent behind it on the same thing is done once more behind it.
    fn send_behind_again(&mut self, id: TrackId, first: &Entry) {
        let mut things = first.things();
        self.send_again(id, |operation| {
            let is_behind = is_on(operation, &things);
            // What comes behind that one on another thing must still do so.
            if let (true, Affinity::Many(more)) = (is_behind, operation.affinity()) {
                things.extend(more);
            }
            is_behind
        });
    }

    /// Has operations that are sent sent once more when their replies are in. From now on they hold what
    /// they are on, so that nothing that is not sent yet comes between.
    fn send_again(&mut self, id: TrackId, mut which: impl FnMut(&dyn Operation) -> bool) {
        let Some(track) = self.tracks.get(id) else {
            return;
        };
        for sent in &mut track.sent {
            if which(sent.entry.request.operation.as_ref()) {
                sent.again = true;
                self.holds.hold(&mut sent.entry);
            }
        }
    }

    /// What was on a track is over.
    pub(super) fn end(&mut self, id: TrackId, entry: Entry) -> Request {
        if let Some(track) = self.tracks.get(id) {
            match entry.purpose {
                Purpose::Heartbeat => track.heartbeat_due = false,
                Purpose::Scripts => track.loading_scripts = false,
                Purpose::Caller | Purpose::Kill | Purpose::Confirm => {}
            }
        }
        self.finish(entry)
    }

    fn panicked(&self, entry: &mut Entry, panic: Box<dyn std::any::Any + Send>) {
        self.context.metrics.add(Counter::Panics, 1);
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!("an operation panicked: {text}");
        entry
            .request
            .answer(&self.context, Err(Error::Internal(text)));
    }
}

fn is_on(operation: &dyn Operation, things: &[u64]) -> bool {
    let its = operation.affinity();
    its.each().iter().any(|it| things.contains(it))
}
