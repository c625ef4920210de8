//! Counters and latencies, each declared once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::request::Answer;

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $key:literal, $help:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $(#[doc = $help] $variant,)+ }

        impl $name {
            /// Every row with its name and what it means.
            pub const ALL: &'static [($name, &'static str, &'static str)] =
                &[$(($name::$variant, $key, $help),)+];
        }
    };
}

table! {
    /// What is counted.
    Counter {
        Submitted = "submitted", "Requests accepted";
        Answered = "answered", "Requests answered, whatever the answer";
        Sent = "sent", "Requests whose bytes were handed to a connection, each step counted";
        Retried = "retried", "Steps sent again: a script was unknown, or the bytes had not left";
        Redirected = "redirected", "Steps that a server did not do: sent elsewhere, or again later";
        TimedOut = "timed_out", "Requests answered {error, timeout}";
        Overloaded = "refused_overloaded", "Requests refused for want of room";
        Unavailable = "refused_unavailable", "Requests answered {error, {unavailable, _}}";
        Unknown = "failed_unknown", "Requests answered {error, {unknown, _}}";
        RedisErrors = "failed_redis", "Requests that Redis answered with an error";
        Fenced = "failed_fenced", "Requests refused for want of the session's epoch";
        OtherErrors = "failed_other", "Requests that failed for another reason";
        Cancelled = "cancelled", "Requests cancelled by their caller";
        Abandoned = "abandoned", "Requests dropped unsent because their caller had died";
        Writes = "writes", "Writes to sockets";
        BytesOut = "bytes_out", "Bytes written";
        BytesIn = "bytes_in", "Bytes read";
        Connects = "connects", "Connections made";
        ConnectFailures = "connect_failures", "Attempts to connect that failed";
        Disconnects = "disconnects", "Connections lost";
        ExpiredSessions = "expired_sessions", "Expired sessions removed from the indexes";
        ExpiredMessages = "expired_messages", "Expired messages removed from the queues";
        DroppedMessages = "dropped_messages", "Messages dropped by a full queue";
        Quarantined = "quarantined", "Foreign values moved out of the way";
        Resyncs = "resyncs", "Times that the table of a route shard was read from Redis as a whole";
        FeedEntries = "feed_entries", "Changes of routes and subscriptions read from the feed";
        Reasserted = "reasserted_routes", "Routes of this node that Redis had lost and that were added again";
        Purged = "purged_routes", "Routes of dead nodes that this node purged";
        Panics = "panics", "Panics contained";
    }
}

table! {
    /// The operations whose latency is told.
    OperationKind {
        SaveSession = "save_session", "emqx_redis_session:save_session";
        LoadSession = "load_session", "emqx_redis_session:load_session";
        DeleteSession = "delete_session", "emqx_redis_session:delete_session";
        ListSessions = "list_sessions", "emqx_redis_session:list_sessions";
        CountSessions = "count_sessions", "emqx_redis_session:count_sessions";
        ClaimSession = "claim_session", "emqx_redis_session:claim_session";
        StoreMessage = "store_message", "emqx_redis_message:store_message and its batch forms";
        GetMessages = "get_messages", "emqx_redis_message:get_messages";
        AckMessage = "ack_message", "emqx_redis_message:ack_message and ack_messages";
        MarkMessages = "mark_messages", "emqx_redis_message:mark_messages";
        DeleteMessages = "delete_messages", "emqx_redis_message:delete_messages";
        AddRoute = "add_route", "emqx_redis_router:add_route";
        DeleteRoute = "delete_route", "emqx_redis_router:delete_route";
        MatchRoutes = "match_routes", "emqx_redis_router:match_routes, where Redis was asked";
        AddSubscription = "add_subscription", "emqx_redis_subscription:add_subscription";
        DeleteSubscription = "delete_subscription", "emqx_redis_subscription:delete_subscription";
        MatchSubscriptions = "match_subscriptions", "emqx_redis_subscription:match_subscriptions, where Redis was asked";
        Topics = "topics", "emqx_redis_router:topics";
        FeedLag = "feed_lag", "From a change of a route on any node until this node has it in memory";
        Query = "query", "emqx_redis_pool:query and pipeline";
        Internal = "internal", "Heartbeats, sweeping and script loading";
    }
}

const COUNTERS: usize = Counter::ALL.len();
const OPERATIONS: usize = OperationKind::ALL.len();
/// Four buckets for each doubling, from 1 µs to over an hour.
const BUCKETS: usize = 128;

/// A counter on a cache line of its own: schedulers and the engine's thread count at the same time.
#[repr(align(64))]
struct Padded(AtomicU64);

