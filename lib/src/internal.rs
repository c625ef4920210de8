//! Operations of the engine itself.

use std::time::Instant;

use crate::connection::time_reply;
use crate::context::Context;
use crate::metrics::OperationKind;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts;

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
