//! Leases: by them a node is told from a dead one, and whoever waits for all nodes knows for whom.
//!
//! No clock of another machine decides anything. A node is dead when its beat has stood for long on the monotonic
//! clock of the one that looks, and all such clocks start anew when the looking was interrupted. A node believes in its
//! own lease only while it is up to date, and gives up that belief earlier than others stop waiting for it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ask::{ask, submit, Question};
use super::feed::{number, position};
use super::follow::Follower;
use super::MAX_LAG;
use crate::error::Error;
use crate::metrics::Counter;
use crate::request::Answer;
use crate::resp::Frame;
use crate::route_scripts::{ScriptCall, Space};
use crate::router::Changes;
use crate::scripts::Script;
use crate::table::Cursor;

/// Between two renewals.
const RENEWAL: Duration = Duration::from_secs(1);
/// A node that was up to date longer ago does not say that it is.
const UP_TO_DATE: Duration = Duration::from_secs(1);
/// Between two looks at the beats, at most: else the clocks start anew.
const GAP: Duration = Duration::from_secs(4);
/// The first of the living purges; if it does not, the others do so much later.
const OTHERS_LATER: Duration = Duration::from_secs(10);
/// Routes purged in one go, and slots of the table searched for them.
const PURGED: usize = 100;
const SEARCHED: usize = 20_000;

/// This node's own lease on a shard.
pub(super) struct Lease {
    /// When the renewal by which it was last held was sent, and what must be applied before it counts.
    held: Option<(Instant, u64)>,
    has_claimed: bool,
    is_superseded: bool,
    /// Since when the same server has answered, as far as is known.
    pub(super) steady_since: Instant,
}

impl Default for Lease {
    fn default() -> Self {
        Lease {
            held: None,
            has_claimed: false,
            is_superseded: false,
            steady_since: Instant::now(),
        }
    }
}

impl Lease {
    /// Whether it is held by a node that has applied `version`.
    pub(super) fn is_held(&self, version: u64, now: Instant) -> bool {
        self.held
            .is_some_and(|(sent, from)| now - sent <= MAX_LAG && version >= from)
    }

    /// Whether a later start of a node of this name has it.
    pub(super) fn is_superseded(&self) -> bool {
        self.is_superseded
    }
}

/// All leases on a shard.
#[derive(Debug)]
pub(super) struct Leases {
    /// When they were asked for.
    pub(super) asked: Instant,
    pub(super) nodes: Vec<NodeLease>,
}

impl Default for Leases {
    fn default() -> Self {
        Leases {
            asked: Instant::now(),
            nodes: Vec::new(),
        }
    }
}

/// The lease of one node.
#[derive(Debug, Clone)]
pub(super) struct NodeLease {
    pub(super) node: Bytes,
    pub(super) life: Bytes,
    /// What it has applied; `None` of one that is not up to date, and for which nobody waits.
    pub(super) applied: Option<u64>,
    pub(super) beat: Bytes,
}

fn parse_leases(fields: &[Frame]) -> Vec<NodeLease> {
    let mut all: HashMap<Bytes, Bytes> = HashMap::new();
    for pair in fields.chunks_exact(2) {
        if let [Frame::Bulk(field), Frame::Bulk(value)] = pair {
            all.insert(field.clone(), value.clone());
        }
    }
    let leases = all.iter().filter(|(field, _)| !field.contains(&b'|'));
    leases
        .filter_map(|(node, value)| {
            let space = value.iter().position(|&byte| byte == b' ')?;
            let beat = all.get(&[node, &b"|beat"[..]].concat()[..])?;
            Some(NodeLease {
                node: node.clone(),
                life: value.slice(..space),
                applied: number(&value[space + 1..]),
                beat: beat.clone(),
            })
        })
        .collect()
}

/// Which beats stand, and since when.
#[derive(Default)]
pub(super) struct Deaths {
    beats: HashMap<Bytes, (Bytes, Instant)>,
    looked: Option<Instant>,
    purge: Option<Purge>,
    /// The counts that did not agree with the table when they were last compared.
    disagreed: Option<(i64, i64)>,
    renewed_at: u64,
    disconnects: u64,
}

struct Purge {
    node: Bytes,
    beat: Bytes,
    cursor: Option<Cursor>,
    found: bool,
}

impl Deaths {
    /// The looking was interrupted: nobody is any closer to being dead.
    pub(super) fn restart(&mut self) {
        self.looked = None;
    }

    /// How long each beat has stood.
    fn look(&mut self, nodes: &[NodeLease], now: Instant) -> HashMap<Bytes, Duration> {
        if self.looked.is_none_or(|before| now - before > GAP) {
            self.beats.clear();
        }
        self.looked = Some(now);
        self.beats
            .retain(|node, _| nodes.iter().any(|it| it.node == node));
        let mut stands = HashMap::new();
        for lease in nodes {
            let known = self
                .beats
                .entry(lease.node.clone())
                .or_insert_with(|| (lease.beat.clone(), now));
            if known.0 != lease.beat {
                *known = (lease.beat.clone(), now);
            }
            stands.insert(lease.node.clone(), now - known.1);
        }
        stands
    }
}

