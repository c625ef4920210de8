//! Durable writes: done, and answered only when enough copies of them exist.
//!
//! What waits goes out as one batch, and one `WAIT` or `WAITAOF` behind it serves all of it; the next batch
//! is sent when that is answered. Redis waits for the last write of the connection that *changed*
//! something, so that a repeated write would be confirmed unseen: each batch ends with a write that
//! always changes something, a mark that is set anew, or prolonged where memory is short. In a slot that is on its
//! way the old owner may have one still, and `MIGRATE` overwrites nothing: there each mark has a name of its own,
//! <https://redis.io/docs/latest/commands/migrate/>. Commands:
//! <https://redis.io/docs/latest/commands/wait/>,
//! <https://redis.io/docs/latest/commands/waitaof/>.

use std::time::{Duration, Instant};

use crate::config::{Durability, Server};
use crate::context::Context;
use crate::error::{Error, Reached};
use crate::metrics::OperationKind;
use crate::request::{Affinity, Answer, Operation, Request, Step};
use crate::resp::{Commands, Frame};

/// How long the server is asked to wait for replicas at a time. What is not confirmed by then is asked for
/// again, with the next batch: so an unmet level does not keep what comes behind it from being written.
/// Each batch moves the goal, so that replicas which are far away need longer: it is doubled.
const SLICE: Duration = Duration::from_millis(100);
/// No shorter wait is worth the question.
const SHORTEST_SLICE: Duration = Duration::from_millis(20);
/// How long it is asked to wait for files: longer than `everysec` takes.
const FILES_SLICE: Duration = Duration::from_secs(2);
/// A request is told that it was not confirmed so long before its deadline.
const MARGIN: Duration = Duration::from_millis(40);
/// What makes a batch propagate lives for a minute.
const MARK_TTL_MS: u64 = 60_000;
/// One with a name of its own is not set again, and there may be many.
const OWN_MARK_TTL_MS: u64 = 2_000;

/// What has been done on a connection and waits to be confirmed.
#[derive(Default)]
pub(super) struct Confirmation {
    waiting: Vec<Waiting>,
    /// Whether the last batch was not confirmed in its time.
    is_unmet: bool,
    /// Whether the server is waiting already.
    pub(super) is_asked: bool,
    /// The slot of a key of the last batch, where the next mark is written in a cluster.
    pub(super) slot: u16,
    /// Whom the last batch was sent to with ASKING: the slot is on its way there.
    pub(super) asking: Option<Server>,
    /// Where the last mark was set.
    marked: Option<u16>,
    /// Whether the server has no memory for a new mark.
    is_full: bool,
    /// Errors are answered at once: how many there were in a row, and until when the next question waits.
    errors: u32,
    rests_until: Option<Instant>,
}

/// A write that is done.
struct Waiting {
    request: Request,
    /// What it is answered when it is confirmed.
    result: Result<Answer, Error>,
    /// The copies that are known of.
    reached: Option<Reached>,
}

impl Confirmation {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A write is done.
    pub(super) fn add(&mut self, request: Request, result: Result<Answer, Error>) {
        self.waiting.push(Waiting {
            request,
            result,
            reached: None,
        });
    }

    /// How long the server may wait this time: as long as the one with the least time has, to tell it how far
    /// it got. Where that was not enough for files, the others do not wait less because of it.
    pub(super) fn slice(
        &self,
        level: Durability,
        sent: impl Iterator<Item = Instant>,
        now: Instant,
    ) -> Duration {
        let waiting = self.waiting.iter().map(|waiting| waiting.request.deadline);
        let first = waiting.chain(sent).min().unwrap_or(now + SLICE);
        let left = first.saturating_duration_since(now).saturating_sub(MARGIN);
        let (least, most) = match level {
            Durability::Aof { .. } if self.is_unmet => (FILES_SLICE, FILES_SLICE),
            Durability::Aof { .. } => (SHORTEST_SLICE, FILES_SLICE),
            _ if self.is_unmet => (SHORTEST_SLICE, SLICE * 2),
            _ => (SHORTEST_SLICE, SLICE),
        };
        left.clamp(least, most)
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
        self.is_unmet = !is_enough;
        if is_enough {
            for mut waiting in self.waiting.drain(..) {
                waiting.request.answer(context, waiting.result);
            }
            return;
        }
        let is_over = |waiting: &mut Waiting| {
            waiting.reached = Some(reached);
            waiting.request.deadline <= now + MARGIN || waiting.request.is_answered()
        };
        for mut waiting in self.waiting.extract_if(.., is_over) {
            waiting
                .request
                .answer(context, Err(Error::NotDurable(reached)));
        }
    }

    /// The next batch's end.
    pub(super) fn question(&self, level: Durability, slice: Duration) -> Confirm {
        let mark = match self.prolonged() {
            Some(slot) => Mark::Prolonged(slot),
            None if self.asking.is_some() => Mark::OfItsOwn(self.slot),
            None => Mark::Set(self.slot),
        };
        Confirm { level, mark, slice }
    }

    /// The slot of the mark that is to be prolonged, if one is.
    pub(super) fn prolonged(&self) -> Option<u16> {
        self.marked.filter(|_| self.is_full)
    }

