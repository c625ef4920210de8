//! The route table in this node's memory, kept true by the feeds of its shards: a match costs no round trip.
//!
//! [`state`] decides what can be trusted, [`follow`] asks Redis, [`tables`] are what is searched, [`own`] is what this
//! node adds again where Redis has lost it, [`lease`] tells the living nodes from the dead. It begins with the first use
//! of routes: a node without any asks for nothing.

mod ask;
mod assertion;
mod by_hand;
mod errand;
pub mod feed;
mod follow;
mod lease;
mod own;
mod pages;
mod purge;
mod reading;
pub mod state;
mod sync;
pub mod tables;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{watch, Notify};

use crate::keys::Keys;
use crate::route_scripts::Space;
use crate::table::{Found, OverBudget};
use crate::topic;

pub(crate) use errand::run as run_errand;
pub use errand::{Errand, TopicsCursor};
pub(crate) use follow::run;
use lease::{Lease, Leases};
pub use own::Own;
pub(crate) use own::{Claim, Outcome};
use state::{Element, State};
use tables::{Replaced, TableLock};

/// A table that was not verified for so long is not trusted: what changed since may be missing.
pub const MAX_LAG: Duration = Duration::from_secs(3);

/// The replica of a running storage.
pub struct Replica {
    started: Instant,
    /// A word that no other start of a storage has.
    pub(crate) life: String,
    /// What this node adds again.
    pub(crate) own: Arc<Own>,
    shards: OnceLock<Box<[Shard]>>,
    is_wanted: AtomicBool,
    begin: Notify,
    once: AtomicU64,
}

/// One route shard.
pub(crate) struct Shard {
    tables: TableLock,
    /// When the poll was sent by which the table was last seen to be true, in microseconds since the start; 0 where
    /// it is not.
    caught_up: AtomicU64,
    state: Mutex<State>,
    /// There is a reason to poll at once.
    hurry: Notify,
    /// How many wait for all nodes.
    waiting: AtomicU64,
    lease: Mutex<Lease>,
    leases: watch::Sender<Arc<Leases>>,
    position: watch::Sender<u64>,
}

/// Why a search in memory gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The table is not known to be true: ask Redis.
    OutOfSync,
    /// It is being changed this very moment: try again.
    Busy,
    /// It takes longer than a scheduler may be held.
    OverBudget,
}

/// How a shard stands.
#[derive(Debug, Clone)]
pub struct ShardStatus {
    /// The version of the feed that the table is of.
    pub version: Option<u64>,
    /// Whether the table is trusted.
    pub in_sync: bool,
    /// Since when nothing was heard of the feed, at most.
    pub age: Option<Duration>,
    /// Whether this node's lease is held.
    pub leased: bool,
    /// How large the tables are; unknown while they are being changed.
    pub sizes: Option<Sizes>,
}

/// How large the tables of a shard are.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// Routes to nodes.
    pub routes: usize,
    /// Subscriptions of persistent clients.
    pub subscriptions: usize,
    /// Bytes of memory.
    pub memory: usize,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replica")
    }
}

impl Replica {
    /// Nothing is known yet, and nothing asked for.
    pub fn new(own: Arc<Own>) -> Self {
        let random = RandomState::new();
        Replica {
            started: Instant::now(),
            life: format!("{:016x}", random.hash_one("life")),
            own,
            shards: OnceLock::new(),
            is_wanted: AtomicBool::new(false),
            begin: Notify::new(),
            once: AtomicU64::new(random.hash_one("once")),
        }
    }

    /// A number that no other change has.
    pub(crate) fn once(&self) -> u64 {
        self.once.fetch_add(1, Relaxed)
    }

    /// Routes are used: follow them.
    pub fn want(&self) {
        if !self.is_wanted.load(Relaxed) {
            self.is_wanted.store(true, Relaxed);
            self.begin.notify_one();
        }
    }

    fn shards(&self) -> &[Shard] {
        self.shards.get().map_or(&[], |shards| shards)
    }

    fn shard(&self, shard: u16) -> Option<&Shard> {
        self.shards().get(usize::from(shard))
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_micros() as u64 + 1
    }

    fn in_sync(&self, shard: &Shard, now: Instant) -> bool {
        let caught_up = shard.caught_up.load(Relaxed);
        caught_up > 0
            && self.micros(now) - caught_up.min(self.micros(now)) <= MAX_LAG.as_micros() as u64
    }

