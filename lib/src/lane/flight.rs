//! The requests of one connection: those that wait, those that are sent, and those that must wait
//! for an operation of several steps on the same client (see `holds.rs`).

use std::collections::{HashSet, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Entry, Nobody, Purpose};
use super::holds::Holds;
use super::wire::Wire;
use crate::context::Context;
use crate::error::{Error, Why};
use crate::internal::{Heartbeat, LoadScripts};
use crate::metrics::Counter;
use crate::repair::Repair;
use crate::request::{Operation, Request, Step};
use crate::resp::{Commands, Frame};

pub(super) struct Flight {
    context: Arc<Context>,
    /// Not sent yet, in the order submitted.
    pending: VecDeque<Entry>,
    /// Sent and not answered by the server yet, in the order of the bytes.
    sent: VecDeque<Sent>,
    /// What waits for operations of several steps.
    holds: Holds,
    /// How many of those that wait are answered already: they are taken out when they come up, or
    /// when they are the greater part.
    answered: usize,
    /// No unanswered request has an earlier deadline.
    next_deadline: Instant,
    heartbeat_sent: Instant,
    heartbeat_due: bool,
    loading_scripts: bool,
}

struct Sent {
    entry: Entry,
    replies: Vec<Frame>,
    expected: usize,
    /// Where its bytes begin in the connection's life.
    begin: u64,
    at: Instant,
    /// An earlier operation on the same thing has to be sent again, and this one after it.
    again: bool,
}

const SCRIPTS_DEADLINE: Duration = Duration::from_secs(5);

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365)
}

impl Flight {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Flight {
            context,
            pending: VecDeque::new(),
            sent: VecDeque::new(),
            holds: Holds::default(),
            answered: 0,
            next_deadline: far_away(),
            heartbeat_sent: Instant::now(),
            heartbeat_due: false,
            loading_scripts: false,
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.next_deadline
    }

    pub(super) fn nothing_sent(&self) -> bool {
        self.sent.is_empty()
    }

    /// Takes a request on.
    pub(super) fn accept(&mut self, request: Request) {
        self.next_deadline = self.next_deadline.min(request.deadline);
        self.pending.push_back(Entry {
            request,
            holds: false,
            purpose: Purpose::Caller,
        });
    }

    /// Encodes what waits, as far as the wire has room; true when anything was.
    pub(super) fn send_pending(&mut self, wire: &mut Wire) -> bool {
        let before = self.sent.len();
        while wire.has_room() {
            let Some(mut entry) = self.pending.pop_front() else {
                break;
            };
            if !entry.holds {
                if entry.request.is_answered() {
                    self.answered = self.answered.saturating_sub(1);
                    self.finish(entry);
                    continue;
                }
                if self.holds.is_held(&entry) {
                    self.holds.park(entry);
                    continue;
                }
                if entry.request.is_abandoned() {
                    entry.request.abandon(&self.context);
                    self.finish(entry);
                    continue;
                }
            }
            self.send(entry, wire);
        }
        self.sent.len() > before
    }

