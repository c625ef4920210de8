//! Listing sessions.

use bytes::Bytes;

use super::index_keys;
use super::list_slots::ListSlots;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{script_reply, strings};
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

/// Client ids asked for by one call of the script.
pub(super) const LIST_STEP: u64 = 1000;

/// Asks for a page of a slot's client ids.
pub(super) fn encode_page(
    context: &Context,
    commands: &mut Commands<'_>,
    slot: u16,
    offset: u64,
    limit: u64,
) {
    let keys = index_keys(context, slot);
    let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| key.as_slice()).collect();
    scripts::call(context, commands, Script::ListSessions, &keys, 3)
        .arg(&context.keys.session_prefix())
        .int(offset)
        .int(limit);
}

/// The page, or `None` where it is to be asked for again.
pub(super) fn decode_page(
    context: &Context,
    slot: u16,
    replies: Vec<Frame>,
) -> Result<Option<Vec<Bytes>>, Step> {
    let page = match script_reply(replies, || index_keys(context, slot))? {
        Frame::Integer(-1) => return Ok(None),
        page => strings(page),
    };
    let unexpected = || Step::Done(Err(Error::unexpected_reply("list_sessions")));
    page.map(Some).ok_or_else(unexpected)
}

/// Lists client ids, oldest save first.
pub struct ListSessions {
    limit: u64,
    offset: u64,
    found: Vec<Bytes>,
}

impl ListSessions {
    /// At most `limit` client ids, after the first `offset`.
    pub fn new(limit: u64, offset: u64) -> Self {
        ListSessions {
            limit,
            offset,
            found: Vec::new(),
        }
    }

    fn step(&self) -> u64 {
        (self.limit - self.found.len() as u64).min(LIST_STEP)
    }
}

impl Operation for ListSessions {
    fn kind(&self) -> OperationKind {
        OperationKind::ListSessions
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        if self.step() == 0 {
            return;
        }
        let offset = self.offset + self.found.len() as u64;
        encode_page(context, commands, 0, offset, self.step());
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if self.step() == 0 {
            return Step::Done(Ok(Answer::Binaries(std::mem::take(&mut self.found))));
        }
        let page = match decode_page(context, 0, replies) {
            Ok(Some(page)) => page,
            Ok(None) => return Step::Again,
            Err(step) => return step,
        };
        let is_last = (page.len() as u64) < self.step();
        self.found.extend(page);
        if is_last || self.step() == 0 {
            return Step::Done(Ok(Answer::Binaries(std::mem::take(&mut self.found))));
        }
        Step::Again
    }

    /// In a cluster, the list of another kind is all there is to do.
    fn split(&mut self, context: &Context) -> Option<Vec<Box<dyn Operation>>> {
        if !context.keys.is_clustered() {
            return None;
        }
        Some(vec![Box::new(ListSlots::new(self.limit, self.offset))])
    }

    fn join(&mut self, results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        let list = results.into_iter().next();
        list.unwrap_or_else(|| Err(Error::unexpected_reply("list_sessions")))
    }

    fn size(&self) -> usize {
        std::mem::size_of::<Self>()
    }
}
