//! Takes what has expired out of indexes and queues, in slices of under a millisecond of Redis's time.
//!
//! Every node sweeps; that two do it at once changes nothing but the time it takes.

use std::sync::Weak;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::metrics::{Counter, OperationKind};
use crate::outcome::script_reply;
use crate::request::{Affinity, Answer, Operation, Request, Responder, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

/// Between two looks when nothing was found.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two slices, so that Redis serves others meanwhile.
const PAUSE: Duration = Duration::from_millis(5);
/// A slice that is full was not the last.
const SLICE: u64 = 50;

/// One slice.
struct Sweep {
    script: Script,
    slot: u16,
}

impl Operation for Sweep {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let (keys, slot) = (&context.keys, self.slot);
        let (index, expiry, prefix) = match self.script {
            Script::SweepSessions => (
                keys.sessions_index(slot),
                keys.sessions_expiry(slot),
                keys.session_prefix(),
            ),
            _ => (
                keys.messages_index(slot),
                keys.messages_expiry(slot),
                keys.prefix().to_vec(),
            ),
        };
        scripts::call(context, commands, self.script, &[&index, &expiry], 1).arg(&prefix);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let keys = || {
            let (keys, slot) = (&context.keys, self.slot);
            vec![
                (keys.messages_index(slot), "zset"),
                (keys.messages_expiry(slot), "zset"),
                (keys.sessions_index(slot), "zset"),
                (keys.sessions_expiry(slot), "zset"),
            ]
        };
        match script_reply(replies, keys) {
            Ok(Frame::Integer(seen)) => Step::Done(Ok(Answer::Count(seen as u64))),
            Ok(_) => Step::Done(Err(Error::unexpected_reply("sweep"))),
            Err(step) => step,
        }
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        Some(self.slot)
    }

    fn size(&self) -> usize {
        0
    }
}

struct Reply(oneshot::Sender<Result<Answer, Error>>);

impl Responder for Reply {
    fn respond(self: Box<Self>, result: Result<Answer, Error>) {
        let _ = self.0.send(result);
    }

    fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// Sweeps until the engine is gone.
pub(crate) async fn run(engine: Weak<Engine>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for (script, counter) in [
            (Script::SweepSessions, Counter::ExpiredSessions),
            (Script::SweepMessages, Counter::ExpiredMessages),
        ] {
            while let Some(seen) = slice(&engine, script).await {
                let Some(engine) = engine.upgrade() else {
                    return;
                };
                engine.context().metrics.add(counter, seen);
                drop(engine);
                if seen < SLICE {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// How many were seen; `None` when Redis did not answer.
async fn slice(engine: &Weak<Engine>, script: Script) -> Option<u64> {
    let (sender, receiver) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_secs(5);
    let request = Request::new(
        Box::new(Sweep { script, slot: 0 }),
        deadline,
        Box::new(Reply(sender)),
    );
    engine.upgrade()?.submit(request).ok()?;
    match receiver.await.ok()? {
        Ok(Answer::Count(seen)) => Some(seen),
        Err(Error::Redis { code, text }) => {
            tracing::warn!(%code, %text, "sweeping failed");
            None
        }
        _ => None,
    }
}
