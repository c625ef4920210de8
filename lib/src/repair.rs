//! What follows when an operation meets a foreign value at one of its keys: such values are moved out of
//! the way, so that the operation works when it is tried again, and what a trie of filters lost with
//! that is put back.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::context::Context;
use crate::error::Error;
use crate::hash_slot::hash_slot;
use crate::keys::Keys;
use crate::metrics::{Counter, OperationKind};
use crate::outcome::{strings, TypedKeys};
use crate::request::{Affinity, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::route_scripts::{self, trie_keys, Space};
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
    /// Whether it failed because a trie has yet to be restored.
    is_restoring: bool,
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
    /// Put them back, the last of the list first.
    Restore(Space, Vec<Vec<u8>>),
    /// The trie is whole.
    End(Space),
}

impl Repair {
    /// What follows an operation on these things that failed with `error`, since a value of another type may stand
    /// at one of the keys.
    pub fn new(kind: OperationKind, affinity: Vec<u64>, keys: TypedKeys, error: Error) -> Self {
        let is_restoring =
            matches!(&error, Error::Partial(text) if text.contains("is being restored"));
        Repair {
            kind,
            affinity,
            keys,
            error,
            is_restoring,
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
        // An operation is on one of the two.
        let spaces = [Space::Routes, Space::Subscriptions];
        let lost = |space: &Space| {
            let (trie, parts) = trie_keys(&context.keys, *space, shard);
            let is_of_trie = |key: &Bytes| **key == *trie || key.starts_with(&parts);
            moved.iter().any(is_of_trie)
                || self.is_restoring && self.keys.iter().any(|(key, _)| *key == trie)
        };
        let Some(space) = spaces.into_iter().find(lost) else {
            return self.done();
        };
        self.shard = shard;
        self.phase = Phase::ReadFilters(space);
        Step::Again
    }

    fn decode_filters(&mut self, context: &Context, space: Space, replies: Vec<Frame>) -> Step {
        if let Some(text) = replies.iter().find_map(Frame::error) {
            return self.give_up(text);
        }
        let mut replies = replies.into_iter();
        let Some(Frame::Bulk(last)) = replies.next() else {
            // Another call has come to the end.
            return self.done();
        };
        let members = replies.next().and_then(strings).unwrap_or_default();
        let filters: BTreeSet<Vec<u8>> = members
            .iter()
            .filter_map(|member| match space {
                Space::Routes => Some(context.keys.split_wildcard_member(member)?.0),
                Space::Subscriptions => Some(&member[..]),
            })
            .filter(|filter| parse_filter(filter).is_ok_and(|filter| filter.needs_trie()))
            .filter(|filter| last.is_empty() || **filter > *last)
            .map(<[u8]>::to_vec)
            .collect();
        self.phase = match filters.is_empty() {
            true => Phase::End(space),
            false => Phase::Restore(space, filters.into_iter().rev().collect()),
        };
        Step::Again
    }

    /// The mark stays, and with it matches that ask Redis fail: the next one tries again.
    fn give_up(&self, text: &[u8]) -> Step {
        tracing::error!(error = %String::from_utf8_lossy(text), "a trie of filters could not be restored");
        self.done()
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
                let shard = self.shard_of_keys(&context.keys);
                let tries: Vec<_> = [Space::Routes, Space::Subscriptions]
                    .into_iter()
                    .filter_map(|space| Some(trie_keys(&context.keys, space, shard?)))
                    .collect();
                let arguments = 1 + 2 * keys.len() + 2 * tries.len();
                let out = scripts::call(context, commands, Script::Quarantine, &keys, arguments);
                out.int(KEPT_MS);
                for (key, kind) in &self.keys {
                    out.arg(kind.as_bytes()).arg(&context.keys.foreign(key));
                }
                for (trie, parts) in &tries {
                    out.arg(trie).arg(parts);
                }
            }
            Phase::ReadFilters(space) => {
                let index = match space {
                    Space::Routes => context.keys.wildcards(self.shard),
                    Space::Subscriptions => context.keys.subscriptions_index(self.shard),
                };
                let (trie, _) = trie_keys(&context.keys, *space, self.shard);
                commands.command(&[b"HGET", &trie, b"restoring"]);
                commands.command(&[b"ZRANGE", &index, b"0", b"-1"]);
            }
            Phase::End(space) => {
                let (trie, _) = trie_keys(&context.keys, *space, self.shard);
                commands.command(&[b"HDEL", &trie, b"restoring"]);
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
            Phase::Restore(space, filters) => {
                if let Some(text) = replies.iter().find_map(Frame::error) {
                    return self.give_up(text);
                }
                filters.truncate(filters.len().saturating_sub(FILTERS_STEP));
                if filters.is_empty() {
                    self.phase = Phase::End(*space);
                }
                Step::Again
            }
            Phase::End(_) => match replies.iter().find_map(Frame::error) {
                Some(text) => self.give_up(text),
                None => self.done(),
            },
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