    /// Visits what matches a valid topic name, if the tables are known to be true, or were once and that is enough.
    /// `steps` bounds the work, see [`Table::find`](crate::table::Table::find).
    pub fn find(
        &self,
        keys: &Keys,
        space: Space,
        name: &str,
        steps: usize,
        answers_stale: bool,
        mut visit: impl FnMut(Found<'_>),
    ) -> Result<(), NoAnswer> {
        let now = Instant::now();
        for shard in self.shards_of(keys, name) {
            let shard = self.trusted(shard, answers_stale, now)?;
            let tables = shard.tables.try_read().ok_or(NoAnswer::Busy)?;
            let found = tables.of(space).find(name, steps, &mut visit);
            found.map_err(|OverBudget| NoAnswer::OverBudget)?;
        }
        Ok(())
    }

    /// The same without a bound, for a thread that may wait: in slices, between which the tables may change.
    pub fn find_in_slices(
        &self,
        keys: &Keys,
        space: Space,
        name: &str,
        answers_stale: bool,
        mut visit: impl FnMut(Found<'_>),
    ) -> Result<(), NoAnswer> {
        for number in self.shards_of(keys, name) {
            let shard = self.trusted(number, answers_stale, Instant::now())?;
            let found = shard.tables.find_in_slices(space, name, &mut visit);
            found.map_err(|Replaced| NoAnswer::Busy)?;
            self.trusted(number, answers_stale, Instant::now())?;
        }
        Ok(())
    }

    /// The shards of what matches a topic name.
    fn shards_of(&self, keys: &Keys, name: &str) -> impl Iterator<Item = u16> {
        self.want();
        // No filter that begins with a wildcard matches a name that begins with `$`.
        let is_split = keys.is_clustered() && !name.starts_with('$');
        let wildcards = is_split.then(|| keys.wildcard_shard());
        let own = keys.shard(name.as_bytes());
        [Some(own), wildcards].into_iter().flatten()
    }

    /// A shard whose tables may be searched.
    fn trusted(&self, shard: u16, answers_stale: bool, now: Instant) -> Result<&Shard, NoAnswer> {
        let shard = self.shard(shard).ok_or(NoAnswer::OutOfSync)?;
        let is_good_enough = answers_stale && *shard.position.borrow() > 0;
        match self.in_sync(shard, now) || is_good_enough {
            true => Ok(shard),
            false => Err(NoAnswer::OutOfSync),
        }
    }

    /// A change of this node was done: it is seen at once.
    pub(crate) fn own_change(
        &self,
        keys: &Keys,
        change: &Element<'_>,
        adds: bool,
        at: feed::Position,
    ) {
        let Ok(filter) = topic::parse_filter(change.filter) else {
            return;
        };
        let Some(shard) = self.shard(keys.shard(filter.real.as_bytes())) else {
            return;
        };
        let mut state = shard.state();
        if let Err(why) = state.own_change(&shard.tables, change, adds, at, Instant::now()) {
            tracing::warn!(why, "the routes in memory are read from Redis anew");
            shard.caught_up.store(0, Relaxed);
            state.lose();
        }
        if state.is_doubted() {
            shard.caught_up.store(0, Relaxed);
            shard.hurry.notify_one();
        }
    }

    /// Whether this node's lease is held on every shard: what other nodes have been told that all nodes know, this one
    /// knows.
    pub fn is_leased(&self) -> bool {
        self.want();
        let now = Instant::now();
        let shards = self.shards();
        !shards.is_empty() && shards.iter().all(|shard| self.is_leased_on(shard, now))
    }

    fn is_leased_on(&self, shard: &Shard, now: Instant) -> bool {
        let version = *shard.position.borrow();
        self.in_sync(shard, now) && shard.lease().is_held(version, now)
    }

    /// How each shard stands.
    pub fn status(&self) -> Vec<ShardStatus> {
        let now = Instant::now();
        let status = |shard: &Shard| {
            let caught_up = shard.caught_up.load(Relaxed);
            let age = self.micros(now).saturating_sub(caught_up);
            let sizes = shard.tables.try_read_soon().map(|tables| {
                let (routes, clients) = (tables.of(Space::Routes), tables.of(Space::Subscriptions));
                Sizes {
                    routes: routes.routes(),
                    subscriptions: clients.routes(),
                    memory: routes.memory() + clients.memory(),
                }
            });
            ShardStatus {
                version: Some(*shard.position.borrow()).filter(|version| *version > 0),
                in_sync: self.in_sync(shard, now),
                age: (caught_up > 0).then(|| Duration::from_micros(age)),
                leased: self.is_leased_on(shard, now),
                sizes,
            }
        };
        self.shards().iter().map(status).collect()
    }
}

impl Shard {
    fn new() -> Self {
        Shard {
            tables: TableLock::default(),
            caught_up: AtomicU64::new(0),
            state: Mutex::default(),
            hurry: Notify::new(),
            waiting: AtomicU64::new(0),
            lease: Mutex::default(),
            leases: watch::Sender::default(),
            position: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}
