//! Counting sessions.

use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::read_reply;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::walk::Walk;

/// Counts the sessions that have not expired, slot by slot in a cluster.
#[derive(Debug, Default)]
pub struct CountSessions {
    walk: Option<Walk<u16>>,
    count: u64,
}

/// Asks for the number of sessions in a slot that live.
pub(super) fn encode_count(context: &Context, commands: &mut Commands<'_>, slot: u16) {
    // A session that expires this very millisecond is gone.
    let now = format!("({}", context.clock.server_micros() / 1000);
    let expiry = context.keys.sessions_expiry(slot);
    commands.command(&[b"ZCOUNT", &expiry, now.as_bytes(), b"+inf"]);
}

pub(super) fn decode_count(context: &Context, slot: u16, reply: Frame) -> Result<u64, Step> {
    match read_reply(vec![reply], || {
        vec![(context.keys.sessions_expiry(slot), "zset")]
    })? {
        Frame::Integer(count) => Ok(count as u64),
        _ => Err(Step::Done(Err(Error::unexpected_reply("ZCOUNT")))),
    }
}

impl Operation for CountSessions {
    fn kind(&self) -> OperationKind {
        OperationKind::CountSessions
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let all = || Walk::over(context.keys.slots());
        for slot in self.walk.get_or_insert_with(all).step(context) {
            encode_count(context, commands, *slot);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let Some(walk) = &mut self.walk else {
            return Step::Done(Err(Error::unexpected_reply("ZCOUNT")));
        };
        for (slot, reply) in walk.answered(replies) {
            match decode_count(context, slot, reply) {
                Ok(count) => self.count += count,
                Err(step) => return step,
            }
        }
        match walk.is_over() {
            true => Step::Done(Ok(Answer::Count(self.count))),
            false => Step::Again,
        }
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        self.walk.as_ref().map_or(Some(0), Walk::slot)
    }

    fn takes_redirects(&self) -> bool {
        self.walk.as_ref().is_none_or(Walk::takes_redirects)
    }

    fn size(&self) -> usize {
        std::mem::size_of::<Self>()
    }
}