    fn send(&mut self, mut entry: Entry, wire: &mut Wire) {
        let begin = wire.end();
        let output = wire.output();
        let length = output.len();
        let mut commands = Commands::new(output);
        let operation = &mut entry.request.operation;
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            operation.encode(&self.context, &mut commands);
            commands.count()
        }));
        match encoded {
            Ok(0) => self.decode(entry, Vec::new()),
            Ok(expected) => {
                self.context.metrics.add(Counter::Sent, 1);
                if entry.request.operation.is_stepwise() {
                    self.holds.hold(&mut entry);
                }
                self.sent.push_back(Sent {
                    entry,
                    replies: Vec::with_capacity(expected),
                    expected,
                    begin,
                    at: Instant::now(),
                    again: false,
                });
            }
            Err(panic) => {
                wire.output().truncate(length);
                self.panicked(&mut entry, panic);
                self.finish(entry);
            }
        }
    }

    /// Takes one reply in; false when nothing was asked.
    pub(super) fn reply(&mut self, frame: Frame) -> bool {
        let Some(sent) = self.sent.front_mut() else {
            return false;
        };
        sent.replies.push(frame);
        if sent.replies.len() == sent.expected {
            match self.sent.pop_front() {
                Some(sent) if sent.again => {
                    self.context.metrics.add(Counter::Retried, 1);
                    self.next_step(sent.entry);
                }
                Some(sent) => self.decode(sent.entry, sent.replies),
                None => {}
            }
        }
        true
    }

    fn decode(&mut self, mut entry: Entry, replies: Vec<Frame>) {
        let context = &self.context;
        let operation = &mut entry.request.operation;
        let step = catch_unwind(AssertUnwindSafe(|| operation.decode(context, replies)));
        match step {
            Ok(Step::Done(result)) => {
                entry.request.answer(&self.context, result);
                self.finish(entry);
            }
            Ok(Step::Again) => self.next_step(entry),
            Ok(Step::LoadScripts) => {
                self.context.metrics.add(Counter::Retried, 1);
                if !self.loading_scripts {
                    self.loading_scripts = true;
                    self.internal(Box::new(LoadScripts), Purpose::Scripts, SCRIPTS_DEADLINE);
                    self.send_followers_again();
                }
                self.next_step(entry);
            }
            Ok(Step::Repair(keys, error)) => {
                let kind = entry.request.operation.kind();
                let affinity = entry.request.operation.affinity().each().to_vec();
                entry.request.operation = Box::new(Repair::new(kind, affinity, keys, error));
                self.next_step(entry);
            }
            Err(panic) => {
                self.panicked(&mut entry, panic);
                self.finish(entry);
            }
        }
    }

    /// An operation has another step; whatever else is on the same client waits for it.
    fn next_step(&mut self, mut entry: Entry) {
        if entry.request.is_answered() {
            return self.finish(entry);
        }
        entry.request.began = true;
        if !entry.holds {
            self.holds.hold(&mut entry);
            self.read_again_behind(&entry);
        }
        self.insert_in_order(entry);
    }

    /// An operation needs a second step although most of its kind do not: what was sent behind it on the
    /// same thing and reads it in steps has begun too early, and begins anew.
    fn read_again_behind(&mut self, first: &Entry) {
        let things = first.request.operation.affinity().each().to_vec();
        self.send_again(|operation| {
            let its = operation.affinity();
            operation.is_stepwise() && its.each().iter().any(|it| things.contains(it))
        });
    }

    /// The server has forgotten the scripts: an operation was not done, but what was sent behind it and
    /// needs no script was, or will be. All of it is done once more, in order; every operation may be
    /// repeated as long as none came between. What is sent from here on is behind `LoadScripts`.
    fn send_followers_again(&mut self) {
        self.send_again(|operation| !operation.affinity().each().is_empty());
    }

    /// Has operations that are sent sent once more when their replies are in. From now on they hold what
    /// they are on, so that nothing that is not sent yet comes between.
    fn send_again(&mut self, which: impl Fn(&dyn Operation) -> bool) {
        for sent in &mut self.sent {
            if which(sent.entry.request.operation.as_ref()) {
                sent.again = true;
                self.holds.hold(&mut sent.entry);
            }
        }
    }

    fn insert_in_order(&mut self, entry: Entry) {
        let at = self
            .pending
            .partition_point(|other| other.id() <= entry.id());
        self.pending.insert(at, entry);
    }

    /// An operation is over: what waited for it may go on.
    fn finish(&mut self, entry: Entry) {
        match entry.purpose {
            Purpose::Caller => {}
            Purpose::Heartbeat => self.heartbeat_due = false,
            Purpose::Scripts => self.loading_scripts = false,
        }
        for next in self.holds.let_go(&entry) {
            self.insert_in_order(next);
        }
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

    /// Answers what is past its deadline. What was sent stays until its replies are in.
    pub(super) fn expire(&mut self, now: Instant) {
        if now < self.next_deadline {
            return;
        }
        let mut next = far_away();
        let mut must_let_go = false;
        for sent in &mut self.sent {
            expire_or_note(&mut sent.entry.request, now, &mut next, &self.context);
        }
        for entry in self.pending.iter_mut().chain(self.holds.parked_mut()) {
            if expire_or_note(&mut entry.request, now, &mut next, &self.context) {
                self.answered += 1;
                must_let_go |= entry.must_let_go();
            }
        }
        self.tidy(must_let_go);
        // To look through a hundred thousand requests takes a while: not over and over.
        self.next_deadline = next.max(now + now.elapsed() * 4);
    }

    /// Answers these requests at once, unless they are answered already.
    pub(super) fn cancel(&mut self, ids: &HashSet<u64>) {
        let mut must_let_go = false;
        let mut cancel = |entry: &mut Entry| {
            if entry.request.is_answered() {
                return;
            }
            let error = match entry.request.began {
                true => Error::Unknown(Why::Cancelled),
                false => Error::Cancelled,
            };
            entry.request.answer(&self.context, Err(error));
            self.answered += 1;
            must_let_go |= entry.must_let_go();
        };
        for id in ids {
            let at = self.pending.partition_point(|it| it.id() < *id);
            match self.pending.get_mut(at) {
                Some(entry) if entry.id() == *id => cancel(entry),
                _ => self.holds.get_mut(*id).into_iter().for_each(&mut cancel),
            }
        }
        for sent in &mut self.sent {
            if ids.contains(&sent.entry.request.id) {
                let error = Error::Unknown(Why::Cancelled);
                sent.entry.request.answer(&self.context, Err(error));
            }
        }
        self.tidy(must_let_go);
    }

    /// What is answered and holds nothing may stay until it comes up, so that each of a hundred
    /// thousand cancellations does not move all the rest.
    fn tidy(&mut self, must_let_go: bool) {
        let waiting = self.pending.len() + self.holds.parked();
        if must_let_go || self.answered > 64 && self.answered * 2 > waiting {
            self.take_answered();
        }
    }

    /// Removes what is answered from where it waits, and lets go of what it held.
    fn take_answered(&mut self) {
        self.answered = 0;
        let mut over = self.holds.take_answered();
        let is_answered = |entry: &Entry| entry.request.is_answered();
        if self.pending.iter().any(is_answered) {
            let (answered, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition(is_answered);
            self.pending = rest;
            over.extend(answered);
        }
        for entry in over {
            self.finish(entry);
        }
    }

    /// Fails what waits; what has done a step may have changed something.
    pub(super) fn fail_pending(&mut self, error: &Error) {
        if self.pending.is_empty() && self.holds.parked() == 0 {
            return;
        }
        for entry in self.pending.iter_mut().chain(self.holds.parked_mut()) {
            let error = match error {
                Error::Unavailable(why) if entry.request.began => Error::Unknown(why.clone()),
                Error::Stopped if entry.request.began => Error::Unknown(Why::Stopped),
                _ => error.clone(),
            };
            entry.request.answer(&self.context, Err(error));
        }
        self.take_answered();
    }

    /// The connection is gone after `written` bytes. What begins behind them was never sent and
    /// waits for the next connection; of the rest nobody knows.
    pub(super) fn abort_sent(&mut self, written: u64, why: &Why) {
        let sent = std::mem::take(&mut self.sent);
        for mut sent in sent {
            if sent.begin >= written && !sent.entry.request.is_answered() {
                self.context.metrics.add(Counter::Retried, 1);
                self.insert_in_order(sent.entry);
            } else {
                let error = Error::Unknown(why.clone());
                sent.entry.request.answer(&self.context, Err(error));
                self.finish(sent.entry);
            }
        }
        // The next connection loads the scripts itself.
        self.loading_scripts = false;
        self.heartbeat_due = false;
        self.pending
            .retain(|entry| entry.purpose == Purpose::Caller);
    }

    /// Answers everything that is left.
    pub(super) fn stop(&mut self) {
        self.fail_pending(&Error::Stopped);
    }

    /// Sees to it that the server is asked for its time every `period`.
    pub(super) fn heartbeat(&mut self, now: Instant, period: Duration, deadline: Duration) {
        if !self.heartbeat_due && now.duration_since(self.heartbeat_sent) >= period {
            self.heartbeat_due = true;
            self.heartbeat_sent = now;
            let heartbeat = Box::new(Heartbeat::default());
            self.internal(heartbeat, Purpose::Heartbeat, deadline);
        }
    }

    fn internal(&mut self, operation: Box<dyn Operation>, purpose: Purpose, deadline: Duration) {
        let request = Request::new(operation, Instant::now() + deadline, Box::new(Nobody));
        self.next_deadline = self.next_deadline.min(request.deadline);
        self.pending.push_front(Entry {
            request,
            holds: false,
            purpose,
        });
    }

    /// Whether answers are due and the server has been silent for `limit`. A `patient` connection
    /// waits until the deadline of what it waits for as well.
    pub(super) fn is_hung(
        &self,
        now: Instant,
        last_read: Instant,
        limit: Duration,
        patient: bool,
    ) -> bool {
        self.sent.front().is_some_and(|sent| {
            let silent_since = last_read.max(sent.at);
            now.saturating_duration_since(silent_since) >= limit
                && (!patient || sent.entry.request.deadline <= now)
        })
    }
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
