//! Removing messages.

use super::{key_prefix, member_prefix, sent_prefix, shared_keys};
use crate::context::Context;
use crate::metrics::OperationKind;
use crate::outcome::{done, fenced, script_reply, TypedKeys};
use crate::request::{hash, Affinity, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};
use crate::session::epoch_arg;

/// Messages acknowledged in one step: each step stays well under a millisecond of Redis's time,
/// and under the number of arguments that a Lua call takes.
const ACK_STEP: usize = 200;

fn typed_keys(context: &Context, client: &[u8]) -> TypedKeys {
    let mut keys = vec![(context.keys.epoch(client), "integer")];
    keys.extend(shared_keys(context, client));
    keys
}

/// Removes messages that the client has acknowledged.
pub struct AckMessages {
    client: Vec<u8>,
    ids: Vec<Vec<u8>>,
    acked: usize,
    epoch: Option<u64>,
}

impl AckMessages {
    /// Acknowledges the messages `ids` of `client`.
    pub fn new(client: Vec<u8>, ids: Vec<Vec<u8>>, epoch: Option<u64>) -> Self {
        AckMessages {
            client,
            ids,
            acked: 0,
            epoch,
        }
    }

    fn step(&self) -> &[Vec<u8>] {
        let end = self.ids.len().min(self.acked + ACK_STEP);
        &self.ids[self.acked..end]
    }
}

impl Operation for AckMessages {
    fn kind(&self) -> OperationKind {
        OperationKind::AckMessage
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let ids = self.step();
        if ids.is_empty() {
            return;
        }
        let mut keys: Vec<Vec<u8>> = typed_keys(context, &self.client)
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        keys.extend(ids.iter().map(|id| context.keys.message(&self.client, id)));
        keys.extend(ids.iter().map(|id| context.keys.sent(&self.client, id)));
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let arguments = 1 + 2 * ids.len();
        let out = scripts::call(context, commands, Script::AckMessages, &keys, arguments);
        epoch_arg(out, self.epoch);
        for id in ids {
            out.arg(id);
        }
        for id in ids {
            out.arg(&context.keys.message_member(&self.client, id));
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if replies.is_empty() {
            return done();
        }
        let reply = match script_reply(replies, || typed_keys(context, &self.client)) {
            Ok(reply) => reply,
            Err(step) => return step,
        };
        let acked = self.acked + self.step().len();
        let all = acked == self.ids.len();
        let step = fenced(reply, |_| if all { done() } else { Step::Again });
        if matches!(step, Step::Again) {
            self.acked = acked;
        }
        step
    }

    fn is_stepwise(&self) -> bool {
        self.ids.len() > ACK_STEP
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn is_write(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        self.client.len() + self.ids.iter().map(|id| id.len() + 24).sum::<usize>()
    }
}

/// Removes all of a client's messages: up to 200 in one atomic unit, more in several.
pub struct DeleteMessages {
    /// Whose messages.
    pub client: Vec<u8>,
    /// The epoch that the caller holds.
    pub epoch: Option<u64>,
}

impl Operation for DeleteMessages {
    fn kind(&self) -> OperationKind {
        OperationKind::DeleteMessages
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = typed_keys(context, &self.client);
        let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| key.as_slice()).collect();
        let out = scripts::call(context, commands, Script::DeleteMessages, &keys, 4);
        epoch_arg(out, self.epoch);
        out.arg(&member_prefix(context, &self.client))
            .arg(&key_prefix(context))
            .arg(&sent_prefix(context));
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        match script_reply(replies, || typed_keys(context, &self.client)) {
            Ok(reply) => fenced(reply, |left| if left > 0 { Step::Again } else { done() }),
            Err(step) => step,
        }
    }

    fn is_stepwise(&self) -> bool {
        true
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn is_write(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        self.client.len()
    }
}
