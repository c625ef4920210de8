//! What every operation needs to know when it is encoded.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Config, Durability, Topology, Ttl, WhenOutOfSync};
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::order::Sequencer;
use crate::replica::{Own, Replica};
use crate::scripts::Names;
use crate::slots::SlotOwners;

/// The settings, the clock and the counters of a running storage.
#[derive(Debug)]
pub struct Context {
    /// Key names.
    pub keys: Keys,
    /// The name that sessions are stored under as their `node`.
    pub node: Vec<u8>,
    /// Redis's clock.
    pub clock: Clock,
    /// Places messages of one millisecond in the order submitted.
    pub sequencer: Sequencer,
    /// Statistics.
    pub metrics: Metrics,
    /// The scripts' names.
    pub scripts: Names,
    /// Who owns which slot of a cluster.
    pub slots: SlotOwners,
    /// The routes in memory.
    pub replica: Replica,
    lease_timeout: AtomicU64,
    answers_stale: std::sync::atomic::AtomicBool,
    session_ttl: AtomicU64,
    message_ttl: AtomicU64,
    message_index: std::sync::atomic::AtomicBool,
    durability: Mutex<Durability>,
    follows_masters: std::sync::atomic::AtomicBool,
}

/// How long an epoch outlives its session: longer than any node is paused for.
pub const EPOCH_GRACE_SECONDS: u64 = 24 * 3600;

const FOREVER: u64 = u64::MAX;

impl Context {
    /// The context of a storage with this configuration on the named node.
    pub fn new(config: &Config, node: Vec<u8>, own: Arc<Own>) -> Self {
        let prefix = config.key_prefix.as_bytes();
        let context = Context {
            keys: match config.redis.topology {
                Topology::Cluster => Keys::clustered(prefix),
                Topology::Single | Topology::Sentinel => Keys::new(prefix),
            },
            node,
            clock: Clock::default(),
            sequencer: Sequencer::default(),
            metrics: Metrics::default(),
            scripts: Names::default(),
            slots: SlotOwners::default(),
            replica: Replica::new(own),
            lease_timeout: AtomicU64::new(0),
            answers_stale: false.into(),
            session_ttl: AtomicU64::new(0),
            message_ttl: AtomicU64::new(0),
            message_index: true.into(),
            durability: Mutex::default(),
            follows_masters: false.into(),
        };
        context.configure(config);
        context
    }

    /// Takes over what a changed configuration says of operations to come.
    pub fn configure(&self, config: &Config) {
        let seconds = |ttl: Ttl| match ttl {
            Ttl::Seconds(seconds) => u64::from(seconds),
            Ttl::Infinity => FOREVER,
        };
        self.session_ttl
            .store(seconds(config.persistence.session_ttl), Relaxed);
        self.message_ttl
            .store(seconds(config.persistence.message_ttl), Relaxed);
        self.message_index
            .store(config.persistence.message_index, Relaxed);
        *self.durability_mut() = config.persistence.durability;
        let lease_timeout = config.routes.lease_timeout.as_millis() as u64;
        self.lease_timeout.store(lease_timeout, Relaxed);
        let answers_stale = config.routes.when_out_of_sync == WhenOutOfSync::Stale;
        self.answers_stale.store(answers_stale, Relaxed);
        self.follows_masters
            .store(config.redis.topology != Topology::Single, Relaxed);
    }

    /// How long the beat of a node's lease stands before the node is taken for dead.
    pub(crate) fn lease_timeout(&self) -> Duration {
        Duration::from_millis(self.lease_timeout.load(Relaxed))
    }

    /// Whether a match is answered from memory though what is there is not known to be true.
    pub fn answers_stale(&self) -> bool {
        self.answers_stale.load(Relaxed)
    }

    fn durability_mut(&self) -> MutexGuard<'_, Durability> {
        self.durability
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// The level of writes that ask for none of their own.
    pub fn durability(&self) -> Durability {
        *self.durability_mut()
    }

    /// Whether there is another master to be found when a server turns out to be none.
    pub(crate) fn follows_masters(&self) -> bool {
        self.follows_masters.load(Relaxed)
    }

    /// A session's time to live in seconds, `None` for ever.
    pub fn session_ttl(&self, own: Option<Ttl>) -> Option<u64> {
        Self::ttl(own, &self.session_ttl)
    }

    /// A message's time to live in seconds, `None` for ever.
    pub fn message_ttl(&self, own: Option<Ttl>) -> Option<u64> {
        Self::ttl(own, &self.message_ttl)
    }

    /// Whether `sync:messages` is kept.
    pub fn message_index(&self) -> bool {
        self.message_index.load(Relaxed)
    }

    fn ttl(own: Option<Ttl>, default: &AtomicU64) -> Option<u64> {
        match own {
            Some(Ttl::Seconds(seconds)) => Some(u64::from(seconds)),
            Some(Ttl::Infinity) => None,
            None => Some(default.load(Relaxed)).filter(|seconds| *seconds != FOREVER),
        }
    }
}
