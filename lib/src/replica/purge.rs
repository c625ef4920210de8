//! Telling dead nodes by their beats, and purging their routes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ask::{ask, submit, Question};
use super::follow::Follower;
use super::lease::NodeLease;
use crate::error::Error;
use crate::metrics::Counter;
use crate::request::Answer;
use crate::resp::Frame;
use crate::route_scripts::{ScriptCall, Space};
use crate::router::Changes;
use crate::scripts::Script;
use crate::table::Cursor;

/// Between two looks at the beats, at most: else the clocks start anew.
const GAP: Duration = Duration::from_secs(4);
/// The first of the living purges; if it does not, the others do so much later.
const OTHERS_LATER: Duration = Duration::from_secs(10);
/// Routes purged in one go, and slots of the table searched for them.
const PURGED: usize = 100;
const SEARCHED: usize = 20_000;

/// Which beats stand, and since when.
#[derive(Default)]
pub(super) struct Deaths {
    beats: HashMap<Bytes, (Bytes, Instant)>,
    looked: Option<Instant>,
}

impl Deaths {
    /// The looking was interrupted: nobody is any closer to being dead.
    pub(super) fn restart(&mut self) {
        self.looked = None;
    }

    /// Since when the beat of a node has stood.
    pub(super) fn since(&self, node: &[u8]) -> Option<Instant> {
        self.beats.get(node).map(|(_, since)| *since)
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

/// A purge that is under way.
pub(super) struct Purge {
    node: Bytes,
    beat: Bytes,
    cursor: Option<Cursor>,
    found: bool,
}

impl Follower {
    /// Begins to purge a node that is dead.
    pub(super) fn find_dead(&mut self, nodes: &[NodeLease], now: Instant) {
        let stands = self.deaths.look(nodes, now);
        let timeout = self.context.lease_timeout();
        let own = &self.context.node[..];
        let living = |it: &&NodeLease| stands[&it.node] < timeout || it.node == own;
        let first = nodes.iter().filter(living).map(|it| &it.node).min();
        let wait = match first.is_none_or(|first| first == own) {
            true => timeout,
            false => timeout + OTHERS_LATER,
        };
        if self.purge.is_some() || !self.state().state().is_following() {
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
            self.purge = Some(Purge {
                node: dead.node.clone(),
                beat: dead.beat.clone(),
                cursor: Some(Cursor::default()),
                found: false,
            });
        }
    }

    /// Purges some routes of a dead node.
    pub(super) async fn purge_some(&mut self) -> Result<(), Error> {
        let Some(mut purge) = self.purge.take() else {
            return Ok(());
        };
        let now = Instant::now();
        if !self.context.replica.in_sync(self.state(), now) {
            return Ok(());
        }
        // More than at the next renewal.
        self.renewal.next = now;
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
        self.purge = Some(purge);
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
        let tables = tables.read();
        let mut filters = Vec::new();
        let mut searched = 0;
        loop {
            let next = tables.of(Space::Routes).scan(cursor, PURGED, |found| {
                if found.destination == node {
                    filters.push(found.filter.to_vec());
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
}
