//! Follows the feed of each route shard: polls, reads the table anew where it can't be trusted, keeps the lease.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ask::{ask, submit, Question};
use super::feed::{self, Entry};
use super::pages::Pages;
use super::{lease, Replica, Shard};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::metrics::{Counter, OperationKind};
use crate::resp::Frame;
use crate::route_scripts::{ScriptCall, Space};
use crate::router::Changes;
use crate::scripts::Script;
use crate::topic::parse_filter;

/// Between two polls while something happens.
const POLL: Duration = Duration::from_millis(5);
/// Between two polls when nothing has for a while.
const POLL_IDLE: Duration = Duration::from_millis(20);
/// How long "a while" is.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// After a failure.
const PAUSE: Duration = Duration::from_millis(100);
/// Entries asked for at once, the known one included.
const MOST: usize = 1000;
/// Bytes of entries that one answer may have about.
const BYTES: usize = 256 * 1024;
/// Own routes that are added again in one go.
const ASSERTED: usize = 200;
/// Many nodes that read the whole table at the same time begin in this span.
const SPREAD: Duration = Duration::from_millis(500);
/// A table of more routes is read at the expense of others.
const LARGE: usize = 10_000;
/// Pages read between two polls.
const PAGES: usize = 4;

/// Follows from the first use of routes on until the engine is gone.
pub(crate) async fn run(engine: Weak<Engine>, context: Arc<Context>) {
    let replica = &context.replica;
    if !replica.is_wanted.load(Relaxed) {
        replica.begin.notified().await;
    }
    // In a cluster the number of shards is known once a request has found its way.
    while ask(&engine, 0, |_| Question::Command(vec!["TIME".into()]))
        .await
        .is_err()
    {
        if engine.strong_count() == 0 {
            return;
        }
        sleep(PAUSE).await;
    }
    let shards = context.keys.shards();
    let _ = replica
        .shards
        .set(shards.clone().map(|_| Shard::new()).collect());
    let mut tasks = JoinSet::new();
    for shard in shards {
        let follower = Follower::new(engine.clone(), context.clone(), shard);
        tasks.spawn(follower.run());
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            // Ends the engine, so that its owner starts it anew.
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

pub(super) struct Follower {
    pub(super) engine: Weak<Engine>,
    pub(super) context: Arc<Context>,
    pub(super) shard: u16,
    pages: Option<Reading>,
    to_assert: VecDeque<Vec<u8>>,
    /// Entries to ask for.
    most: usize,
    last_news: Instant,
    /// Redis has refused what was asked last.
    is_refused: bool,
    pub(super) next_renewal: Instant,
    pub(super) deaths: lease::Deaths,
}

struct Reading {
    pages: Pages,
    /// The counters of lost connections and redirections when it began.
    connections: u64,
}

impl Follower {
    fn new(engine: Weak<Engine>, context: Arc<Context>, shard: u16) -> Self {
        let now = Instant::now();
        Follower {
            engine,
            context,
            shard,
            pages: None,
            to_assert: VecDeque::new(),
            most: 32,
            last_news: now,
            is_refused: false,
            next_renewal: now,
            deaths: lease::Deaths::default(),
        }
    }

    fn replica(&self) -> &Replica {
        &self.context.replica
    }

    pub(super) fn state(&self) -> &Shard {
        &self.replica().shards()[usize::from(self.shard)]
    }

    async fn run(mut self) {
        while self.engine.strong_count() > 0 {
            match self.round().await {
                Ok(more) => {
                    self.is_refused = false;
                    if !more {
                        self.pause().await;
                    }
                }
                Err(Error::Stopped) => return,
                Err(error) => {
                    self.note_failure(&error);
                    self.deaths.restart();
                    self.state().lease().steady_since = Instant::now();
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// That Redis is away others say; that it refuses is to be known, for all matches ask Redis then.
    fn note_failure(&mut self, error: &Error) {
        if let Error::Redis { code, text } = error {
            if !self.is_refused {
                tracing::warn!(shard = self.shard, %code, %text, "the routes can't be kept in memory");
            }
            self.is_refused = true;
        }
    }

    async fn pause(&self) {
        let idle = self.last_news.elapsed() > IDLE_AFTER;
        let wait = if idle { POLL_IDLE } else { POLL };
        let _ = timeout(wait, self.state().hurry.notified()).await;
    }

    /// Does what is to be done; true where there is more.
    async fn round(&mut self) -> Result<bool, Error> {
        let is_lost = self.state().state().position().is_none();
        if is_lost {
            self.begin().await?;
        }
        let more = self.poll().await?;
        let mut more = more | self.read_pages().await?;
        more |= self.assert_own().await?;
        self.keep_lease(more).await?;
        Ok(more)
    }

    /// Begins to read the table.
    async fn begin(&mut self) -> Result<(), Error> {
        self.state().caught_up.store(0, Relaxed);
        self.context.metrics.add(Counter::Resyncs, 1);
        // After a fail-over all nodes begin at once.
        let tables = self.state().tables.read();
        let routes = tables.map_or(0, |it| it.of(Space::Routes).routes());
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
        self.pages = Some(Reading {
            pages: Pages::new(),
            connections,
        });
        Ok(())
    }

    fn connections(&self) -> u64 {
        let metrics = &self.context.metrics;
        metrics.get(Counter::Disconnects) + metrics.get(Counter::Redirected)
    }

    /// What was known is not to be trusted: it is read anew.
    pub(super) fn lose(&mut self, why: &str) {
        tracing::warn!(
            shard = self.shard,
            why,
            "the routes in memory are read from Redis anew"
        );
        self.state().caught_up.store(0, Relaxed);
        self.state().state().lose();
        self.state().lease().steady_since = Instant::now();
        self.to_assert.clear();
    }

    /// Reads what is new; true where there is more.
    async fn poll(&mut self) -> Result<bool, Error> {
        let Some(from) = self.state().state().position().map(|it| it.version) else {
            return Ok(true);
        };
        let (shard, most) = (self.shard, self.most);
        let sent = Instant::now();
        let reply = ask(&self.engine, shard, move |context| {
            Question::Command(vec![
                "XRANGE".into(),
                context.keys.feed(shard),
                format!("{from}-0").into(),
                "+".into(),
                "COUNT".into(),
                most.to_string().into(),
            ])
        });
        let Some(entries) = feed::parse(reply.await?) else {
            self.lose("the feed holds what is none of ours");
            return Ok(true);
        };
        let to_end = entries.len() < most;
        self.adapt(&entries);
        let context = self.context.clone();
        let shard = &context.replica.shards()[usize::from(self.shard)];
        let mut deleted = Vec::new();
        let progress =
            shard
                .state()
                .poll(&shard.tables, &entries, to_end, sent, |entry, has_it| {
                    note(&context, entry, has_it, &mut deleted);
                });
        self.to_assert.extend(deleted);
        let progress = match progress {
            Ok(progress) => progress,
            Err(why) => {
                self.lose(why);
                return Ok(true);
            }
        };
        if entries.len() > 1 {
            self.last_news = Instant::now();
            let news = (entries.len() - 1) as u64;
            self.context.metrics.add(Counter::FeedEntries, news);
        }
        if progress.swapped {
            // The server that was scanned may have failed since, and with it what it told of no place.
            if self.has_scanned_another() {
                self.lose("a connection was lost after a large filter was read");
                return Ok(true);
            }
            self.swapped();
        }
        let shard = self.state();
        if shard.state().is_following() {
            if let Some(last) = entries.last() {
                shard.position.send_if_modified(|version| {
                    let is_news = *version != last.at.version;
                    *version = last.at.version;
                    is_news
                });
            }
        }
        if progress.caught_up {
            shard.caught_up.store(self.replica().micros(sent), Relaxed);
        }
        Ok(!to_end)
    }

    /// Large entries are asked for in smaller numbers.
    fn adapt(&mut self, entries: &[Entry]) {
        let size = |entry: &Entry| {
            let change = entry.change.as_ref();
            128 + change.map_or(0, |it| {
                it.filter.len() + it.destination.len() + it.options.len()
            })
        };
        let bytes: usize = entries.iter().map(size).sum();
        self.most = (BYTES * entries.len() / bytes.max(1)).clamp(8, MOST);
        if entries.len() <= 1 {
            self.most = 32;
        }
    }

    /// Whether a scan, whose answers tell no place in the feed, may be of another server than the one that answers now.
    fn has_scanned_another(&self) -> bool {
        let reading = self.pages.as_ref();
        reading.is_some_and(|it| it.pages.has_scanned && it.connections != self.connections())
    }

    /// The fresh table is in use: what Redis has lost of this node's routes is added again.
    fn swapped(&mut self) {
        self.pages = None;
        let (shard, keys) = (self.shard, &self.context.keys);
        let of_shard = |filter: &Vec<u8>| {
            parse_filter(filter).is_ok_and(|it| keys.shard(it.real.as_bytes()) == shard)
        };
        let wanted = self.replica().own.wanted().into_iter().filter(of_shard);
        let tables = &self.state().tables;
        let tables = tables.read().unwrap_or_else(|broken| broken.into_inner());
        let node = &self.context.node;
        let missing = wanted.filter(|it| !tables.contains(Space::Routes, it, node));
        let missing: Vec<Vec<u8>> = missing.collect();
        let routes = tables.of(Space::Routes).routes();
        let subscriptions = tables.of(Space::Subscriptions).routes();
        tracing::info!(
            shard,
            routes,
            subscriptions,
            missing = missing.len(),
            "the routes are known"
        );
        drop(tables);
        self.to_assert.extend(missing);
    }

    /// Reads some pages of the table; true where there is more to do for it.
    async fn read_pages(&mut self) -> Result<bool, Error> {
        for _ in 0..PAGES {
            let Some(reading) = &mut self.pages else {
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

    /// Adds own routes again; true where there are more.
    async fn assert_own(&mut self) -> Result<bool, Error> {
        if self.to_assert.is_empty() || self.state().lease().is_superseded() {
            self.to_assert.clear();
            return Ok(false);
        }
        let count = self.to_assert.len().min(ASSERTED);
        let filters: Vec<Vec<u8>> = self.to_assert.drain(..count).collect();
        let again = filters.clone();
        match submit(
            &self.engine,
            Box::new(Changes::assert(&self.context, filters)),
        )
        .await
        {
            Ok(_) => {
                let count = count as u64;
                self.context.metrics.add(Counter::Reasserted, count);
                Ok(!self.to_assert.is_empty())
            }
            Err(error) => {
                self.to_assert.extend(again);
                Err(error)
            }
        }
    }
}

/// Counts how long it took, and collects own routes that somebody has deleted.
fn note(context: &Context, entry: &Entry, has_it: bool, deleted: &mut Vec<Vec<u8>>) {
    if has_it {
        let lag = context.clock.now_micros() - entry.micros;
        let lag = Duration::from_micros(lag.max(0) as u64);
        context.metrics.observe(OperationKind::FeedLag, lag);
    }
    let Some(change) = &entry.change else {
        return;
    };
    let is_own = change.space == Space::Routes && change.destination == context.node;
    if is_own && !change.adds && context.replica.own.wants(&change.filter) {
        deleted.push(change.filter.to_vec());
    }
}
