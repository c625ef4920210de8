//! What takes many questions, or none, and is answered once: it runs beside the requests, on the engine's thread.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;

use super::{by_hand, sync};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::request::{Answer, Responder};
use crate::route_scripts::Space;

/// Where a listing goes on: a shard, the last filter and its score.
pub type TopicsCursor = (u16, Bytes, Bytes);

/// What is to be done.
pub enum Errand {
    /// Wait until this node, or every node that holds a lease, has applied these versions of shards' feeds. Answers
    /// `Ok`.
    Sync {
        /// Shards and versions.
        versions: Vec<(u16, u64)>,
        /// Every node.
        all: bool,
    },
    /// Delete all routes of a node, but for this node those that it wants. Answers how many.
    CleanUp {
        /// Its name.
        node: Vec<u8>,
    },
    /// List the filters of a table. Answers them and where to go on.
    Topics {
        /// Which one.
        space: Space,
        /// How many at most.
        limit: usize,
        /// Behind this one.
        after: Option<TopicsCursor>,
    },
}

/// Who waits; whatever becomes of the errand, it is answered.
struct Waiter(Option<Box<dyn Responder>>);

impl Waiter {
    fn answer(mut self, result: Result<Answer, Error>) {
        if let Some(responder) = self.0.take() {
            responder.respond(result);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(responder) = self.0.take() {
            responder.respond(Err(Error::Stopped));
        }
    }
}

/// Does an errand, until its deadline. It is answered also where what is returned never gets to run.
pub(crate) fn run(
    engine: Weak<Engine>,
    context: Arc<Context>,
    errand: Errand,
    deadline: Instant,
    responder: Box<dyn Responder>,
) -> impl Future<Output = ()> + Send {
    let waiter = Waiter(Some(responder));
    async move {
        let work = async {
            match errand {
                Errand::Sync { versions, all } => sync::run(&engine, &context, versions, all).await,
                Errand::CleanUp { node } => by_hand::clean_up(&engine, &context, &node).await,
                Errand::Topics {
                    space,
                    limit,
                    after,
                } => by_hand::topics(&engine, &context, space, limit, after).await,
            }
        };
        let result = tokio::time::timeout_at(deadline.into(), work).await;
        waiter.answer(result.unwrap_or(Err(Error::Timeout)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::config::Config;

    /// As when the runtime ends between the call and its turn.
    #[test]
    fn an_errand_that_never_runs_is_answered() {
        let (sender, mut receiver) = oneshot::channel();
        let context = Context::new(&Config::default(), Vec::new(), Arc::default());
        let errand = Errand::Topics {
            space: Space::Routes,
            limit: 1,
            after: None,
        };
        let responder = Box::new(sender);
        let work = run(
            Weak::new(),
            Arc::new(context),
            errand,
            Instant::now(),
            responder,
        );
        drop(work);
        assert_eq!(receiver.try_recv(), Ok(Err(Error::Stopped)));
    }
}
