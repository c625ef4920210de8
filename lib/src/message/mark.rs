//! With which packet ids messages were sent to their client and not completed yet.

use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{done, fenced, read_reply, script_reply};
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};
use crate::session::epoch_arg;

/// How long a note lives at most: it goes with its message, unless that expires.
const NOTE_MILLISECONDS: u64 = 24 * 3600 * 1000;

/// Notes packet ids of messages.
pub struct MarkMessages {
    /// Whose messages.
    pub client: Vec<u8>,
    /// Message ids, each with what is noted of it.
    pub notes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The epoch that the caller holds.
    pub epoch: Option<u64>,
}

impl Operation for MarkMessages {
    fn kind(&self) -> OperationKind {
        OperationKind::MarkMessages
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        if self.notes.is_empty() {
            return;
        }
        let mut keys = vec![context.keys.epoch(&self.client)];
        for (id, _) in &self.notes {
            keys.push(context.keys.message(&self.client, id));
            keys.push(context.keys.sent(&self.client, id));
        }
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let arguments = 2 + self.notes.len();
        let out = scripts::call(context, commands, Script::MarkMessages, &keys, arguments);
        epoch_arg(out, self.epoch);
        out.int(NOTE_MILLISECONDS);
        for (_, note) in &self.notes {
            out.arg(note);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if replies.is_empty() {
            return done();
        }
        let epoch = || vec![(context.keys.epoch(&self.client), "integer")];
        match script_reply(replies, epoch) {
            Ok(reply) => fenced(reply, |_| done()),
            Err(step) => step,
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn is_write(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        let notes = self.notes.iter();
        self.client.len() + notes.map(|(id, note)| id.len() + note.len()).sum::<usize>()
    }
}

/// Reads what was noted of messages.
pub struct GetMarks {
    /// Whose messages.
    pub client: Vec<u8>,
    /// Their ids.
    pub ids: Vec<Vec<u8>>,
}

impl Operation for GetMarks {
    fn kind(&self) -> OperationKind {
        OperationKind::GetMessages
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        if self.ids.is_empty() {
            return;
        }
        commands.begin(1 + self.ids.len()).arg(b"MGET");
        for id in &self.ids {
            commands.arg(&context.keys.sent(&self.client, id));
        }
    }

    fn decode(&mut self, _context: &Context, replies: Vec<Frame>) -> Step {
        if replies.is_empty() {
            return Step::Done(Ok(Answer::Reply(Frame::Array(Vec::new()))));
        }
        match read_reply(replies, Vec::new) {
            Ok(Frame::Array(notes)) if notes.len() == self.ids.len() => {
                Step::Done(Ok(Answer::Reply(Frame::Array(notes))))
            }
            Ok(_) => Step::Done(Err(Error::unexpected_reply("MGET"))),
            Err(step) => step,
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn size(&self) -> usize {
        self.client.len() + self.ids.iter().map(Vec::len).sum::<usize>()
    }
}
