//! Sessions: what the operations on them ask Redis, and how they read its replies.

mod count;
mod list;
mod list_slots;

pub use count::CountSessions;
pub use list::ListSessions;

use crate::config::Ttl;
use crate::context::{Context, EPOCH_GRACE_SECONDS};
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{done, fenced, read_reply, script_reply, TypedKeys};
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

const EPOCH_GRACE_MS: u64 = EPOCH_GRACE_SECONDS * 1000;

fn typed_keys(context: &Context, client: &[u8]) -> TypedKeys {
    let mut keys = vec![
        (context.keys.session(client), "hash"),
        (context.keys.epoch(client), "integer"),
    ];
    keys.extend(index_keys(context, context.keys.client_slot(client)));
    keys
}

fn index_keys(context: &Context, slot: u16) -> TypedKeys {
    vec![
        (context.keys.sessions_index(slot), "zset"),
        (context.keys.sessions_expiry(slot), "zset"),
    ]
}

fn refs(keys: &TypedKeys) -> Vec<&[u8]> {
    keys.iter().map(|(key, _)| key.as_slice()).collect()
}

/// Writes an epoch as scripts take it: nothing for none.
pub(crate) fn epoch_arg(out: &mut Commands<'_>, epoch: Option<u64>) {
    match epoch {
        Some(epoch) => out.int(epoch),
        None => out.arg(b""),
    };
}

/// Writes a session and what belongs to it.
pub struct SaveSession {
    /// Whose session.
    pub client: Vec<u8>,
    /// The encoded session.
    pub data: Vec<u8>,
    /// Its own time to live.
    pub ttl: Option<Ttl>,
    /// The epoch that the caller holds.
    pub epoch: Option<u64>,
}

impl Operation for SaveSession {
    fn kind(&self) -> OperationKind {
        OperationKind::SaveSession
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = typed_keys(context, &self.client);
        let now = context.clock.now_micros();
        let ttl = context.session_ttl(self.ttl);
        let out = scripts::call(context, commands, Script::SaveSession, &refs(&keys), 9);
        out.arg(&self.client).arg(&self.data).int(now / 1_000_000);
        match ttl {
            Some(ttl) => out.int(now / 1_000_000 + ttl as i64),
            None => out.arg(b"infinity"),
        };
        // With microseconds, so that saves of the same millisecond are listed in their order.
        out.arg(format!("{}.{:03}", now / 1000, now % 1000).as_bytes());
        match ttl {
            Some(ttl) => out.int(context.clock.expires_at(ttl)),
            None => out.arg(b"+inf"),
        };
        out.arg(&context.node);
        epoch_arg(out, self.epoch);
        match ttl {
            Some(ttl) => out.int(ttl * 1000 + EPOCH_GRACE_MS),
            None => out.arg(b""),
        };
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        match script_reply(replies, || typed_keys(context, &self.client)) {
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
        self.client.len() + self.data.len()
    }
}

/// Reads a session.
pub struct LoadSession {
    /// Whose session.
    pub client: Vec<u8>,
}

impl Operation for LoadSession {
    fn kind(&self) -> OperationKind {
        OperationKind::LoadSession
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        commands.command(&[b"HGET", &context.keys.session(&self.client), b"data"]);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        match read_reply(replies, || {
            vec![(context.keys.session(&self.client), "hash")]
        }) {
            Ok(Frame::Bulk(data)) => Step::Done(Ok(Answer::Term(data))),
            Ok(Frame::Nil) => Step::Done(Err(Error::NotFound)),
            Ok(_) => Step::Done(Err(Error::unexpected_reply("HGET"))),
            Err(step) => step,
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn size(&self) -> usize {
        self.client.len()
    }
}

/// Deletes a session.
pub struct DeleteSession {
    /// Whose session.
    pub client: Vec<u8>,
    /// The epoch that the caller holds.
    pub epoch: Option<u64>,
}

impl Operation for DeleteSession {
    fn kind(&self) -> OperationKind {
        OperationKind::DeleteSession
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = typed_keys(context, &self.client);
        let out = scripts::call(context, commands, Script::DeleteSession, &refs(&keys), 3);
        out.arg(&self.client);
        epoch_arg(out, self.epoch);
        out.int(EPOCH_GRACE_MS);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        match script_reply(replies, || typed_keys(context, &self.client)) {
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
        self.client.len()
    }
}

/// Raises a session's epoch and reads the session.
pub struct ClaimSession {
    /// Whose session.
    pub client: Vec<u8>,
}

impl Operation for ClaimSession {
    fn kind(&self) -> OperationKind {
        OperationKind::ClaimSession
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.client))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = typed_keys(context, &self.client);
        scripts::call(
            context,
            commands,
            Script::ClaimSession,
            &refs(&keys)[..2],
            1,
        )
        .int(EPOCH_GRACE_MS);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let reply = match script_reply(replies, || typed_keys(context, &self.client)) {
            Ok(Frame::Array(reply)) => reply,
            Ok(_) => return Step::Done(Err(Error::unexpected_reply("claim_session"))),
            Err(step) => return step,
        };
        // A missing session comes back as Lua's false, which is nil here.
        Step::Done(match (reply.first(), reply.get(1)) {
            (Some(Frame::Integer(epoch)), None | Some(Frame::Nil)) => {
                Ok(Answer::Claimed(*epoch as u64, None))
            }
            (Some(Frame::Integer(epoch)), Some(Frame::Bulk(data))) => {
                Ok(Answer::Claimed(*epoch as u64, Some(data.clone())))
            }
            _ => Err(Error::unexpected_reply("claim_session")),
        })
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
