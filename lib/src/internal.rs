//! Operations of the engine itself.

use std::time::Instant;

use crate::connection::time_reply;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::{Counter, OperationKind};
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

/// Tries the connection, and measures the server's clock.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    sent: Option<Instant>,
}

impl Operation for Heartbeat {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, _: &Context, commands: &mut Commands<'_>) {
        self.sent = Some(Instant::now());
        commands.command(&[b"TIME"]);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let micros = replies.first().and_then(time_reply);
        if let (Some(micros), Some(sent)) = (micros, self.sent) {
            context.clock.measure(micros, sent, Instant::now());
        }
        Step::Done(Ok(Answer::Ok))
    }

    fn size(&self) -> usize {
        0
    }
}

/// Loads the scripts again, after `SCRIPT FLUSH`.
#[derive(Debug)]
pub(crate) struct LoadScripts;

impl Operation for LoadScripts {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, _: &Context, commands: &mut Commands<'_>) {
        scripts::load_all(commands);
    }

    fn decode(&mut self, _: &Context, replies: Vec<Frame>) -> Step {
        for reply in &replies {
            if let Some(text) = reply.error() {
                tracing::error!(error = %String::from_utf8_lossy(text), "SCRIPT LOAD failed");
            }
        }
        Step::Done(Ok(Answer::Ok))
    }

    fn size(&self) -> usize {
        0
    }
}

/// The last step of an operation that met a foreign value at one of its keys: moves such values out
/// of the way, so that the operation works when it is tried again.
pub(crate) struct Repair {
    kind: OperationKind,
    affinity: Vec<u64>,
    keys: Vec<(Vec<u8>, &'static str)>,
    error: Error,
}

/// How long a value that was moved is kept.
pub(crate) const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

impl Repair {
    pub(crate) fn new(
        kind: OperationKind,
        affinity: Vec<u64>,
        keys: Vec<(Vec<u8>, &'static str)>,
        error: Error,
    ) -> Self {
        Repair {
            kind,
            affinity,
            keys,
            error,
        }
    }
}

impl Operation for Repair {
    fn kind(&self) -> OperationKind {
        self.kind
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::Many(&self.affinity)
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys: Vec<&[u8]> = self.keys.iter().map(|(key, _)| key.as_slice()).collect();
        let arguments = 2 + keys.len();
        let out = scripts::call(context, commands, Script::Quarantine, &keys, arguments);
        out.arg(context.keys.prefix()).int(KEPT_MS);
        for (_, kind) in &self.keys {
            out.arg(kind.as_bytes());
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        match replies.first() {
            Some(reply) if scripts::is_unknown(reply) => return Step::LoadScripts,
            Some(Frame::Array(moved)) => {
                context
                    .metrics
                    .add(Counter::Quarantined, moved.len() as u64);
                for key in moved {
                    if let Frame::Bulk(key) = key {
                        tracing::warn!(key = %key.escape_ascii(), "a foreign value stood at this key; it was moved to `foreign:…` for a week");
                    }
                }
            }
            Some(Frame::Error(text)) => {
                tracing::error!(error = %String::from_utf8_lossy(text), "a foreign value could not be moved");
            }
            _ => {}
        }
        Step::Done(Err(self.error.clone()))
    }

    fn size(&self) -> usize {
        0
    }
}
