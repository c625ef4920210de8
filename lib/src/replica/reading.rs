//! Reading the table of a route shard anew, in turns with following its feed.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::ask::{ask, Question};
use super::feed;
use super::follow::Follower;
use super::pages::Pages;
use crate::error::Error;
use crate::metrics::Counter;
use crate::resp::Frame;
use crate::route_scripts::{ScriptCall, Space};
use crate::scripts::Script;

/// Many nodes that read the whole table at the same time begin in this span.
const SPREAD: Duration = Duration::from_millis(500);
/// A table of more routes is read at the expense of others.
const LARGE: usize = 10_000;
/// Pages read between two polls.
const PAGES: usize = 4;

/// A reading that is under way.
pub(super) struct Reading {
    pages: Pages,
    /// The counters of lost connections and redirections when it began.
    connections: u64,
}

impl Follower {
    /// Begins to read the table.
    pub(super) async fn begin_reading(&mut self) -> Result<(), Error> {
        self.state().caught_up.store(0, Relaxed);
        self.context.metrics.add(Counter::Resyncs, 1);
        // After a fail-over all nodes begin at once.
        let routes = self.state().tables.read().of(Space::Routes).routes();
        if routes > LARGE {
            let random = RandomState::new().hash_one(self.shard) % SPREAD.as_millis() as u64;
            sleep(Duration::from_millis(random)).await;
        }
        let connections = self.connections();
        let shard = self.shard;
        let reply = ask(&self.engine, shard, move |context| {
            Question::Script(ScriptCall {
                script: Script::BeginFeed,
                keys: vec![context.keys.feed(shard)],
                args: vec![
                    context.clock.now_micros().to_string().into(),
                    context.replica.once().to_string().into(),
                ],
            })
        });
        let position = match reply.await? {
            Frame::Array(reply) => feed::position(&reply),
            _ => None,
        };
        let position = position.ok_or_else(|| Error::unexpected_reply("begin_feed"))?;
        self.state().state().begin(position);
        self.reading = Some(Reading {
            pages: Pages::new(),
            connections,
        });
        Ok(())
    }

    fn connections(&self) -> u64 {
        let metrics = &self.context.metrics;
        metrics.get(Counter::Disconnects) + metrics.get(Counter::Redirected)
    }

    /// Whether a scan, whose answers tell no place in the feed, may be of another server than the one that answers now.
    pub(super) fn has_scanned_another(&self) -> bool {
        let reading = self.reading.as_ref();
        reading.is_some_and(|it| it.pages.has_scanned && it.connections != self.connections())
    }

    /// The fresh table is in use: what Redis has lost of this node's routes is added again.
    pub(super) fn end_reading(&mut self) {
        self.reading = None;
        self.assertion.check_all();
        let tables = &self.state().tables;
        let tables = tables.read();
        tracing::info!(
            shard = self.shard,
            routes = tables.of(Space::Routes).routes(),
            subscriptions = tables.of(Space::Subscriptions).routes(),
            "the routes are known"
        );
    }

    /// Reads some pages of the table; true where there is more to do for it.
    pub(super) async fn read_pages(&mut self) -> Result<bool, Error> {
        for _ in 0..PAGES {
            let Some(reading) = &mut self.reading else {
                return Ok(false);
            };
            if self.context.replica.shards()[usize::from(self.shard)]
                .state()
                .is_whole()
            {
                // A poll that was sent after the last page makes it complete.
                return Ok(true);
            }
            let page = reading.pages.next(&self.engine, self.shard).await?;
            let is_over = reading.pages.is_over();
            let now = Instant::now();
            let taken = self
                .state()
                .state()
                .page(page.elements(), page.at.clone(), now);
            if let Err(why) = taken {
                self.lose(why);
                return Ok(true);
            }
            if is_over {
                // A scan's cursor means nothing to another server.
                if self.has_scanned_another() {
                    self.lose("a connection was lost while a large filter was read");
                    return Ok(true);
                }
                self.state().state().whole(now);
            }
        }
        Ok(true)
    }
}
