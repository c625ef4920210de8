//! What the sweeper asks of Redis.

use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{read_reply, script_reply, TypedKeys};
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};
use crate::walk::{InSlot, Walk};

/// An index that what has expired is taken out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) kind: Kind,
    pub(super) slot: u16,
}

/// What an index lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sessions,
    Messages,
}

impl Index {
    /// The index of what there is, and that of when it expires.
    fn keys(&self, context: &Context) -> TypedKeys {
        let (keys, slot) = (&context.keys, self.slot);
        let (index, expiry) = match self.kind {
            Kind::Sessions => (keys.sessions_index(slot), keys.sessions_expiry(slot)),
            Kind::Messages => (keys.messages_index(slot), keys.messages_expiry(slot)),
        };
        vec![(index, "zset"), (expiry, "zset")]
    }
}

impl InSlot for Index {
    fn slot(&self) -> u16 {
        self.slot
    }
}

/// Takes one slice out of an index; answers how many had expired.
pub(super) struct Sweep(pub(super) Index);

impl Operation for Sweep {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = self.0.keys(context);
        let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| key.as_slice()).collect();
        let (script, prefix) = match self.0.kind {
            Kind::Sessions => (Script::SweepSessions, context.keys.session_prefix()),
            Kind::Messages => (Script::SweepMessages, context.keys.prefix().to_vec()),
        };
        scripts::call(context, commands, script, &keys, 1).arg(&prefix);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        match script_reply(replies, || self.0.keys(context)) {
            Ok(Frame::Integer(seen)) => Step::Done(Ok(Answer::Count(seen as u64))),
            Ok(_) => Step::Done(Err(Error::unexpected_reply("sweep"))),
            Err(step) => step,
        }
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        Some(self.0.slot)
    }

    fn size(&self) -> usize {
        0
    }
}

/// Finds the slots of a cluster in which anything has expired; a script for each of all slots would cost
/// Redis far more.
pub(super) struct FindExpired {
    walk: Walk<Index>,
    found: Vec<Frame>,
}

impl FindExpired {
    /// Looks into one kind of index of these slots. The answer is a reply for each slot with something to sweep: its
    /// number.
    pub(super) fn new(kind: Kind, slots: impl Iterator<Item = u16>) -> Self {
        FindExpired {
            walk: Walk::over(slots.map(|slot| Index { kind, slot })),
            found: Vec::new(),
        }
    }
}

impl Operation for FindExpired {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let now = (context.clock.server_micros() / 1000).to_string();
        for index in self.walk.step(context) {
            let [_, (expiry, _)] = &index.keys(context)[..] else {
                continue;
            };
            commands.command(&[b"ZCOUNT", expiry, b"-inf", now.as_bytes()]);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        for (index, reply) in self.walk.answered(replies) {
            match read_reply(vec![reply], || index.keys(context)) {
                Ok(Frame::Integer(0)) => {}
                Ok(_) => self.found.push(Frame::Integer(i64::from(index.slot))),
                Err(step) => return step,
            }
        }
        match self.walk.is_over() {
            true => Step::Done(Ok(Answer::Replies(std::mem::take(&mut self.found)))),
            false => Step::Again,
        }
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        self.walk.slot()
    }

    fn takes_redirects(&self) -> bool {
        self.walk.takes_redirects()
    }

    fn size(&self) -> usize {
        0
    }
}
