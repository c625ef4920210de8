//! What follows when an operation meets a foreign value at one of its keys: such values are moved out of
//! the way, so that the operation works when it is tried again, and what a trie of filters lost with
//! that is put back.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::error::Error;
use crate::hash_slot::hash_slot;
use crate::keys::Keys;
use crate::metrics::{Counter, OperationKind};
use crate::outcome::{strings, TypedKeys};
use crate::request::{Affinity, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::route_scripts::{self, Space};
use crate::router;
use crate::scripts::{self, Script};
use crate::topic::parse_filter;

/// How long a value that was moved is kept.
pub(crate) const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;
/// Filters put back in one step.
const FILTERS_STEP: usize = 200;

/// The last steps of an operation that failed; they end with its error.
pub struct Repair {
    kind: OperationKind,
    affinity: Vec<u64>,
    keys: TypedKeys,
    error: Error,
    /// Whether the operation changed data.
    is_write: bool,
    /// The route shard whose filters are put back.
    shard: u16,
    phase: Phase,
}

enum Phase {
    Quarantine,
    /// Ask which filters the trie must hold.
    ReadFilters(Space),
    /// Put them back.
    Restore(Space, Vec<Vec<u8>>),
}

impl Repair {
    /// What follows an operation on these things that failed with `error`, since a value of another type may stand
    /// at one of the keys.
    pub fn new(kind: OperationKind, affinity: Vec<u64>, keys: TypedKeys, error: Error) -> Self {
        Repair {
            kind,
            affinity,
            keys,
            error,
            is_write: false,
            shard: 0,
            phase: Phase::Quarantine,
        }
    }

    /// Of an operation that changes data other parts may have been done: this is confirmed as they are.
    pub(crate) fn after_write(self, is_write: bool) -> Self {
        Repair { is_write, ..self }
    }

    fn shard_of_keys(&self, keys: &Keys) -> Option<u16> {
        match keys.is_clustered() {
            true => keys.shard_in(hash_slot(&self.keys.first()?.0)),
            false => Some(0),
        }
    }

    fn done(&self) -> Step {
        Step::Done(Err(self.error.clone()))
    }

    fn decode_quarantine(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let moved = match replies.into_iter().next() {
            Some(Frame::Error(text)) => {
                tracing::error!(error = %String::from_utf8_lossy(&text), "a foreign value could not be moved");
                return self.done();
            }
            Some(reply) => strings(reply).unwrap_or_default(),
            None => Vec::new(),
        };
        let count = moved.len() as u64;
        context.metrics.add(Counter::Quarantined, count);
        for key in &moved {
            tracing::warn!(key = %key.escape_ascii(), "a foreign value stood at this key; it was moved to `foreign:…` for a week");
        }
        let Some(shard) = self.shard_of_keys(&context.keys) else {
            return self.done();
        };
        let keys = &context.keys;
        let lost = |space| {
            let (trie, parts) = match space {
                Space::Routes => (keys.trie(shard), keys.trie_routes(shard, b"")),
                Space::Subscriptions => (
                    keys.subscriptions_trie(shard),
                    keys.trie_filters(shard, b""),
                ),
            };
            moved
                .iter()
                .any(|key| **key == *trie || key.starts_with(&parts))
        };
        // An operation is on one of the two.
        let spaces = [Space::Routes, Space::Subscriptions];
        let Some(space) = spaces.into_iter().find(|space| lost(*space)) else {
            return self.done();
        };
        self.shard = shard;
        self.phase = Phase::ReadFilters(space);
        Step::Again
    }

    fn decode_filters(&mut self, context: &Context, space: Space, replies: Vec<Frame>) -> Step {
        let members = replies
            .into_iter()
            .next()
            .and_then(strings)
            .unwrap_or_default();
        let filters: BTreeSet<Vec<u8>> = members
            .iter()
            .filter_map(|member| match space {
                Space::Routes => Some(context.keys.split_wildcard_member(member)?.0),
                Space::Subscriptions => Some(&member[..]),
            })
            .filter(|filter| parse_filter(filter).is_ok_and(|filter| filter.needs_trie()))
            .map(<[u8]>::to_vec)
            .collect();
        if filters.is_empty() {
            return self.done();
        }
        self.phase = Phase::Restore(space, filters.into_iter().collect());
        Step::Again
    }
}

impl Operation for Repair {
    fn kind(&self) -> OperationKind {
        self.kind
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::Many(&self.affinity)
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        match &self.phase {
            Phase::Quarantine => {
                let keys: Vec<&[u8]> = self.keys.iter().map(|(key, _)| key.as_slice()).collect();
                let arguments = 1 + 2 * keys.len();
                let out = scripts::call(context, commands, Script::Quarantine, &keys, arguments);
                out.int(KEPT_MS);
                for (key, kind) in &self.keys {
                    out.arg(kind.as_bytes()).arg(&context.keys.foreign(key));
                }
            }
            Phase::ReadFilters(space) => {
                let index = match space {
                    Space::Routes => context.keys.wildcards(self.shard),
                    Space::Subscriptions => context.keys.subscriptions_index(self.shard),
                };
                commands.command(&[b"ZRANGE", &index, b"0", b"-1"]);
            }
            Phase::Restore(space, filters) => {
                for filter in filters.iter().rev().take(FILTERS_STEP) {
                    if let Ok(filter) = parse_filter(filter) {
                        let call =
                            route_scripts::restore(&context.keys, self.shard, *space, &filter);
                        router::encode(context, commands, &call);
                    }
                }
            }
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if replies.iter().any(scripts::is_unknown) {
            return Step::LoadScripts;
        }
        match &mut self.phase {
            Phase::Quarantine => self.decode_quarantine(context, replies),
            Phase::ReadFilters(space) => {
                let space = *space;
                self.decode_filters(context, space, replies)
            }
            Phase::Restore(_, filters) => {
                if let Some(text) = replies.iter().find_map(Frame::error) {
                    tracing::error!(error = %String::from_utf8_lossy(text), "a filter could not be put back");
                }
                filters.truncate(filters.len().saturating_sub(FILTERS_STEP));
                match filters.is_empty() {
                    true => self.done(),
                    false => Step::Again,
                }
            }
        }
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        // All keys of an operation are in one slot.
        self.keys.first().map(|(key, _)| hash_slot(key))
    }

    fn is_write(&self) -> bool {
        self.is_write
    }

    fn size(&self) -> usize {
        0
    }
}
