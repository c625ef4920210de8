//! Questions of the replica to a route shard, through the engine like every other request.

use std::ops::Range;
use std::sync::Weak;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{script_reply, TypedKeys};
use crate::request::{Affinity, Answer, Operation, Request, Step};
use crate::resp::{Commands, Frame};
use crate::route_scripts::ScriptCall;
use crate::router;

/// For one question.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is asked.
pub(super) enum Question {
    /// A script.
    Script(ScriptCall),
    /// A command.
    Command(Vec<Vec<u8>>),
}

pub(super) type Make = Box<dyn Fn(&Context) -> Question + Send>;

struct Ask {
    shard: u16,
    make: Make,
}

impl Operation for Ask {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        match (self.make)(context) {
            Question::Script(call) => router::encode(context, commands, &call),
            Question::Command(words) => {
                let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                commands.command(&words);
            }
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let keys = &context.keys;
        let shard = self.shard;
        let typed = || -> TypedKeys {
            vec![
                (keys.feed(shard), "stream"),
                (keys.leases(shard), "hash"),
                (keys.routes_index(shard), "zset"),
                (keys.subscriptions_index(shard), "zset"),
            ]
        };
        match script_reply(replies, typed) {
            Ok(reply) => Step::Done(Ok(Answer::Reply(reply))),
            Err(step) => step,
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.shard_slot(self.shard))
    }

    fn size(&self) -> usize {
        0
    }
}

/// Asks a shard.
pub(super) async fn ask(
    engine: &Weak<Engine>,
    shard: u16,
    make: impl Fn(&Context) -> Question + Send + 'static,
) -> Result<Frame, Error> {
    let make = Box::new(make);
    match submit(engine, Box::new(Ask { shard, make })).await? {
        Answer::Reply(reply) => Ok(reply),
        _ => Err(Error::unexpected_reply("replica")),
    }
}

/// Has an operation of the replica's own done. It is not counted among the requests in flight: what keeps the tables
/// true must not be refused because there is much else to do.
pub(super) async fn submit(
    engine: &Weak<Engine>,
    operation: Box<dyn Operation>,
) -> Result<Answer, Error> {
    let (sender, receiver) = oneshot::channel();
    let request = Request::new(operation, Instant::now() + DEADLINE, Box::new(sender));
    let engine = engine.upgrade().ok_or(Error::Stopped)?;
    engine.submit_internal(request)?;
    drop(engine);
    receiver.await.unwrap_or(Err(Error::Stopped))
}

/// The route shards. In a cluster their number is known once a request has found its way.
pub(super) async fn find_shards(
    engine: &Weak<Engine>,
    context: &Context,
) -> Result<Range<u16>, Error> {
    ask(engine, 0, |_| Question::Command(vec!["TIME".into()])).await?;
    Ok(context.keys.shards())
}
