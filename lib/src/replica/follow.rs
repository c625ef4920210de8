//! Follows the feed of each route shard: polls, reads the table anew where it can't be trusted, keeps the lease.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ask::{ask, find_shards, Question};
use super::assertion::Assertion;
use super::feed::{self, Entry};
use super::lease::Renewal;
use super::purge::{Deaths, Purge};
use super::reading::Reading;
use super::{Replica, Shard};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::metrics::{Counter, OperationKind};
use crate::route_scripts::Space;

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

/// Follows from the first use of routes on until the engine is gone.
pub(crate) async fn run(engine: Weak<Engine>, context: Arc<Context>) {
    let replica = &context.replica;
    if !replica.is_wanted.load(Relaxed) {
        replica.begin.notified().await;
    }
    let shards = loop {
        match find_shards(&engine, &context).await {
            Ok(shards) => break shards,
            Err(_) if engine.strong_count() == 0 => return,
            Err(_) => sleep(PAUSE).await,
        }
    };
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
    pub(super) reading: Option<Reading>,
    pub(super) assertion: Assertion,
    /// Entries to ask for.
    most: usize,
    last_news: Instant,
    /// Redis has refused what was asked last.
    is_refused: bool,
    pub(super) renewal: Renewal,
    pub(super) deaths: Deaths,
    pub(super) purge: Option<Purge>,
}

impl Follower {
    fn new(engine: Weak<Engine>, context: Arc<Context>, shard: u16) -> Self {
        let now = Instant::now();
        Follower {
            engine,
            context,
            shard,
            reading: None,
            assertion: Assertion::default(),
            most: 32,
            last_news: now,
            is_refused: false,
            renewal: Renewal::new(now),
            deaths: Deaths::default(),
            purge: None,
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
            self.begin_reading().await?;
        }
        let more = self.poll().await?;
        let mut more = more | self.read_pages().await?;
        more |= self.assert_own().await?;
        self.keep_lease(more).await?;
        Ok(more)
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
        self.assertion = Assertion::default();
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
        self.assertion.add(deleted);
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
            self.end_reading();
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
