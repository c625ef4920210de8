//! Reading messages.

use bytes::Bytes;

use super::{key_prefix, shared_keys};
use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{read_reply, script_reply, strings};
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

/// Messages read in one step.
const READ_STEP: usize = 500;
/// How often a page is read again because a few messages of it were gone. Each time those are taken out
/// of the queue, so that more rounds are only needed where other nodes remove messages at the same
/// moment. Where most of a page is gone (keys were deleted by hand) it is read again in any case.
const ROUNDS: u32 = 10;

/// Reads one page of a client's messages, in publish order: first the ids, in a script that knows
/// what has expired, then the messages. (A script that read both would cost Redis three times as
/// much.) Later operations on the client wait until both are done.
pub struct GetMessages {
    client: Vec<u8>,
    offset: u64,
    limit: u64,
    ids: Vec<Bytes>,
    values: Vec<Option<Bytes>>,
    phase: Phase,
    round: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ids,
    Values,
    Prune,
}

impl GetMessages {
    /// At most `limit` messages of `client`, after the first `offset`.
    pub fn new(client: Vec<u8>, offset: u64, limit: u64) -> Self {
        GetMessages {
            client,
            offset,
            limit,
            ids: Vec::new(),
            values: Vec::new(),
            phase: Phase::Ids,
            round: 0,
        }
    }

    fn values_step(&self) -> &[Bytes] {
        let from = self.values.len();
        &self.ids[from..self.ids.len().min(from + READ_STEP)]
    }

    fn missing(&self) -> impl Iterator<Item = &Bytes> {
        let pairs = self.ids.iter().zip(&self.values);
        pairs.filter(|(_, value)| value.is_none()).map(|(id, _)| id)
    }

    fn encode_prune(&self, context: &Context, out: &mut Commands<'_>) {
        let keys = shared_keys(context, &self.client);
        let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| key.as_slice()).collect();
        let missing: Vec<&Bytes> = self.missing().take(READ_STEP).collect();
        let arguments = 1 + 2 * missing.len();
        let out = scripts::call(context, out, Script::PruneMessages, &keys, arguments);
        out.arg(&key_prefix(context));
        for id in missing {
            out.arg(id)
                .arg(&context.keys.message_member(&self.client, id));
        }
    }

    fn decode_ids(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let ids = match script_reply(replies, || shared_keys(context, &self.client)) {
            Ok(Frame::Integer(-1)) => return Step::Again,
            Ok(ids) => ids,
            Err(step) => return step,
        };
        let Some(ids) = strings(ids) else {
            return Step::Done(Err(Error::unexpected_reply("page_messages")));
        };
        self.ids = ids;
        self.values.clear();
        self.phase = Phase::Values;
        if self.ids.is_empty() {
            return self.done();
        }
        Step::Again
    }

    fn decode_values(&mut self, replies: Vec<Frame>) -> Step {
        let values = match read_reply(replies, Vec::new) {
            Ok(Frame::Array(values)) if values.len() == self.values_step().len() => values,
            Ok(_) => return Step::Done(Err(Error::unexpected_reply("MGET"))),
            Err(step) => return step,
        };
        self.values
            .extend(values.into_iter().map(|value| match value {
                Frame::Bulk(value) => Some(value),
                _ => None,
            }));
        if self.values.len() < self.ids.len() {
            return Step::Again;
        }
        let missing = self.missing().count();
        let most = missing * 2 > self.ids.len();
        if missing > 0 && (most || self.round < ROUNDS) {
            self.round += u32::from(!most);
            self.phase = Phase::Prune;
            return Step::Again;
        }
        self.done()
    }

    fn decode_prune(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let keys = || {
            let ids = self.missing().take(READ_STEP);
            let keys = ids.map(|id| (context.keys.message(&self.client, id), "string"));
            keys.chain(shared_keys(context, &self.client)).collect()
        };
        match script_reply(replies, keys) {
            Ok(_) => {
                self.phase = Phase::Ids;
                Step::Again
            }
            Err(step) => step,
        }
    }

    fn done(&mut self) -> Step {
        let ids = std::mem::take(&mut self.ids).into_iter();
        let values = std::mem::take(&mut self.values);
        let found = ids.zip(values).filter_map(|(id, value)| Some((id, value?)));
        Step::Done(Ok(Answer::Messages(found.collect())))
    }
}

impl Operation for GetMessages {
    fn kind(&self) -> OperationKind {
        OperationKind::GetMessages
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        if self.limit == 0 {
            return;
        }
        match self.phase {
            Phase::Ids => {
                let keys = shared_keys(context, &self.client);
                let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| key.as_slice()).collect();
                scripts::call(context, commands, Script::PageMessages, &keys, 3)
                    .arg(context.keys.prefix())
                    .int(self.offset)
                    .int(self.limit);
            }
            Phase::Values => {
                let ids = self.values_step();
                commands.begin(1 + ids.len()).arg(b"MGET");
                for id in ids {
                    commands.arg(&context.keys.message(&self.client, id));
                }
            }
            Phase::Prune => self.encode_prune(context, commands),
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if replies.is_empty() {
            return self.done();
        }
        match self.phase {
            Phase::Ids => self.decode_ids(context, replies),
            Phase::Values => self.decode_values(replies),
            Phase::Prune => self.decode_prune(context, replies),
        }
    }

    fn is_stepwise(&self) -> bool {
        true
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn size(&self) -> usize {
        self.client.len()
    }
}
