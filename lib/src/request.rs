//! What travels through the engine: a request, the operation in it, and the one answer it gets.

use std::hash::{DefaultHasher, Hasher};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::config::Durability;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::{Counter, OperationKind};
use crate::replica::TopicsCursor;
use crate::resp::{Commands, Frame};

/// One operation on Redis, in one step or several. A step is one atomic unit and one round trip.
pub trait Operation: Send {
    /// Which row of the statistics it counts for.
    fn kind(&self) -> OperationKind;

    /// What the operation is on. Operations on the same thing run in the order submitted.
    fn affinity(&self) -> Affinity<'_>;

    /// It is about to be left in the queue.
    fn submitted(&mut self, _context: &Context) {}

    /// Writes the commands of the current step. Called again for the same step when it has to be
    /// sent again (a script was unknown, or the bytes never left), so it must not change it.
    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>);

    /// Reads the replies, one for each command of the step.
    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step;

    /// Whether it usually takes several steps. Then later operations on the same thing wait from the
    /// start; an operation that turns out to need another step makes only those wait that are not
    /// sent yet.
    fn is_stepwise(&self) -> bool {
        false
    }

    /// About how many bytes of memory the operation holds.
    fn size(&self) -> usize;

    /// The hash slot of the current step's keys in a cluster; `None` where any master will do. Asked
    /// for each step, and in a cluster alone.
    fn slot(&self, _context: &Context) -> Option<u16> {
        None
    }

    /// Whether it changes data, so that a level of durability applies to it.
    fn is_write(&self) -> bool {
        false
    }

    /// Whether the current step may be sent once more where nobody knows if it was done.
    fn may_repeat(&self) -> bool {
        true
    }

    /// Whether [`Operation::decode`] itself deals with `MOVED`, `ASK` and their like. They are handled
    /// for all others, whose step is one atomic unit in one slot.
    fn takes_redirects(&self) -> bool {
        false
    }

    /// The parts that are to be done apart, side by side, in a cluster; each on its own slot.
    /// [`Operation::join`] is then given their results.
    fn split(&mut self, _context: &Context) -> Option<Vec<Box<dyn Operation>>> {
        None
    }

    /// Puts the results of all parts together, in the order of the parts.
    fn join(&mut self, _results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        Err(Error::unexpected_reply("join"))
    }
}

/// The hash of a client id or a topic filter. Two that collide only wait for each other.
pub fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// What an operation is on: hashes of client ids or topic filters.
#[derive(Debug, Clone, Copy)]
pub enum Affinity<'a> {
    /// Nothing in particular.
    None,
    /// One client or filter.
    One(u64),
    /// Several.
    Many(&'a [u64]),
}

impl<'a> Affinity<'a> {
    /// Each of the things.
    pub fn each(&self) -> &[u64] {
        match self {
            Affinity::None => &[],
            Affinity::One(thing) => std::slice::from_ref(thing),
            Affinity::Many(things) => things,
        }
    }
}

/// What follows a step.
pub enum Step {
    /// The operation is over.
    Done(Result<Answer, Error>),
    /// Another step, which `encode` now writes.
    Again,
    /// The server does not know a script: load them all, then the same step again.
    LoadScripts,
    /// A foreign value may be at one of these keys: move it out of the way, then answer this.
    Repair(Vec<(Vec<u8>, &'static str)>, Error),
}

/// What an operation that succeeded gives its caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Done.
    Ok,
    /// A number.
    Count(u64),
    /// A stored term.
    Term(Bytes),
    /// Stored messages, with their ids.
    Messages(Vec<(Bytes, Bytes)>),
    /// Client ids or topic filters.
    Binaries(Vec<Bytes>),
    /// The messages' ids that a full queue dropped.
    Dropped(Vec<Bytes>),
    /// The ids that each client's full queue dropped.
    DroppedByClient(Vec<(Vec<u8>, Vec<Bytes>)>),
    /// A session's new epoch, and the session.
    Claimed(u64, Option<Bytes>),
    /// Filters and the nodes that they lead to.
    Routes(Vec<(Bytes, Bytes)>),
    /// Filters, persistent clients and the options of their subscriptions.
    Subscriptions(Vec<(Bytes, Bytes, Bytes)>),
    /// Topic filters, and where a listing of them goes on.
    Topics(Vec<Bytes>, Option<TopicsCursor>),
    /// The versions of the shards' feeds that hold a change.
    Versions(Vec<(u16, u64)>),
    /// Redis's own reply.
    Reply(Frame),
    /// Redis's own replies.
    Replies(Vec<Frame>),
}

/// Where the answer goes.
pub trait Responder: Send {
    /// Delivers the answer.
    fn respond(self: Box<Self>, result: Result<Answer, Error>);