impl Follower {
    /// Renews the lease when it is time, or when others wait for what this node has applied since.
    /// While there is `more` to be read, that comes first.
    pub(super) async fn keep_lease(&mut self, more: bool) -> Result<(), Error> {
        let disconnects = self.context.metrics.get(Counter::Disconnects);
        if disconnects != self.deaths.disconnects {
            self.deaths.disconnects = disconnects;
            self.state().lease().steady_since = Instant::now();
            self.deaths.restart();
        }
        let now = Instant::now();
        let version = *self.state().position.borrow();
        let has_news = version != self.deaths.renewed_at;
        let waiting = self.state().waiting.load(Relaxed) > 0;
        if now < self.next_renewal && (more || !has_news && !waiting) {
            return Ok(());
        }
        self.next_renewal = now + RENEWAL;
        self.deaths.renewed_at = version;
        self.renew(now, version).await?;
        self.purge().await
    }

    async fn renew(&mut self, sent: Instant, version: u64) -> Result<(), Error> {
        let (shard, life) = (self.shard, self.context.replica.life.clone());
        let is_following = self.state().state().is_following();
        let caught_up = self.state().caught_up.load(Relaxed);
        let age = self.context.replica.micros(sent).saturating_sub(caught_up);
        let is_up_to_date = is_following && caught_up > 0 && age <= UP_TO_DATE.as_micros() as u64;
        let ghost = self.is_ghost(sent);
        let takes = !self.state().lease().has_claimed || ghost;
        let reply = ask(&self.engine, shard, move |context| {
            let keys = &context.keys;
            let beat = RandomState::new().hash_one(shard) >> 24;
            Question::Script(ScriptCall {
                script: Script::RenewLease,
                keys: vec![
                    keys.leases(shard),
                    keys.feed(shard),
                    keys.routes_index(shard),
                    keys.subscriptions_index(shard),
                ],
                args: vec![
                    context.node.clone(),
                    life.clone().into(),
                    match is_up_to_date {
                        true => version.to_string().into(),
                        false => Vec::new(),
                    },
                    if takes { "1".into() } else { "0".into() },
                    beat.to_string().into(),
                ],
            })
        });
        let unexpected = || Error::unexpected_reply("renew_lease");
        let Frame::Array(reply) = reply.await? else {
            return Err(unexpected());
        };
        let [Frame::Bulk(status), head @ .., Frame::Integer(routes), Frame::Integer(subscriptions), Frame::Array(all)] =
            &reply[..]
        else {
            return Err(unexpected());
        };
        let head = position(head).ok_or_else(unexpected)?;
        self.take_status(status, head.version, sent);
        self.audit(head.version, (*routes, *subscriptions));
        let nodes = parse_leases(all);
        self.find_dead(&nodes, sent);
        self.state()
            .leases
            .send_replace(Arc::new(Leases { asked: sent, nodes }));
        Ok(())
    }

    fn take_status(&self, status: &[u8], head: u64, sent: Instant) {
        let mut lease = self.state().lease();
        let is_superseded = status == b"superseded";
        if is_superseded && !lease.is_superseded {
            tracing::warn!(
                shard = self.shard,
                "a node of the same name was started later and has this node's lease: routes of this node are not kept for it any more"
            );
        }
        lease.is_superseded = is_superseded;
        lease.has_claimed |= !is_superseded;
        lease.held = match (status, lease.held) {
            (b"held", Some((_, from))) => Some((sent, from)),
            // What was changed while the lease was not held nobody waited for: it counts once that is applied.
            (b"held" | b"granted", _) => Some((sent, head)),
            _ => None,
        };
    }

    /// Whether this node's lease is held by a life that is over.
    fn is_ghost(&self, now: Instant) -> bool {
        let is_superseded = self.state().lease().is_superseded;
        let stands = self.deaths.beats.get(&self.context.node[..]);
        is_superseded
            && stands.is_some_and(|(_, since)| now - *since > self.context.lease_timeout())
    }

    /// Compares the numbers of filters: what was changed past the feed is noticed.
    fn audit(&mut self, version: u64, counts: (i64, i64)) {
        let (mine, is_same_place) = {
            let shard = self.state();
            let state = shard.state();
            let tables = shard
                .tables
                .read()
                .unwrap_or_else(|broken| broken.into_inner());
            let count = |space| tables.of(space).filters() as i64;
            let place = state.is_following()
                && !state.is_ahead()
                && state.position().is_some_and(|it| it.version == version);
            ((count(Space::Routes), count(Space::Subscriptions)), place)
        };
        if !is_same_place {
            return;
        }
        let off = (counts.0 - mine.0, counts.1 - mine.1);
        if off == (0, 0) {
            self.deaths.disagreed = None;
        } else if self.deaths.disagreed.replace(off) != Some(off) {
            self.lose("the numbers of filters do not agree");
        }
    }