/// The statistics of a running storage.
pub struct Metrics {
    counters: [Padded; COUNTERS],
    latencies: Vec<[AtomicU64; BUCKETS]>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            counters: std::array::from_fn(|_| Padded(AtomicU64::new(0))),
            latencies: (0..OPERATIONS)
                .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
        }
    }
}

/// How long an operation took: whole requests, from submission to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// How many were answered.
    pub count: u64,
    /// The median, in microseconds, rounded up by 19 % at most; likewise the others.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The 99.9th percentile.
    pub p999: u64,
}

impl Metrics {
    /// Adds to a counter.
    pub fn add(&self, counter: Counter, amount: u64) {
        self.counters[counter as usize].0.fetch_add(amount, Relaxed);
    }

    /// Reads a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].0.load(Relaxed)
    }

    /// Counts an answer.
    pub(crate) fn finished(
        &self,
        kind: OperationKind,
        submitted: Instant,
        result: &Result<Answer, Error>,
    ) {
        if kind == OperationKind::Internal {
            return;
        }
        self.latencies[kind as usize][bucket(submitted.elapsed())].fetch_add(1, Relaxed);
        self.add(Counter::Answered, 1);
        match result {
            Ok(Answer::Dropped(ids)) => self.add(Counter::DroppedMessages, ids.len() as u64),
            Ok(Answer::DroppedByClient(clients)) => {
                let dropped = clients.iter().map(|(_, ids)| ids.len() as u64).sum();
                self.add(Counter::DroppedMessages, dropped);
            }
            Ok(_) | Err(Error::NotFound) => {}
            Err(error) => self.add(
                match error {
                    Error::Timeout => Counter::TimedOut,
                    Error::Overloaded => Counter::Overloaded,
                    Error::Unavailable(_) => Counter::Unavailable,
                    Error::Unknown(_) => Counter::Unknown,
                    Error::Redis { .. } | Error::Partial(_) => Counter::RedisErrors,
                    Error::Fenced | Error::StaleEpoch(_) => Counter::Fenced,
                    Error::Cancelled => Counter::Cancelled,
                    _ => Counter::OtherErrors,
                },
                1,
            ),
        }
    }

    /// Counts how long something took that is no request.
    pub(crate) fn observe(&self, kind: OperationKind, took: Duration) {
        self.latencies[kind as usize][bucket(took)].fetch_add(1, Relaxed);
    }

    /// An operation's latency since the start.
    pub fn latency(&self, kind: OperationKind) -> Latency {
        let counts: Vec<u64> = self.latencies[kind as usize]
            .iter()
            .map(|count| count.load(Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let quantile = |part: f64| {
            let mut left = (count as f64 * part).ceil() as u64;
            for (bucket, counted) in counts.iter().enumerate() {
                if left <= *counted && left > 0 {
                    return upper_bound(bucket);
                }
                left -= (*counted).min(left);
            }
            0
        };
        Latency {
            count,
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
        }
    }
}

fn bucket(took: Duration) -> usize {
    let micros = (took.as_micros() as u64).max(1);
    let doubling = micros.ilog2() as usize;
    let quarter = match doubling {
        0 => 0,
        1 => ((micros - 2) * 2) as usize,
        _ => ((micros >> (doubling - 2)) & 3) as usize,
    };
    (doubling * 4 + quarter).min(BUCKETS - 1)
}

/// The longest time, in microseconds, that counts into the bucket.
fn upper_bound(bucket: usize) -> u64 {
    let (doubling, quarter) = (bucket / 4, bucket as u64 % 4);
    ((4 + quarter + 1) << doubling).div_ceil(4).max(2) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_falls_into_the_bucket_that_bounds_it() {
        for micros in (1..5_000).chain([1 << 20, (1 << 31) + 12345]) {
            let bound = upper_bound(bucket(Duration::from_micros(micros)));
            assert!(bound >= micros, "{micros} {bound}");
            assert!(bound <= micros + micros.div_ceil(4), "{micros} {bound}");
        }
    }

    #[test]
    fn rows_stand_at_their_own_index() {
        for (index, (counter, ..)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
        for (index, (kind, ..)) in OperationKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
    }

    #[test]
    fn quantiles() {
        let metrics = Metrics::default();
        let kind = OperationKind::Query;
        assert_eq!(metrics.latency(kind).p99, 0);
        for micros in 1..=100 {
            metrics.latencies[kind as usize][bucket(Duration::from_micros(micros))]
                .fetch_add(1, Relaxed);
        }
        let latency = metrics.latency(kind);
        assert_eq!(latency.count, 100);
        assert!((50..=63).contains(&latency.p50), "{latency:?}");
        assert!((99..=127).contains(&latency.p99), "{latency:?}");
    }
}