    /// Whether nobody waits any more.
    fn is_abandoned(&self) -> bool;
}

/// For whoever waits within the library.
impl Responder for oneshot::Sender<Result<Answer, Error>> {
    fn respond(self: Box<Self>, result: Result<Answer, Error>) {
        let _ = self.send(result);
    }

    fn is_abandoned(&self) -> bool {
        self.is_closed()
    }
}

/// An operation on its way, and the certainty that it is answered exactly once.
pub struct Request {
    /// Numbers requests in the order in which they were submitted, from 1 on; 0 comes first.
    pub(crate) id: u64,
    /// Numbers the parts of one request from 1 on; 0 is a whole one.
    pub(crate) part: u32,
    /// How safe a write must be before it is answered; `None` for what the configuration says.
    pub(crate) durability: Option<Durability>,
    pub(crate) operation: Box<dyn Operation>,
    pub(crate) deadline: Instant,
    pub(crate) submitted: Instant,
    /// Whether a step of it is done, so that it may have changed something.
    pub(crate) began: bool,
    responder: Option<Box<dyn Responder>>,
    size: usize,
    load: Option<std::sync::Arc<crate::engine::Load>>,
}

impl Request {
    /// A request for the engine.
    pub fn new(
        operation: Box<dyn Operation>,
        deadline: Instant,
        responder: Box<dyn Responder>,
    ) -> Self {
        Request {
            id: 0,
            part: 0,
            durability: None,
            size: operation.size(),
            operation,
            deadline,
            submitted: Instant::now(),
            began: false,
            responder: Some(responder),
            load: None,
        }
    }

    /// The same with a level of durability of its own.
    pub fn with_durability(mut self, durability: Option<Durability>) -> Self {
        self.durability = durability;
        self
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Counts the request as in flight until it is answered.
    pub(crate) fn admit(&mut self, id: u64, load: std::sync::Arc<crate::engine::Load>) {
        self.id = id;
        self.load = Some(load);
    }

    /// Gives the request back unanswered: it was not accepted.
    pub(crate) fn refuse(mut self) {
        self.responder = None;
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.responder.is_none()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.responder.as_ref().is_none_or(|it| it.is_abandoned())
    }

    /// Drops the request without an answer: nobody waits for one.
    pub(crate) fn abandon(&mut self, context: &Context) {
        context.metrics.add(Counter::Abandoned, 1);
        self.responder = None;
        self.release();
    }

    /// Answers. Only the first answer is delivered.
    pub(crate) fn answer(&mut self, context: &Context, result: Result<Answer, Error>) {
        let Some(responder) = self.responder.take() else {
            return;
        };
        self.release();
        // Of a request in parts the whole counts.
        if self.part == 0 {
            let kind = self.operation.kind();
            context.metrics.finished(kind, self.submitted, &result);
        }
        deliver(responder, result);
    }

    fn release(&mut self) {
        if let Some(load) = self.load.take() {
            load.release(self.size);
        }
    }
}

impl Drop for Request {
    /// A request that is lost on its way, by whatever defect, is answered all the same.
    fn drop(&mut self) {
        self.release();
        if let Some(responder) = self.responder.take() {
            deliver(responder, Err(Error::Internal("request dropped".into())));
        }
    }
}

/// A responder that panics must not take the connection's other requests with it.
fn deliver(responder: Box<dyn Responder>, result: Result<Answer, Error>) {
    if catch_unwind(AssertUnwindSafe(|| responder.respond(result))).is_err() {
        tracing::error!("delivering an answer panicked");
    }
}