    fn find_dead(&mut self, nodes: &[NodeLease], now: Instant) {
        let stands = self.deaths.look(nodes, now);
        let timeout = self.context.lease_timeout();
        let own = &self.context.node[..];
        let living = |it: &&NodeLease| stands[&it.node] < timeout || it.node == own;
        let first = nodes.iter().filter(living).map(|it| &it.node).min();
        let wait = match first.is_none_or(|first| first == own) {
            true => timeout,
            false => timeout + OTHERS_LATER,
        };
        if self.deaths.purge.is_some() || !self.state().state().is_following() {
            return;
        }
        let dead = nodes
            .iter()
            .find(|it| it.node != own && stands[&it.node] >= wait);
        if let Some(dead) = dead {
            let node = String::from_utf8_lossy(&dead.node).into_owned();
            tracing::warn!(
                shard = self.shard,
                node,
                "a node is dead: its routes are purged"
            );
            self.deaths.purge = Some(Purge {
                node: dead.node.clone(),
                beat: dead.beat.clone(),
                cursor: Some(Cursor::default()),
                found: false,
            });
        }
    }

    /// Purges some routes of a dead node.
    async fn purge(&mut self) -> Result<(), Error> {
        let Some(mut purge) = self.deaths.purge.take() else {
            return Ok(());
        };
        let now = Instant::now();
        if !self.context.replica.in_sync(self.state(), now) {
            return Ok(());
        }
        // More than at the next renewal.
        self.next_renewal = now;
        let Some(cursor) = purge.cursor.take() else {
            return self.end_purge(purge).await;
        };
        let (filters, next) = self.routes_of(&purge.node, cursor);
        if !filters.is_empty() {
            purge.found = true;
            let changes = Changes::purge(filters, &purge.node, &purge.beat);
            match submit(&self.engine, Box::new(changes)).await? {
                Answer::Count(purged) => self.context.metrics.add(Counter::Purged, purged),
                // It lives.
                _ => return Ok(()),
            }
        }
        purge.cursor = next;
        if next.is_none() && purge.found {
            // Once more, until none is found: more may have come meanwhile.
            purge.cursor = Some(Cursor::default());
            purge.found = false;
        }
        self.deaths.purge = Some(purge);
        Ok(())
    }

    async fn end_purge(&mut self, purge: Purge) -> Result<(), Error> {
        let shard = self.shard;
        let node = String::from_utf8_lossy(&purge.node).into_owned();
        let reply = ask(&self.engine, shard, move |context| {
            Question::Script(ScriptCall {
                script: Script::EndLease,
                keys: vec![context.keys.leases(shard)],
                args: vec![purge.node.to_vec(), purge.beat.to_vec()],
            })
        });
        if reply.await? == Frame::Integer(1) {
            tracing::info!(shard, node, "the routes of a dead node are purged");
        }
        Ok(())
    }

    fn routes_of(&self, node: &[u8], mut cursor: Cursor) -> (Vec<Vec<u8>>, Option<Cursor>) {
        let tables = &self.state().tables;
        let tables = tables.read().unwrap_or_else(|broken| broken.into_inner());
        let mut filters = Vec::new();
        let mut searched = 0;
        loop {
            let next = tables.of(Space::Routes).scan(cursor, PURGED, |found| {
                if found.destination == node {
                    filters.push(found.filter.as_bytes().to_vec());
                }
            });
            searched += PURGED;
            match next {
                Some(next) if filters.len() < PURGED && searched < SEARCHED => cursor = next,
                next => return (filters, next),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(node: &str, beat: &str) -> NodeLease {
        NodeLease {
            node: Bytes::copy_from_slice(node.as_bytes()),
            life: Bytes::from_static(b"l"),
            applied: Some(1),
            beat: Bytes::copy_from_slice(beat.as_bytes()),
        }
    }

    #[test]
    fn a_beat_stands_only_while_it_is_looked_at() {
        let mut deaths = Deaths::default();
        let start = Instant::now();
        let second = |seconds| start + Duration::from_secs(seconds);
        let a = Bytes::from_static(b"a");
        for at in 0..10 {
            let stands = deaths.look(&[lease("a", "7")], second(at));
            assert_eq!(stands[&a], Duration::from_secs(at));
        }
        // A server or this node stood still for a while.
        assert_eq!(
            deaths.look(&[lease("a", "7")], second(60))[&a],
            Duration::ZERO
        );
        assert_eq!(
            deaths.look(&[lease("a", "7")], second(61))[&a],
            Duration::from_secs(1)
        );
        // It has moved, if only backwards, as after a fail-over.
        assert_eq!(
            deaths.look(&[lease("a", "6")], second(62))[&a],
            Duration::ZERO
        );
        deaths.restart();
        assert_eq!(
            deaths.look(&[lease("a", "6")], second(63))[&a],
            Duration::ZERO
        );
    }

    #[test]
    fn a_lease_counts_once_all_is_applied_that_nobody_waited_for() {
        let now = Instant::now();
        let lease = Lease {
            held: Some((now, 10)),
            ..Lease::default()
        };
        assert!(!lease.is_held(9, now));
        assert!(lease.is_held(10, now + MAX_LAG));
        assert!(!lease.is_held(10, now + MAX_LAG + Duration::from_millis(1)));
    }
}