    /// What became of the mark; true if it has to be in another slot. A server without memory takes no new
    /// one, so the last one is prolonged: acknowledging and deleting, which make room, can be confirmed.
    pub(super) fn note_mark(&mut self, reply: Option<&Frame>) -> bool {
        let was_prolonged = self.prolonged().is_some();
        match reply {
            Some(Frame::Error(text)) if text.starts_with(b"OOM ") => {
                self.is_full = true;
                return false;
            }
            // There was none.
            Some(Frame::Integer(0)) => self.marked = None,
            Some(Frame::Error(_)) | None => {}
            Some(_) if was_prolonged => return false,
            Some(_) if self.asking.is_some() => {}
            Some(_) => self.marked = Some(self.slot),
        }
        self.is_full = false;
        matches!(reply, Some(Frame::Error(_)))
    }

    /// Until when the server is not asked, where it is to be.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        let waits = !self.is_asked && !self.waiting.is_empty();
        self.rests_until.filter(|_| waits)
    }

    /// A server that answers with an error does not wait: it is not asked over and over.
    pub(super) fn note_errors(&mut self, replies: &[Frame], now: Instant) {
        let is_wrong = |reply: &Frame| reply.error().is_some();
        match !is_marked(replies) || replies.iter().any(is_wrong) {
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
        let late = |waiting: &mut Waiting| waiting.request.deadline <= now;
        for mut waiting in self.waiting.extract_if(.., late) {
            let reached = waiting.reached.unwrap_or(nowhere(level));
            waiting
                .request
                .answer(context, Err(Error::NotDurable(reached)));
        }
        self.waiting
            .iter()
            .map(|waiting| waiting.request.deadline)
            .min()
    }

    /// Answers all of it with an error.
    pub(super) fn fail(&mut self, context: &Context, error: &Error) {
        self.is_asked = false;
        self.rests_until = None;
        for mut waiting in self.waiting.drain(..) {
            waiting.request.answer(context, Err(error.clone()));
        }
    }

    /// What waits.
    pub(super) fn requests(&mut self) -> impl Iterator<Item = &mut Request> {
        self.waiting.iter_mut().map(|waiting| &mut waiting.request)
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
    if !is_marked(replies) {
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

/// Whether the mark was set or prolonged.
fn is_marked(replies: &[Frame]) -> bool {
    let is_done = |mark: &Frame| mark.error().is_none() && *mark != Frame::Integer(0);
    replies.first().is_some_and(is_done)
}

/// Ends a batch: a write that always changes something, and the wait.
pub(super) struct Confirm {
    level: Durability,
    mark: Mark,
    slice: Duration,
}

/// The write that always changes something, in a slot.
enum Mark {
    Set(u16),
    Prolonged(u16),
    OfItsOwn(u16),
}

impl Operation for Confirm {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = &context.keys;
        match self.mark {
            Mark::Set(slot) => set(commands, &keys.durable(slot), MARK_TTL_MS),
            Mark::OfItsOwn(slot) => {
                let name = keys.durable_once(slot, context.clock.now_micros());
                set(commands, &name, OWN_MARK_TTL_MS);
            }
            Mark::Prolonged(slot) => {
                let mark = keys.durable(slot);
                commands
                    .begin(3)
                    .arg(b"PEXPIRE")
                    .arg(&mark)
                    .int(MARK_TTL_MS);
            }
        }
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

fn set(commands: &mut Commands<'_>, mark: &[u8], ttl_ms: u64) {
    let set = commands.begin(5).arg(b"SET").arg(mark).arg(b"1");
    set.arg(b"PX").int(ttl_ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_prolonged_while_there_is_no_memory_for_a_new_one() {
        let ok = Some(Frame::Simple("OK".into()));
        let full = Some(Frame::Error("OOM command not allowed".into()));
        let (done, gone) = (Some(Frame::Integer(1)), Some(Frame::Integer(0)));
        let mut confirmation = Confirmation::default();
        confirmation.note_mark(full.as_ref());
        assert_eq!(confirmation.prolonged(), None);
        confirmation.slot = 7;
        confirmation.note_mark(ok.as_ref());
        assert_eq!(confirmation.prolonged(), None);
        // The next batch is about another slot.
        confirmation.slot = 8;
        assert!(!confirmation.note_mark(full.as_ref()));
        assert_eq!(confirmation.prolonged(), Some(7));
        confirmation.note_mark(done.as_ref());
        assert_eq!(confirmation.prolonged(), Some(7));
        confirmation.note_mark(gone.as_ref());
        confirmation.note_mark(full.as_ref());
        assert_eq!(confirmation.prolonged(), None);
        let moved = Frame::Error("MOVED 8 a:1".into());
        assert!(confirmation.note_mark(Some(&moved)));
    }

    #[test]
    fn what_is_not_marked_is_not_confirmed() {
        let two = Durability::Replicas(2);
        let prolonged = |mark| read(two, &[Frame::Integer(mark), Frame::Integer(2)]);
        assert_eq!(prolonged(1), (Reached::Replicas(2), true));
        assert_eq!(prolonged(0), (Reached::Replicas(0), false));
    }

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
