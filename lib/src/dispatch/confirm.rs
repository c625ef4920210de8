//! Durable writes: done, and answered only when enough copies of them exist.
//!
//! What waits goes out as one batch, and one `WAIT` or `WAITAOF` behind it serves all of it; the next batch
//! is sent when that is answered. Redis waits for the last write of the connection that *changed*
//! something, so that a repeated write would be confirmed unseen: each batch ends with a write that
//! always changes something. Commands: <https://redis.io/docs/latest/commands/wait/>,
//! <https://redis.io/docs/latest/commands/waitaof/>.

use std::time::{Duration, Instant};

use crate::config::{Durability, Server};
use crate::context::Context;
use crate::error::{Error, Reached};
use crate::metrics::OperationKind;
use crate::request::{Affinity, Answer, Operation, Request, Step};
use crate::resp::{Commands, Frame};

/// How long the server is asked to wait at a time. What is not confirmed by then is asked for again, with
/// the next batch: so an unmet level does not keep what comes behind it from being written.
const SLICE: Duration = Duration::from_millis(100);
/// A request is told that it was not confirmed so long before its deadline.
const MARGIN: Duration = Duration::from_millis(20);
/// What makes a batch propagate lives for a minute.
const MARK_TTL_MS: u64 = 60_000;

/// What has been done on a connection and waits to be confirmed.
#[derive(Default)]
pub(super) struct Confirmation {
    /// With the answers that they get.
    waiting: Vec<(Request, Result<Answer, Error>)>,
    /// How far the last batch got, if it was not confirmed.
    reached: Option<Reached>,
    /// Whether the server is waiting already.
    pub(super) is_asked: bool,
    /// The slot of a key of the last batch, where the next mark is written in a cluster.
    pub(super) slot: u16,
    /// Whom the last batch was sent to with ASKING: the slot is on its way there.
    pub(super) asking: Option<Server>,
    /// Errors are answered at once: how many there were in a row, and until when the next question waits.
    errors: u32,
    rests_until: Option<Instant>,
}

impl Confirmation {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A write is done.
    pub(super) fn add(&mut self, request: Request, result: Result<Answer, Error>) {
        self.waiting.push((request, result));
    }

    /// How long the server may wait this time.
    pub(super) fn slice(&self, sent: impl Iterator<Item = Instant>, now: Instant) -> Duration {
        let waiting = self.waiting.iter().map(|(request, _)| request.deadline);
        let first = waiting.chain(sent).min().unwrap_or(now + SLICE);
        let left = first.saturating_duration_since(now).saturating_sub(MARGIN);
        // 0 would wait for ever.
        left.clamp(Duration::from_millis(1), SLICE)
    }

    /// The server says how many copies there are. Writes that are not confirmed stay as long as they have
    /// time.
    pub(super) fn confirm(
        &mut self,
        context: &Context,
        reached: Reached,
        is_enough: bool,
        now: Instant,
    ) {
        self.is_asked = false;
        self.reached = (!is_enough).then_some(reached);
        for (mut request, result) in std::mem::take(&mut self.waiting) {
            if is_enough {
                request.answer(context, result);
            } else if request.deadline <= now + MARGIN {
                request.answer(context, Err(Error::NotDurable(reached)));
            } else if !request.is_answered() {
                self.waiting.push((request, result));
            }
        }
    }

    /// Until when the server is not asked, where it is to be.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        let waits = !self.is_asked && !self.waiting.is_empty();
        self.rests_until.filter(|_| waits)
    }

    /// A server that answers with an error does not wait: it is not asked over and over.
    pub(super) fn note_errors(&mut self, replies: &[Frame], now: Instant) {
        match replies.iter().any(|reply| reply.error().is_some()) {
            true => self.errors += 1,
            false => self.errors = 0,
        }
        // A mark whose slot was moved away is written in another one, right away.
        self.rests_until = (self.errors > 1).then(|| now + SLICE);
    }

    /// What is done and past its deadline is told how far it is known to have got. Answers when the next one
    /// is due.
    pub(super) fn expire(
        &mut self,
        context: &Context,
        level: Durability,
        now: Instant,
    ) -> Option<Instant> {
        let reached = self.reached.unwrap_or(nowhere(level));
        let late = |(request, _): &mut (Request, Result<Answer, Error>)| request.deadline <= now;
        for (mut request, _) in self.waiting.extract_if(.., late) {
            request.answer(context, Err(Error::NotDurable(reached)));
        }
        self.waiting
            .iter()
            .map(|(request, _)| request.deadline)
            .min()
    }

    /// Answers all of it with an error.
    pub(super) fn fail(&mut self, context: &Context, error: &Error) {
        self.is_asked = false;
        self.rests_until = None;
        for (mut request, _) in self.waiting.drain(..) {
            request.answer(context, Err(error.clone()));
        }
    }

    /// What waits.
    pub(super) fn requests(&mut self) -> impl Iterator<Item = &mut Request> {
        self.waiting.iter_mut().map(|(request, _)| request)
    }
}

