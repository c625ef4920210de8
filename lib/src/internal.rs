//! Operations of the engine itself.

use crate::context::Context;
use crate::metrics::OperationKind;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts;

/// Tries the connection, and asks for the server's time, which the dispatcher reads.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// Whether the server is also asked for its replicas.
    pub(crate) asks_for_replicas: bool,
}

impl Operation for Heartbeat {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, _: &Context, commands: &mut Commands<'_>) {
        commands.command(&[b"TIME"]);
        if self.asks_for_replicas {
            commands.command(&[b"INFO", b"replication"]);
        }
    }

    fn decode(&mut self, _: &Context, _: Vec<Frame>) -> Step {
        Step::Done(Ok(Answer::Ok))
    }

    fn size(&self) -> usize {
        0
    }
}

/// Closes a lost connection at the server, which may still have bytes of it to read.
#[derive(Debug)]
pub(crate) struct KillClient(pub(crate) i64);

impl Operation for KillClient {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, _: &Context, commands: &mut Commands<'_>) {
        let id = self.0.to_string();
        commands.command(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]);
    }

    /// An error says that it is closed already, or that the user may not: then it was said at the start.
    fn decode(&mut self, _: &Context, _: Vec<Frame>) -> Step {
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
