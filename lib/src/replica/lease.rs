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

use super::ask::{ask, Question};
use super::feed::{number, position};
use super::follow::Follower;
use super::MAX_LAG;
use crate::error::Error;
use crate::metrics::Counter;
use crate::resp::Frame;
use crate::route_scripts::{ScriptCall, Space};
use crate::scripts::Script;

/// Between two renewals.
const RENEWAL: Duration = Duration::from_secs(1);
/// A node that was up to date longer ago does not say that it is.
const UP_TO_DATE: Duration = Duration::from_secs(1);

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

/// When and how the lease was renewed last.
pub(super) struct Renewal {
    pub(super) next: Instant,
    /// What was applied then.
    version: u64,
    /// Connections that had been lost.
    disconnects: u64,
    /// By how many filters the table and the indexes did not agree.
    disagreed: Option<(i64, i64)>,
}

impl Renewal {
    pub(super) fn new(next: Instant) -> Self {
        Renewal {
            next,
            version: 0,
            disconnects: 0,
            disagreed: None,
        }
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

impl Follower {
    /// Renews the lease when it is time, or when others wait for what this node has applied since.
    /// While there is `more` to be read, that comes first.
    pub(super) async fn keep_lease(&mut self, more: bool) -> Result<(), Error> {
        let disconnects = self.context.metrics.get(Counter::Disconnects);
        if disconnects != self.renewal.disconnects {
            self.renewal.disconnects = disconnects;
            self.state().lease().steady_since = Instant::now();
            self.deaths.restart();
        }
        let now = Instant::now();
        let version = *self.state().position.borrow();
        let has_news = version != self.renewal.version;
        let waiting = self.state().waiting.load(Relaxed) > 0;
        if now < self.renewal.next && (more || !has_news && !waiting) {
            return Ok(());
        }
        self.renewal.next = now + RENEWAL;
        self.renewal.version = version;
        self.renew(now, version).await?;
        self.purge_some().await
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
        let since = self.deaths.since(&self.context.node);
        is_superseded && since.is_some_and(|since| now - since > self.context.lease_timeout())
    }

    /// Compares the numbers of filters: what was changed past the feed is noticed.
    fn audit(&mut self, version: u64, counts: (i64, i64)) {
        let (mine, is_same_place) = {
            let shard = self.state();
            let state = shard.state();
            let tables = shard.tables.read();
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
            self.renewal.disagreed = None;
        } else if self.renewal.disagreed.replace(off) != Some(off) {
            self.lose("the numbers of filters do not agree");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
