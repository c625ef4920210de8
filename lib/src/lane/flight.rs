//! The requests of one connection: those that wait, those that are sent, and those that must wait
//! for an operation of several steps on the same client.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::Wire;
use crate::context::Context;
use crate::error::{Error, Why};
use crate::internal::{Heartbeat, LoadScripts, Repair};
use crate::metrics::Counter;
use crate::request::{Answer, Operation, Request, Responder, Step};
use crate::resp::{Commands, Frame};

pub(super) struct Flight {
    context: Arc<Context>,
    /// Not sent yet, in the order submitted.
    pending: VecDeque<Entry>,
    /// Sent and not answered by the server yet, in the order of the bytes.
    sent: VecDeque<Sent>,
    /// Wait for an operation of several steps, in the order submitted.
    parked: VecDeque<Entry>,
    /// How many of the operations between two steps, and of those parked, are on each thing.
    held: HashMap<u64, usize>,
    /// How many of those in `pending` are answered already: they are taken out when they come up, or
    /// when they are the greater part.
    answered: usize,
    /// No unanswered request has an earlier deadline.
    next_deadline: Instant,
    heartbeat_sent: Instant,
    heartbeat_due: bool,
    loading_scripts: bool,
}

/// A request that is not sent.
struct Entry {
    request: Request,
    /// It has done a step, or is parked: it holds what it is on until it is over.
    holds: bool,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Caller,
    Heartbeat,
    Scripts,
}

impl Entry {
    /// Whether others wait for its end.
    fn must_let_go(&self) -> bool {
        self.holds || self.purpose != Purpose::Caller
    }
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

/// Nobody waits for an internal request.
struct Nobody;

impl Responder for Nobody {
    fn respond(self: Box<Self>, _: Result<Answer, Error>) {}
    fn is_abandoned(&self) -> bool {
        false
    }
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
            parked: VecDeque::new(),
            held: HashMap::new(),
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
            let Some(entry) = self.pending.pop_front() else {
                break;
            };
            if !entry.holds {
                if entry.request.is_answered() {
                    self.answered = self.answered.saturating_sub(1);
                    continue;
                }
                if !self.held.is_empty() && self.is_held(&entry) {
                    self.park(entry);
                    continue;
                }
                if entry.request.is_abandoned() {
                    entry.request.abandon(&self.context);
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
                if !entry.holds && entry.request.operation.is_stepwise() {
                    entry.holds = true;
                    self.hold(&entry);
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
            entry.holds = true;
            self.hold(&entry);
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
        let mut sent = std::mem::take(&mut self.sent);
        for sent in &mut sent {
            if which(sent.entry.request.operation.as_ref()) {
                sent.again = true;
                if !sent.entry.holds {
                    sent.entry.holds = true;
                    self.hold(&sent.entry);
                }
            }
        }
        self.sent = sent;
    }

    fn insert_in_order(&mut self, entry: Entry) {
        let at = self
            .pending
            .partition_point(|other| other.request.id <= entry.request.id);
        self.pending.insert(at, entry);
    }

    /// An operation is over: what waited for it may go on.
    fn finish(&mut self, entry: Entry) {
        let held = entry.holds;
        self.let_go(entry);
        if held {
            self.unpark();
        }
    }

    fn let_go(&mut self, entry: Entry) {
        match entry.purpose {
            Purpose::Caller => {}
            Purpose::Heartbeat => self.heartbeat_due = false,
            Purpose::Scripts => self.loading_scripts = false,
        }
        if entry.holds {
            self.release(&entry);
        }
    }

    fn park(&mut self, mut entry: Entry) {
        // What comes later on any of the same things must not overtake it.
        entry.holds = true;
        self.hold(&entry);
        self.parked.push_back(entry);
    }

    fn unpark(&mut self) {
        let parked = std::mem::take(&mut self.parked);
        for entry in &parked {
            self.release(entry);
        }
        // What is left in `held` belongs to operations between their steps.
        for mut entry in parked {
            if self.is_held(&entry) {
                self.park(entry);
            } else {
                entry.holds = false;
                self.insert_in_order(entry);
            }
        }
    }

    fn is_held(&self, entry: &Entry) -> bool {
        let things = entry.request.operation.affinity();
        things.each().iter().any(|it| self.held.contains_key(it))
    }

    fn hold(&mut self, entry: &Entry) {
        for thing in entry.request.operation.affinity().each() {
            *self.held.entry(*thing).or_default() += 1;
        }
    }

    fn release(&mut self, entry: &Entry) {
        for thing in entry.request.operation.affinity().each() {
            if let Some(count) = self.held.get_mut(thing) {
                *count -= 1;
                if *count == 0 {
                    self.held.remove(thing);
                }
            }
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
        for list in [&mut self.pending, &mut self.parked] {
            for entry in list.iter_mut() {
                if expire_or_note(&mut entry.request, now, &mut next, &self.context) {
                    self.answered += 1;
                    must_let_go |= entry.must_let_go();
                }
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
            let at = self.pending.partition_point(|it| it.request.id < *id);
            match self.pending.get_mut(at) {
                Some(entry) if entry.request.id == *id => cancel(entry),
                _ => {}
            }
        }
        for entry in &mut self.parked {
            if ids.contains(&entry.request.id) {
                cancel(entry);
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
        if must_let_go || self.answered > 64 && self.answered * 2 > self.pending.len() {
            self.take_answered();
        }
    }

    /// Removes what is answered from where it waits, and lets go of what it held.
    fn take_answered(&mut self) {
        self.answered = 0;
        let mut over = Vec::new();
        for list in [&mut self.pending, &mut self.parked] {
            if list.iter().any(|entry| entry.request.is_answered()) {
                let (answered, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(list)
                    .into_iter()
                    .partition(|entry| entry.request.is_answered());
                *list = rest;
                over.extend(answered);
            }
        }
        if !over.is_empty() {
            over.into_iter().for_each(|entry| self.let_go(entry));
            self.unpark();
        }
    }

    /// Fails what waits; what has done a step may have changed something.
    pub(super) fn fail_pending(&mut self, error: &Error) {
        if self.pending.is_empty() && self.parked.is_empty() {
            return;
        }
        for list in [&mut self.pending, &mut self.parked] {
            for entry in list.iter_mut() {
                let error = match error {
                    Error::Unavailable(why) if entry.request.began => Error::Unknown(why.clone()),
                    Error::Stopped if entry.request.began => Error::Unknown(Why::Stopped),
                    _ => error.clone(),
                };
                entry.request.answer(&self.context, Err(error));
            }
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