/// No copy is known of.
fn nowhere(level: Durability) -> Reached {
    match level {
        Durability::Aof { .. } => Reached::Aof {
            local: 0,
            replicas: 0,
        },
        Durability::Replicas(_) | Durability::None => Reached::Replicas(0),
    }
}

/// Reads the replies to [`Confirm`]: how many copies there are, and whether that is enough. Without the mark
/// the wait may have been for nothing.
pub(super) fn read(level: Durability, replies: &[Frame]) -> (Reached, bool) {
    let number = |frame: Option<&Frame>| match frame {
        Some(Frame::Integer(number)) => u32::try_from(*number).unwrap_or(0),
        _ => 0,
    };
    if replies.first().is_none_or(|mark| mark.error().is_some()) {
        return (nowhere(level), false);
    }
    match (level, replies.get(1)) {
        (Durability::Aof { local, replicas }, Some(Frame::Array(found))) => {
            let (own, others) = (number(found.first()), number(found.get(1)));
            let reached = Reached::Aof {
                local: own,
                replicas: others,
            };
            (reached, own >= local && others >= replicas)
        }
        (Durability::Replicas(wanted), reply) => {
            let found = number(reply);
            (Reached::Replicas(found), found >= wanted)
        }
        (Durability::Aof { .. }, _) => (nowhere(level), false),
        (Durability::None, _) => (nowhere(level), true),
    }
}

/// Ends a batch: a write that always changes something, and the wait.
pub(super) struct Confirm {
    pub(super) level: Durability,
    pub(super) slot: u16,
    pub(super) slice: Duration,
}

impl Operation for Confirm {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let ttl = itoa::Buffer::new().format(MARK_TTL_MS).as_bytes().to_vec();
        let mark = context.keys.durable(self.slot);
        commands.command(&[b"SET", &mark, b"1", b"PX", &ttl]);
        let millis = self.slice.as_millis() as u64;
        match self.level {
            Durability::Aof { local, replicas } => commands
                .begin(4)
                .arg(b"WAITAOF")
                .int(local)
                .int(replicas)
                .int(millis),
            Durability::Replicas(replicas) => {
                commands.begin(3).arg(b"WAIT").int(replicas).int(millis)
            }
            Durability::None => commands,
        };
    }

    /// The flight itself reads the replies.
    fn decode(&mut self, _: &Context, _: Vec<Frame>) -> Step {
        Step::Done(Ok(Answer::Ok))
    }

    fn takes_redirects(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_compared_with_the_level() {
        let ok = Frame::Simple("OK".into());
        let moved = Frame::Error("MOVED 1 a:1".into());
        let two = Durability::Replicas(2);
        let number = Frame::Integer;
        assert_eq!(
            read(two, &[ok.clone(), number(2)]),
            (Reached::Replicas(2), true)
        );
        assert_eq!(
            read(two, &[ok.clone(), number(1)]),
            (Reached::Replicas(1), false)
        );
        assert_eq!(
            read(two, &[moved, number(2)]),
            (Reached::Replicas(0), false)
        );
        let aof = Durability::Aof {
            local: 1,
            replicas: 1,
        };
        let reached = |local, replicas| Reached::Aof { local, replicas };
        let found = |local, replicas| Frame::Array(vec![number(local), number(replicas)]);
        assert_eq!(read(aof, &[ok.clone(), found(1, 1)]), (reached(1, 1), true));
        assert_eq!(
            read(aof, &[ok.clone(), found(1, 0)]),
            (reached(1, 0), false)
        );
        let refused = Frame::Error("ERR unknown command".into());
        assert_eq!(read(aof, &[ok, refused]), (reached(0, 0), false));
    }
}
